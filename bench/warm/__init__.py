"""Warming at scale, beside a bare script that writes the same rows and entries: `make bench-warm`."""
