"""`manage.py export_memories`: every memory of a project's users, as JSON Lines."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import track

from memory import exports, read
from memory.clock import Deadline
from memory.errors import MemsvcError
from memory.models import MemoryUser, Project
from memory.tenancy import projects
from memory.types import Scope

LIST_SECONDS = 120.0


class Command(BaseCommand):
    """Write the memories of every user that memsvc knows to a file or the output, one a line, user after user.

    `import_memories` reads them. Users that only Mem0 knows come first by `adopt`; memories without a user stay where
    they are. Exit codes: 0 all of them, 1 Mem0 listed only some of a user's.
    """

    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        """Whose, where to, how to show it."""
        parser.add_argument("file", nargs="?", default="-", help="Where to; - is the output.")
        parser.add_argument("--project", default="default", help="The project's slug.")
        parser.add_argument("--quiet", action="store_true", help="print nothing but errors")

    def handle(self, *args: Any, **options: Any) -> None:
        """Ends by its exit code."""
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']!r}.")
        if options["file"] == "-":
            cut = self._write(project, sys.stdout.buffer, options["quiet"])
        else:
            with open(options["file"], "xb") as file:
                cut = self._write(project, file, options["quiet"])
        if cut:
            self.stderr.write(f"Mem0 listed only some of the memories of {cut} users.")
            sys.exit(1)

    def _write(self, project: Project, file: Any, quiet: bool) -> int:
        policy, cut = projects.policy(project.pk), 0
        known = MemoryUser.objects.filter(project=project)
        progress = track(exports.rows(known), "Exporting", known.count(), console=Console(stderr=True), disable=quiet)
        for user in progress:
            try:
                found, _, complete = read.memories(
                    Scope(project.pk, user.user_id), policy, Deadline.after(LIST_SECONDS)
                )
            except MemsvcError as error:
                raise CommandError(f"Mem0 cannot be asked: {error}") from error
            cut += not complete
            for block in exports.chunks(exports.memories(found), project=project.pk, user_id=user.user_id):
                file.write(block)
        return cut
