"""Processes that memsvc starts and must never lose: each known by pid and start time, in a session of its own.

A process writes its own record before it becomes the program, so a starter killed at any moment leaves nothing that
the next start does not know of.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")
POLL_SECONDS = 0.02
SESSION_TRIES = 5


class StartError(Exception):
    """A process cannot be started or did not become ready; the message is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Account:
    """The user that servers run as when memsvc itself runs as root: PostgreSQL refuses root."""

    uid: int
    gid: int
    name: str


@cache
def _boot() -> str:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when there is no such process."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> str | None:
    """What tells this process from any other that ever had its pid; None when it has ended, reaped or not."""
    if not (PROC / "self").exists():  # macOS
        ps = subprocess.run(
            ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        state, _, started = ps.stdout.strip().partition(" ")
        return "-".join(started.split()) if started and not state.startswith("Z") else None
    fields = _stat(pid)
    return f"{_boot()}:{fields[19]}" if fields and fields[0] not in "ZX" else None


def parent(pid: int) -> int | None:
    """The pid of a process's parent; None when unknown."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def working_in(folder: Path) -> list[int] | None:
    """The pids whose working directory this is; None where the system does not tell."""
    found = []
    for entry in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").samefile(folder):
                found.append(int(entry.name))
    return found if (PROC / "self").exists() else None


@dataclass(frozen=True, slots=True)
class Record:
    """A process as it was recorded at its start."""

    name: str
    pid: int
    started: str
    gentle: signal.Signals

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in a file; None when there is none or it was never finished."""
        try:
            pid, started, gentle = path.read_text().split()
            return cls(path.stem, int(pid), started, signal.Signals(int(gentle)))
        except (OSError, ValueError):
            return None

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return start_time(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it still runs."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def session(self, home: Path) -> list[int]:
        """The pids of its whole session. Once its leader has ended the session's number may be somebody else's, so
        then only processes that carry this home in their environment count."""
        found, leader = [], start_time(self.pid)
        if leader not in (None, self.started):
            return []
        for entry in PROC.glob("[0-9]*"):
            fields = _stat(int(entry.name))
            if fields and fields[0] not in "ZX" and int(fields[3]) == self.pid and (leader or _carries(entry, home)):
                found.append(int(entry.name))
        return found or ([self.pid] if leader else [])


def _carries(entry: Path, home: Path) -> bool:
    try:
        return f"MEMSVC_HOME={home}".encode() in (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def records(run: Path) -> list[Record]:
    """All that was recorded in a run folder, whether it still runs or not. An empty record is of a process that is
    just being born: it is given a moment."""
    paths = sorted(run.glob("*.pid"))
    wait_until(lambda: all(path.stat().st_size for path in paths), 0.5)
    return [record for path in paths if (record := Record.read(path))]


def stop(found: Sequence[Record], home: Path, seconds: float) -> None:
    """Ask each to end; after `seconds`, or for what its leader left behind, do not ask. Their records are removed."""
    for record in found:
        record.send(record.gentle)
        record.send(signal.SIGCONT)
    wait_until(lambda: not any(record.alive for record in found), seconds)
    for record in found:
        for pid in record.session(home):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(record.session(home) for record in found), 5)
    for record in found:
        (home / "run" / f"{record.name}.pid").unlink(missing_ok=True)


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    """Look at `done` every 20 ms; False when it was not so within `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _lower_session(pid: int, nice: int) -> None:
    """Lower a whole session against others. Where Linux weighs sessions (`autogroup`), a process's own niceness counts
    within its session alone; elsewhere there is nothing to do."""
    for _ in range(SESSION_TRIES):
        try:
            (PROC / f"{pid}/autogroup").write_text(str(nice), encoding="ascii")
        except BlockingIOError:  # the kernel takes one such write in 100 ms from users other than root
            time.sleep(0.1)
        except OSError:
            return
        else:
            return


class Process:
    """One process of a home: its log is HOME/logs/NAME.log, its record HOME/run/NAME.pid."""

    def __init__(
        self,
        home: Path,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        account: Account | None = None,
        gentle: signal.Signals = signal.SIGTERM,
        nice: int = 0,
    ) -> None:
        self.name, self.home = name, home
        self.log = home / "logs" / f"{name}.log"
        self._argv, self._cwd, self._account = [str(word) for word in argv], cwd, account
        self._env = {**(os.environ if env is None else env), "MEMSVC_HOME": str(home)}
        self._gentle, self._nice = gentle, nice
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; StartError when the program cannot be run."""
        record = self.home / "run" / f"{self.name}.pid"
        try:
            record.parent.mkdir(exist_ok=True)
            self.log.parent.mkdir(mode=0o700, exist_ok=True)
            self.log.parent.chmod(0o700)  # a server of another account writes to what it inherits
            descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                self._popen = self._spawn(descriptor)
            finally:
                os.close(descriptor)
        except (OSError, subprocess.SubprocessError) as error:  # the latter: no room for the record
            with contextlib.suppress(OSError):
                record.unlink()
            raise StartError(f"{self.name} cannot be started: {error}") from error
        if self._nice:
            _lower_session(self._popen.pid, self._nice)

    def _spawn(self, record: int) -> subprocess.Popen[bytes]:
        def become() -> None:
            if self._nice:
                os.nice(self._nice)
            pid = os.getpid()
            os.write(record, f"{pid} {start_time(pid)} {int(self._gentle)}\n".encode())

        account = self._account
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._argv,
                cwd=self._cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=become,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )

    @property
    def record(self) -> Record | None:
        """What is known of it, by whoever started it."""
        return Record.read(self.home / "run" / f"{self.name}.pid")

    def exited(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._popen.poll() if self._popen else 0

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready`; StartError, with the end of its log, when it ends first or takes longer."""
        wait_until(lambda: self.exited() is not None or ready(), seconds)
        if self.exited() is not None or not ready():
            what = "took too long to start" if self.exited() is None else f"ended with status {self.exited()}"
            raise StartError(f"{self.name} {what}. The end of {self.log}:\n{self.tail()}")

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - 16384))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def stop(self, seconds: float = 10) -> None:
        """End it and all of its session."""
        stop_all([self], seconds)


def stop_all(processes: Sequence[Process], seconds: float) -> None:
    """End several at once, and reap them."""
    for home in {process.home for process in processes}:
        stop([record for process in processes if process.home == home and (record := process.record)], home, seconds)
    for process in processes:
        if process._popen:
            process._popen.wait()
