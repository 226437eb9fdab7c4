"""`manage.py rebuild`: every user's caches, in this process, with its progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cachewarm import rebuild
from cachewarm.models import RebuildRun

TICK_SECONDS = 0.5


class Command(BaseCommand):
    """Rebuild every user's caches, also where PROACTIVE_CACHE_ENABLED is false.

    One that was interrupted goes on where it stood; one that a worker is at is watched. Ctrl-C stops here, and the next
    call goes on. Exit codes: 0 all done, 1 some users failed, 2 stopped, 130 interrupted.
    """

    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        """How to show it."""
        parser.add_argument("--json", action="store_true", help="print the outcome as one line of JSON, no bar")
        parser.add_argument("--quiet", action="store_true", help="print nothing but errors")

    def handle(self, *args: Any, **options: Any) -> None:
        """Ends by its exit code."""
        run, _ = rebuild.begin("manual", full=True)
        silent = options["json"] or options["quiet"]
        try:
            for progress in _shown(_progress(run.pk), silent=silent):
                run = progress
        except KeyboardInterrupt:
            self.stderr.write("interrupted; `manage.py rebuild` goes on from here")
            sys.exit(130)
        except rebuild.LeaseLost as error:
            raise CommandError("another process has taken the rebuild over") from error
        if options["json"]:
            self.stdout.write(json.dumps(_outcome(run)))
        elif not options["quiet"]:
            told = _outcome(run)
            self.stdout.write(", ".join(f"{name} {told[name]}" for name in ("done", "unchanged", "failed", "state")))
        if run.state == "stopped":
            sys.exit(2)
        if run.failed:
            sys.exit(1)


def _progress(rebuild_id: int) -> Iterator[RebuildRun]:
    """The rebuild as it goes on: worked on here, or watched while another process is at it."""
    while True:
        run = RebuildRun.objects.get(pk=rebuild_id)
        if run.state != "running":
            yield run
            return
        rebuild.free_the_dead()
        work = rebuild.claim(rebuild_id)
        if work is not None:
            yield from rebuild.run_here(work)
            return
        yield run
        time.sleep(TICK_SECONDS)


def _shown(progress: Iterator[RebuildRun], *, silent: bool) -> Iterator[RebuildRun]:
    columns = (
        TextColumn("Rebuilding"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} failed"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=silent) as bar:
        task = bar.add_task("rebuild", total=None, failed=0)
        for run in progress:
            bar.update(task, completed=run.done, total=run.total, failed=run.failed)
            yield run


def _outcome(run: RebuildRun) -> dict[str, Any]:
    counts = {name: getattr(run, name) for name in ("total", "done", "unchanged", "failed")}
    return {"run_id": str(run.run_id), "state": run.state, **counts}
