"""`python -m memsvc.embedded test`: pytest on real servers that live for one run and belong to it alone."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from memsvc.embedded.home import Home
from memsvc.embedded.services import Services

PREFIX = "memsvc-test-"
CACHE_MB = 128
SERVICE = ("tests/service", "tests/clients")
# What a developer's shell may hold and the tests must not see.
CLEARED = {"OPENAI_API_KEY", "OPENAI_BASE_URL", "PORT", "DEBUG", "SECRET_KEY"}


def run(arguments: Sequence[str]) -> int:
    """Run pytest with these arguments, or all tests; returns its exit status."""
    _remove_abandoned()
    signal.signal(signal.SIGTERM, _end)
    return _alone(arguments) if arguments else _halves()


def _halves() -> int:
    """All tests, as two runs side by side, told one after the other: those of services wait more than they work."""
    with tempfile.TemporaryFile("w+") as told:
        command = [sys.executable, "-m", "memsvc.embedded", "test", "--", *SERVICE]
        other = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT)
        try:
            status = _alone([f"--ignore={folder}" for folder in SERVICE])
            return max(status, _waited(other))
        finally:
            other.terminate()
            other.wait()
            told.seek(0)
            print(told.read(), flush=True)


def _alone(arguments: Sequence[str]) -> int:
    home = Home(Path(tempfile.mkdtemp(prefix=PREFIX)))
    home.acquire()
    try:
        services = Services(home, cache_mb=CACHE_MB, durable=False)
        for server in services.every.values():
            server.start()
        env = {name: value for name, value in os.environ.items() if name.removesuffix("_FILE") not in CLEARED}
        env |= {name: server.url for name, server in services.every.items()}
        return _pytest(arguments, {**env, **home.environment(), "SECRET_KEY": secrets.token_hex(32)})
    finally:
        _remove(home)


def _pytest(arguments: Sequence[str], env: Mapping[str, str]) -> int:
    return _waited(subprocess.Popen([sys.executable, "-m", "pytest", *arguments], env=env))


def _waited(child: subprocess.Popen[bytes]) -> int:
    """Its exit status. Ctrl-C reaches pytest by itself, which ends tidily; only its ending is waited for here."""
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue
        except SystemExit:
            child.terminate()
            child.wait()
            raise


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _remove_abandoned() -> None:
    """Stop and remove what test runs killed with -9 have left."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/lock"):
        if lock.stat().st_uid == os.geteuid() and (home := Home(lock.parent)).try_acquire():
            _remove(home)


def _remove(home: Home) -> None:
    """A run's home, and first the homes that its tests made inside it."""
    for run in list(home.root.glob("*/**/run")):
        inner = Home(run.parent)
        inner.acquire()  # from a supervisor that has outlived its test
        inner.stop_leftovers()
        inner.remove()
    home.stop_leftovers()
    home.remove()
