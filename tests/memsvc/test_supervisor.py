"""What `make up` tells, and what it outlives: a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg2
import pytest

from memsvc.embedded import process, supervisor
from memsvc.embedded.home import Home
from memsvc.embedded.process import Process, StartError
from memsvc.embedded.supervisor import Kept, Supervisor

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(*args: object, **options: object) -> object:
    raise FULL


@pytest.fixture
def sleeper(tmp_path: Path) -> Process:
    return Process(tmp_path, "sleeper", [sys.executable, "-c", "import time; time.sleep(60)"])


def fails_at_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "start_time", full)  # called by the child alone, before it is the program


def fails_at_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", full)


@pytest.mark.parametrize("fails", [fails_at_its_record, fails_at_its_folder])
def test_a_process_without_room_for_its_record_is_not_started_and_leaves_none(sleeper, monkeypatch, fails):
    fails(monkeypatch)
    with pytest.raises(StartError, match="sleeper cannot be started"):
        sleeper.start()
    assert not list(sleeper.home.glob("run/*.pid"))


@pytest.mark.parametrize(
    "error", [StartError("no"), FULL, psycopg2.OperationalError("no"), subprocess.SubprocessError("no")]
)
def test_what_cannot_be_started_again_is_tried_later_and_later(sleeper, monkeypatch, error):
    def fail() -> None:
        raise error

    monkeypatch.setattr(sleeper, "start", fail)
    kept, up = Kept(sleeper, 0.0), Supervisor()
    pauses = []
    for now in (100.0, 200.0, 300.0):
        kept.retry_at = now
        up._start_again(kept, now)
        pauses.append(kept.retry_at - now)
    assert pauses == [1, 2, 4]
    monkeypatch.undo()
    try:
        up._start_again(kept, 400.0)
        assert (kept.retry_at, sleeper.exited()) == (0, None)
    finally:
        sleeper.stop()


def test_logs_that_have_grown_keep_one_older_part(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "LOG_MAX_BYTES", 3)
    (tmp_path / "web.log").write_text("long")
    (tmp_path / "beat.log").write_text("not")
    supervisor._rotate(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "web.log": "",
        "web.log.1": "long",
        "beat.log": "not",
    }


def test_logs_are_cut_on_a_full_disk_too(tmp_path, monkeypatch):
    def half(source: Path, target: Path) -> None:
        target.write_text("lo")
        raise FULL

    monkeypatch.setattr(supervisor, "LOG_MAX_BYTES", 3)
    monkeypatch.setattr(shutil, "copyfile", half)
    for name in ("web.log", "beat.log"):
        (tmp_path / name).write_text("long")
    supervisor._rotate(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"web.log": "", "beat.log": ""}


def test_what_cannot_be_said_ends_nothing(monkeypatch):
    monkeypatch.setattr("builtins.print", full)
    supervisor.say("anything")


@pytest.mark.parametrize("terminal", [True, False])
def test_secrets_are_shown_at_a_terminal_and_kept_in_no_journal(tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    secrets = {"first-key": "mk-of-the-first-project", "admin-password": "of-the-admin"}
    for name, secret in secrets.items():
        (tmp_path / name).write_text(f"{secret}\n")
    up = Supervisor()
    up._home = Home(tmp_path)
    up._tell()
    told = capsys.readouterr().out
    assert all((secret in told) is terminal for secret in secrets.values())
    assert all((str(tmp_path / name) in told) is not terminal for name in secrets)
    sent = told.partition('-H "')[2].partition('"')[0]
    shown = subprocess.run(["/bin/sh", "-c", f'echo "{sent}"'], capture_output=True, text=True, check=True).stdout
    assert shown == "Authorization: Bearer mk-of-the-first-project\n"
