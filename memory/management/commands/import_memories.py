"""`manage.py import_memories`: facts from JSON Lines."""

from __future__ import annotations

import sys
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import wrap_file

from memory import write
from memory.api import imports
from memory.errors import MemsvcError
from memory.models import Project
from memory.tenancy import projects
from memory.write import BacklogFull, Write


class Command(BaseCommand):
    """Accept every line's fact as a write: {user_id, memory, metadata?, agent_id?, run_id?, expiration_date?}.

    Takes what `export_memories` and a user's export have written; of the latter the memories alone. It waits where too
    many writes wait for Mem0 already. The same file again within IDEMPOTENCY_HOURS is the same writes, so that a broken
    run can be run again. Exit codes: 0 every line, 1 some are no facts.
    """

    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        """Whose, from where, how to show it."""
        parser.add_argument("file", help="JSON Lines; - is the input.")
        parser.add_argument("--project", default="default", help="The project's slug.")
        parser.add_argument(
            "--again", action="store_true", help="Store it once more, also where it was imported today."
        )
        parser.add_argument("--quiet", action="store_true", help="print nothing but errors")

    def handle(self, *args: Any, **options: Any) -> None:
        """Ends by its exit code."""
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']!r}.")
        key = None if options["again"] else "manage.py import_memories"
        if options["file"] == "-":
            told = self._read(sys.stdin.buffer, project, key)
        else:
            size, hidden = None, options["quiet"]
            try:
                with open(options["file"], "rb") as file:
                    size = file.seek(0, 2)
                    file.seek(0)
                    console = Console(stderr=True, quiet=hidden)
                    with wrap_file(file, size, description="Importing", console=console) as shown:
                        told = self._read(shown, project, key)
            except OSError as error:
                raise CommandError(f"{options['file']}: {error}") from error
        if not options["quiet"]:
            self.stdout.write(f"{told.facts} facts in {told.jobs} jobs; {told.skipped} lines skipped.")
        for line, reason in told.first_refused:
            self.stderr.write(f"line {line}: {reason}")
        if told.refused:
            self.stderr.write(f"{told.refused} lines are no facts.")
            sys.exit(1)

    def _read(self, file: Any, project: Project, key: str | None) -> imports.Imported:
        def accept(made: Write) -> object:
            while True:
                try:
                    return write.accept(made, projects.policy(project.pk))
                except BacklogFull as full:
                    time.sleep(full.retry_after)

        try:
            return imports.bring_in(imports.lines_of(file), project.pk, accept, key)
        except MemsvcError as error:
            raise CommandError(f"Stopped; what was accepted stays so, run it again: {error}") from error
