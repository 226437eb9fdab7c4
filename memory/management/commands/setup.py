"""`manage.py setup`: make a database ready for the service. Running it again changes nothing that stands."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection, transaction

from memory.models import ApiKey, Project
from memory.tenancy import keys, projects

ADMIN = "admin"
# Held while setting up: two copies that share a database may start at once.
LOCK = 0x6D656D737663


class Command(BaseCommand):
    """Check the settings, migrate, collect static files, make the first project, its key and the admin.
    Each app makes its own defaults after migrate."""

    help = __doc__
    requires_system_checks = ()  # run below, with the database's own

    def handle(self, *args: Any, **options: Any) -> None:
        """CommandError, with what to mend, when a check fails."""
        call_command("check", databases=["default"])
        settings.MEMSVC_HOME.mkdir(parents=True, exist_ok=True)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        try:
            call_command("migrate", interactive=False, stdout=self.stdout)
            if moved := projects.follow_settings():
                self.stdout.write(f"Mem0 or its embedder is another than before: {moved} projects read it anew")
            self._first_key()
            self._admin()
        finally:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
        call_command("collectstatic", interactive=False, verbosity=0)

    def _first_key(self) -> None:
        """Made in a database without any key; one revoked, or lost with its file, is for the operator to replace."""
        file = settings.MEMSVC_HOME / "first-key"
        if ApiKey.objects.exists():
            if not file.exists() or keys.authenticate(file.read_text().strip()) is None:
                command = f"create_key --scopes {','.join(keys.SCOPES)}"
                told = f"The first key is not in {file} or no longer good; make one with: manage.py {command}"
                self.stdout.write(f'{told} (beside `make up`: make manage ARGS="{command}")')
            return
        with transaction.atomic():
            project = Project.objects.order_by("pk").first() or Project.objects.create(name="Default", slug="default")
            _, secret = keys.create(project, name="first", scopes=keys.SCOPES)
            _write(file, secret)
        self.stdout.write(f"The first key is in {file}")

    def _admin(self) -> None:
        """The password is written before it is set: a kill in between loses nothing."""
        users = get_user_model()
        if users.objects.filter(is_superuser=True).exists():
            return
        file = settings.MEMSVC_HOME / "admin-password"
        if not file.exists():
            _write(file, secrets.token_urlsafe(16))
        users.objects.create_superuser(ADMIN, password=file.read_text().strip())
        self.stdout.write(f"The password of {ADMIN} is in {file}")


def _write(file: Path, secret: str) -> None:
    """For its owner's eyes only, and never half of it."""
    new = file.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(secret + "\n")
    new.rename(file)
