"""Short-term memory measured, each table by one module: `make bench-stm`."""
