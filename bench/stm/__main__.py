"""Short-term memory measured, on PostgreSQL, Valkey and Mem0 in process that live for one run.

    python -m bench.stm                    every table but the last: about eight minutes, most of it embedding
    python -m bench.stm context trips      some of: context, recall, trips, vietnamese, tokens

The tables, then the figures as one line of JSON each; the exit status says whether every bound held.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module

from bench.services import servers

TABLES = ("context", "recall", "trips", "vietnamese", "tokens")
SETTINGS = {
    "LOCAL_SEARCH": "off",  # Mem0 itself answers
    "PROACTIVE_CACHE_ENABLED": "false",
    "STM_BUDGET_MS": "60000",  # what is found is measured, not how fast
    "LOG_LEVEL": "WARNING",
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="table", help=" ".join(TABLES))
    chosen = parser.parse_args().tables or TABLES[:-1]
    if unknown := set(chosen) - set(TABLES):
        parser.error(f"no such table: {' '.join(sorted(unknown))}")
    held = True
    with servers(SETTINGS):
        for name in chosen:
            table = import_module(f"bench.stm.{name}")
            figures = table.measure(project(name))
            print(f"\n== {table.__doc__.strip().splitlines()[0]}\n")
            for bound, kept in table.show(figures):
                held = held and kept
                print(f"{'held' if kept else 'MISSED':>6}: {bound}")
            print(json.dumps({name: figures}), flush=True)
    return 0 if held else 1


def project(name: str) -> int:
    """A project of a table's own."""
    from memory.models import Project

    return Project.objects.create(name=name, slug=name, namespace=name).pk


if __name__ == "__main__":
    sys.exit(main())
