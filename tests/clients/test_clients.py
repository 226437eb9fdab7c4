"""Mem0's own clients, unchanged, against a running service in all their methods.

The lists in docs/compatibility.md are made from what they say.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.clients import environments, table
from tests.live import ROOT, Live

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent
_PROJECT = """
from memory.models import Project
from memory.tenancy import keys, projects
project = Project(name={name!r}, slug={name!r})
projects.save(project)
print(keys.create(project, name="clients", scopes=keys.SCOPES)[1])
"""

Run = Callable[[Sequence[str | Path]], list[dict[str, str]]]


@pytest.fixture
def key(live: Live) -> str:
    """The key of a project that is this test's alone: a client's reset empties it."""
    urls = {name: server.url for name, server in live.servers.every.items()} if live.servers else {}
    variables = {**os.environ, **urls, **live._env, "MEMSVC_HOME": str(live.home)}
    made = subprocess.run(
        [sys.executable, "manage.py", "shell", "-v0", "-c", _PROJECT.format(name=f"c-{secrets.token_hex(4)}")],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.split()[-1]


def run(words: Sequence[str | Path]) -> list[dict[str, str]]:
    """What a client's script says."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def judge(client: str, told: list[dict[str, str]]) -> None:
    """Every method did as docs/compatibility.md says; `make conformance` writes it there instead."""
    broken = [one for one in told if one["outcome"] == "broken"]
    assert not broken, json.dumps(broken, indent=1)
    table.keep(client, told)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("client", list(environments.PYTHON))
def test_a_python_client_works_in_all_its_methods(live, key, client, mode):
    interpreter = _interpreter(client)
    judge(f"{client} {mode}", run([interpreter, HERE / "python_client.py", mode, live.url, key]))


def test_the_npm_client_works_in_all_its_methods(live, key):
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node here; CI has it")
    if not (environments.npm() / "node_modules" / "mem0ai").exists():
        pytest.skip("npm's client is not installed: make conformance")
    judge(f"npm {environments.NPM}", run([node, HERE / "node_client.mjs", environments.npm(), live.url, key]))


def _interpreter(client: str) -> Path:
    """This one has the client that Mem0 in process comes from; others have their own."""
    if client == "mem0ai 2.2.1":
        pytest.importorskip("mem0", reason="mem0ai is not installed: make conformance")
        return Path(sys.executable)
    if not (interpreter := environments.python(client)).exists():
        pytest.skip(f"{client} is not installed: make conformance")
    return interpreter
