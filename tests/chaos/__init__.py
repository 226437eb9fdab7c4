"""The whole service under random faults, held against a model of the truth: `make chaos`."""
