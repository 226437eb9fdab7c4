"""manage.py create_key: an API key, shown once."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from memory.api.fields import Ident, Wrong
from memory.models import Project
from memory.tenancy import keys


class Command(BaseCommand):
    """Create a key of a project and print its secret."""

    help = "Create an API key and print its secret, which is not kept."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What to ask for."""
        parser.add_argument("--project", default="default", help="The project's slug.")
        parser.add_argument("--name", default="command line", help="What the key is for.")
        parser.add_argument("--scopes", default="read,write", help=f"Of {', '.join(keys.SCOPES)}, with commas.")
        parser.add_argument("--user", default="", help="Serve this user alone.")
        parser.add_argument("--per-minute", type=int, help="Requests it may make a minute; without, there is no limit.")
        parser.add_argument("--days", type=int, help="Days until it expires; without, it does not.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Create it."""
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            known = ", ".join(Project.objects.values_list("slug", flat=True))
            raise CommandError(f"There is no project {options['project']!r}; there are: {known or 'none'}.")
        days = options["days"]
        if options["per_minute"] is not None and options["per_minute"] < 1:
            raise CommandError("--per-minute must be 1 or more.")
        try:
            _, secret = keys.create(
                project,
                name=options["name"],
                scopes=[scope.strip() for scope in options["scopes"].split(",")],
                user_id=Ident().check(options["user"]) if options["user"] else "",
                requests_per_minute=options["per_minute"],
                expires_at=None if days is None else timezone.now() + timedelta(days=days),
            )
        except Wrong as wrong:
            raise CommandError(f"--user {wrong}.") from None
        except ValueError as error:
            raise CommandError(f"{error}.") from None
        self.stdout.write(secret)
