"""PostgreSQL and Valkey of one run's own, and Django upon them."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import django
from django.core.management import call_command

from memsvc.embedded.home import Home
from memsvc.embedded.services import Services

CACHE_MB = 256


@contextmanager
def servers(settings: Mapping[str, str], cache_mb: int = CACHE_MB) -> Iterator[Services]:
    """Start them, and Django with these settings; all of it is gone afterwards. Once a process."""
    with tempfile.TemporaryDirectory(prefix="memsvc-bench-") as folder:
        home = Home(Path(folder))
        home.acquire()
        services = Services(home, cache_mb=cache_mb, durable=False)
        try:
            for server in services.every.values():
                server.start()
            os.environ.update({name: server.url for name, server in services.every.items()})
            os.environ.update({**home.environment(), **settings, "SECRET_KEY": secrets.token_hex(32)})
            os.environ["DJANGO_SETTINGS_MODULE"] = "memsvc.settings"
            import_module("memsvc.celery")  # whatever sends tasks needs the app
            django.setup()
            call_command("migrate", verbosity=0)
            yield services
        finally:
            home.stop_leftovers()
            home.remove()
