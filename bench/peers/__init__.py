"""Other memory services, from PyPI, to be measured beside memsvc: `make bench-peers`."""
