"""MEMSVC_HOME: where everything lies, who owns it, and that one starter at a time uses it."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import IO

from memsvc.embedded import process
from memsvc.embedded.process import PROC, Account, StartError

SERVERS = ("postgres", "initdb", "cache", "broker")
STOP_SECONDS = (10, 10, 60)
# A socket's whole path may have 103 bytes (macOS); the longest file name here has some 20.
SOCKET_FOLDER_MAX_BYTES = 80


class Home:
    """One folder of data and the short-lived folder for sockets that belongs to it.

    HOME/postgres, broker, cache: the servers' data · logs, run · secret-key, first-key, admin-password · lock.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] | None = None

    # -- one starter at a time ----------------------------------------------------------------------------------------

    def try_acquire(self) -> bool:
        """Hold this home until the process ends, if nobody else does."""
        lock = self._open_lock()
        if _locked(lock):
            self._hold(lock)
        return self._lock is lock

    def acquire(self) -> None:
        """Hold this home until the process ends. A holder whose own parent is gone (its terminal, its `make`) is
        asked to end first; with any other holder, StartError."""
        lock = self._open_lock()
        if not _locked(lock):
            lock.seek(0)
            holder, _, parent = lock.read().strip().partition(" ")
            if not holder or process.parent(int(holder)) in (None, int(parent)):
                raise StartError(f"memsvc already runs in {self.root} (pid {holder}). Stop it with Ctrl-C or `kill`.")
            os.kill(int(holder), signal.SIGTERM)
            if not process.wait_until(lambda: _locked(lock), 60):
                raise StartError(f"memsvc already runs in {self.root} (pid {holder}) and does not stop.")
        self._hold(lock)

    def _open_lock(self) -> IO[str]:
        return (self.root / "lock").open("a+")

    def _hold(self, lock: IO[str]) -> None:
        lock.truncate(0)
        lock.write(f"{os.getpid()} {os.getppid()}\n")
        lock.flush()
        self._lock = lock

    def stop_leftovers(self) -> list[str]:
        """Stop everything that runs here, by whomever it was started. Returns the names of what still ran."""
        found = process.records(self.root / "run")
        left = [record.name for record in found if record.session(self.root)]
        for rank, seconds in enumerate(STOP_SECONDS):
            process.stop([record for record in found if _rank(record.name) == rank], self.root, seconds)
        return left

    # -- who owns what ------------------------------------------------------------------------------------------------

    @cached_property
    def account(self) -> Account | None:
        """Who the servers run as: ourselves (None), or as root the owner of the data, at first `nobody`."""
        if os.geteuid() != 0:
            return None
        data = self.root / "postgres"
        owner = data.stat().st_uid if data.exists() else 0
        user = pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
        return Account(user.pw_uid, user.pw_gid, user.pw_name)

    def data(self, name: str) -> Path:
        """A server's own folder, which nobody else can read."""
        folder = self.root / name
        folder.mkdir(mode=0o700, exist_ok=True)
        self._hand_over(folder)
        return folder

    def seen_by_server(self, folder: Path) -> str:
        """How the servers' user names a data folder that is also its working directory. Under a parent closed to that
        user (a root's home) it is entered before the privileges are dropped; no parent is ever opened up."""
        if self._reachable(folder):
            return str(folder)
        if not (PROC / "self/cwd").exists():
            raise StartError(f"{self.account and self.account.name} cannot enter {folder}: set MEMSVC_HOME elsewhere.")
        return str(PROC / "self/cwd")

    @cached_property
    def runtime(self) -> Path:
        """A short folder for sockets and what else the servers' user must reach, derived from this home."""
        name = "memsvc-" + hashlib.sha256(f"{os.geteuid()}:{self.root}".encode()).hexdigest()[:12]
        temporary = Path(tempfile.gettempdir())
        fits = len(os.fsencode(temporary / name)) < SOCKET_FOLDER_MAX_BYTES
        folder = (temporary if fits else Path("/tmp")) / name  # made private below  # noqa: S108  # nosec B108
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise StartError(f"{folder} belongs to somebody else: remove it, or set TMPDIR.")
        folder.chmod(0o711 if self.account else 0o700)
        return folder

    @property
    def sockets(self) -> Path:
        """The folder of the servers' sockets: whoever can enter it is trusted."""
        folder = self.runtime / "s"
        folder.mkdir(mode=0o700, exist_ok=True)
        self._hand_over(folder)
        return folder

    def package(self, name: str, *siblings: str) -> Path:
        """The folder of an installed package, without importing it. Where the servers' user cannot reach it, a copy
        (with the `siblings` beside it that its programs load) in the runtime folder."""
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise StartError(f"the package {name} is not installed: run `make up`, or give the service's URL.")
        folder = Path(spec.submodule_search_locations[0])
        if self._reachable(folder):
            return folder
        stamp = hashlib.sha256(f"{folder}:{folder.stat().st_mtime_ns}".encode()).hexdigest()[:8]
        copy = self.runtime / f"{name}-{stamp}"
        if not copy.exists():
            new = copy.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            _copy((folder, *(folder.parent / sibling for sibling in siblings)), new)
            new.rename(copy)
        return copy / name

    def _hand_over(self, folder: Path) -> None:
        if self.account:
            os.chown(folder, self.account.uid, self.account.gid)

    def _reachable(self, folder: Path) -> bool:
        if self.account is None:
            return True
        test = ["/bin/sh", "-c", 'test -r "$0" && test -x "$0"', str(folder)]
        account = self.account
        done = subprocess.run(test, cwd="/", user=account.uid, group=account.gid, extra_groups=[], check=False)
        return done.returncode == 0

    def environment(self) -> dict[str, str]:
        """What every Python process of this home has in its environment beside what the person set."""
        threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
        return {
            "MEMSVC_HOME": str(self.root),
            "DJANGO_SETTINGS_MODULE": "memsvc.settings",
            "MEM0_DIR": str(self.root / "mem0"),
            "MEM0_TELEMETRY": "false",
            **dict.fromkeys(threads, "1"),
        }

    def remove_runtime(self) -> None:
        """Remove the runtime folder, once nothing runs."""
        shutil.rmtree(self.runtime, ignore_errors=True)
        del self.runtime

    def remove(self) -> None:
        """Remove this home. Only for private runs."""
        self.remove_runtime()
        shutil.rmtree(self.root, ignore_errors=True)


def _rank(name: str) -> int:
    """When to stop it: web, which asks the workers; workers and beat; the servers behind them all."""
    return 2 if name in SERVERS else int(name != "web")


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _copy(folders: Iterable[Path], target: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.copytree(folder, target / folder.name, symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
