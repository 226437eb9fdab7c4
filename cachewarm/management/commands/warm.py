"""`manage.py warm USER`: fill one user's layers now, in this process."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from cachewarm import chains, runs, steps
from cachewarm.models import WarmRun
from memory import write
from memory.models import Project

TICK_SECONDS = 0.2


class Command(BaseCommand):
    """Warm one user, also where PROACTIVE_CACHE_ENABLED is false. Exit code 1 when it fails."""

    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        """The user, and the project where there are several."""
        parser.add_argument("user", help="the user's id")
        parser.add_argument("--project", metavar="SLUG", help="the first project without it")

    def handle(self, *args: Any, **options: Any) -> None:
        """CommandError when the warm fails."""
        project = _project(options["project"])
        write.touch_user(project.pk, options["user"])
        due = runs.request(project.pk, options["user"], "manual")
        run = _here_or_elsewhere(due)
        if run.state == "failed":
            raise CommandError(f"{run.user_id}: the warm failed ({run.error})")
        self.stdout.write(f"{run.user_id}: {run.state} at version {run.version} in {run.milliseconds} ms")


def _project(slug: str | None) -> Project:
    project = Project.objects.filter(slug=slug).first() if slug else Project.objects.order_by("pk").first()
    if project is None:
        raise CommandError(f"there is no project {slug}" if slug else "there is no project yet")
    return project


def _here_or_elsewhere(due: runs.Due) -> WarmRun:
    """Do it here; where a worker has the user already, wait for it."""
    while (run := WarmRun.objects.get(run_id=due.run_id)).state in ("due", "running"):
        if (mine := runs.claim(due.run_id)) is not None:
            chains.run_here([mine], steps.limits())
            mine.refresh_from_db()
            if mine.state == "due":
                raise CommandError(f"{mine.user_id}: the warm failed ({mine.error}) and will be tried again")
        else:
            time.sleep(TICK_SECONDS)
    return run
