"""`manage.py adopt`: the users that an existing Mem0 already has memories of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import track

from memory import read, write
from memory.api.fields import Ident, Wrong
from memory.clock import Deadline
from memory.errors import MemsvcError
from memory.models import MemoryUser, Project
from memory.tenancy import projects

LIST_SECONDS = 120.0


class Command(BaseCommand):
    """Know the users that Mem0 has memories of, so that they can be warmed: `manage.py rebuild` does.

    They are asked of Mem0, or read from a file with an id a line. Running it again adds whoever is new. Exit codes:
    0 all of them, 1 Mem0's own scan ended at its limit or a line of the file is no id, so that some may be missing.
    """

    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        """Whose, from where, how to show it."""
        parser.add_argument("--project", default="default", help="The project's slug.")
        parser.add_argument("--ids", type=Path, help="A file with a user's id on each line, instead of asking Mem0.")
        parser.add_argument("--quiet", action="store_true", help="print nothing but errors")

    def handle(self, *args: Any, **options: Any) -> None:
        """Ends by its exit code."""
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']!r}.")
        ids, complete = self._from_file(options["ids"]) if options["ids"] else self._from_mem0(project)
        before = MemoryUser.objects.filter(project=project).count()
        console = Console(stderr=True)
        for user_id in track(ids, "Adopting", console=console, disable=options["quiet"]):
            write.touch_user(project.pk, user_id)
        new = MemoryUser.objects.filter(project=project).count() - before
        if not options["quiet"]:
            self.stdout.write(f"{len(ids)} users, {new} of them new.")
        if not complete:
            self.stderr.write("This may not be everyone: give the others with --ids.")
            sys.exit(1)

    def _from_mem0(self, project: Project) -> tuple[list[str], bool]:
        try:
            rows, complete = read.entities(projects.policy(project.pk), Deadline.after(LIST_SECONDS))
        except MemsvcError as error:
            raise CommandError(f"Mem0 cannot be asked: {error}") from error
        return [row["id"] for row in rows if row["type"] == "user"], complete

    def _from_file(self, file: Path) -> tuple[list[str], bool]:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{file}: {error}") from error
        found = list(self._checked(lines))
        return found, len(found) == sum(bool(line.strip()) for line in lines)

    def _checked(self, lines: list[str]) -> Iterator[str]:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield Ident().check(line.strip())
                except Wrong as wrong:
                    self.stderr.write(f"line {number}: {wrong}")
