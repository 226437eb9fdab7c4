"""The servers behind memsvc: which of them are started here, and where they are."""

from __future__ import annotations

import os

from memsvc.embedded.home import Home
from memsvc.embedded.postgres import Postgres
from memsvc.embedded.valkey import Valkey

BROKER_MEMORY_MB = 256


class Services:
    """PostgreSQL and the two Valkeys of one home."""

    def __init__(self, home: Home, *, cache_mb: int, durable: bool = True) -> None:
        self.postgres = Postgres(home, durable=durable)
        self.cache = Valkey(home, "cache", cache_mb)
        self.broker = Valkey(home, "broker", BROKER_MEMORY_MB)
        self.every: dict[str, Postgres | Valkey] = {
            "DATABASE_URL": self.postgres,
            "REDIS_URL": self.cache,
            "BROKER_URL": self.broker,
        }

    def missing(self) -> dict[str, Postgres | Valkey]:
        """Those that the environment names no URL for, by the variable's name."""
        given = {name for name in self.every if os.environ.get(name) or os.environ.get(f"{name}_FILE")}
        return {name: server for name, server in self.every.items() if name not in given}
