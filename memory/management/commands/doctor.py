"""`manage.py doctor`: how each part is, and what mends it."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand

from memory import doctor

MARKS = {"ok": "ok  ", "look": "look", "fail": "FAIL"}


class Command(BaseCommand):
    """Ask PostgreSQL, both Redis roles, Mem0, the embedder, the clocks and the workers how they are.

    Exit codes: 0 all is well or somebody should look, 1 something fails. It works while parts are down.
    """

    help = __doc__
    requires_system_checks = []  # it tells them itself, and goes on

    def handle(self, *args: Any, **options: Any) -> None:
        """Print a line for each part, and a second one with its mend."""
        failed = False
        for found in doctor.examine():
            failed |= found.state == "fail"
            self.stdout.write(f"{MARKS[found.state]}  {found.part}: {found.said}")
            if found.mend:
                self.stdout.write(f"      → {found.mend}")
        if failed:
            sys.exit(1)
