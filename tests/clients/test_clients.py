"""Mem0's own clients in all their methods, and packages around them, unchanged, against a running service.

With Mem0 in process, and over REST: before the stand-in, or before a real server where MEM0_REAL_URL and MEM0_REAL_KEY
name one. What they say is kept in results.json, which the tables of docs/compatibility.md are made from.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from memsvc.embedded.home import Home
from memsvc.embedded.services import Services
from tests.clients import environments, table
from tests.live import ROOT, Live

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent
_PROJECTS = """
import secrets
from memory.models import Project
from memory.tenancy import keys, projects
for _ in range({count}):
    project = Project(name="clients", slug=f"c-{{secrets.token_hex(4)}}")
    projects.save(project)
    print(keys.create(project, name="clients", scopes=keys.SCOPES)[1])
"""


@pytest.fixture(scope="module", params=table.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """How memsvc reaches Mem0."""
    if request.param == "over REST" and not os.environ.get(table.WRITE):
        pytest.skip("clients run over REST with: make conformance")
    return str(request.param)


@pytest.fixture(scope="module")
def service(backend: str, request: pytest.FixtureRequest, home: Path) -> Iterator[Live]:
    """memsvc, ready, over that Mem0."""
    if backend == "in process":
        live: Live = request.getfixturevalue("_live")
        live.mend()
        yield live
        return
    url, key = os.environ.get("MEM0_REAL_URL"), os.environ.get("MEM0_REAL_KEY", "")
    if url is None:
        server = request.getfixturevalue("mem0_server")
        url, key = server.url, server.key
    upstream = {"MEM0_USE_REST_API": "true", "MEM0_REST_API_URL": url, "MEM0_REST_API_KEY": key}
    servers = Services(Home(home / "rest" / "servers"), cache_mb=64, durable=False)
    live = Live(home / "rest", servers=servers, **upstream)
    yield live.up()
    live.remove()
    for server in servers.every.values():
        server.stop()


@pytest.fixture(scope="module")
def keys(service: Live) -> list[str]:
    """Keys of new projects, one for each test: a client's reset empties its project."""
    assert service.servers
    urls = {name: server.url for name, server in service.servers.every.items()}
    variables = {**os.environ, **urls, **service._env, "MEMSVC_HOME": str(service.home)}
    shell = [sys.executable, "manage.py", "shell", "-v0", "-c", _PROJECTS.format(count=20)]
    return subprocess.run(shell, cwd=ROOT, env=variables, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture
def key(keys: list[str]) -> str:
    """The key of a project that is this test's alone."""
    return keys.pop()


def judge(client: str, backend: str, words: Sequence[str | Path]) -> None:
    """Every method did as docs/compatibility.md says; `make conformance` writes it there instead."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    broken = [one for one in told if one["outcome"] == "broken"]
    assert not broken, json.dumps(broken, indent=1)
    table.keep(client, backend, told)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("client", list(environments.PYTHON))
def test_a_python_client_works_in_all_its_methods(service, backend, key, client, mode):
    # This interpreter has the client that Mem0 in process comes from.
    own = client == environments.CURRENT and not environments.python(client).exists()
    interpreter = Path(sys.executable) if own else _interpreter(client)
    judge(f"{client} {mode}", backend, [interpreter, "-m", "tests.clients.python_client", mode, service.url, key])


@pytest.mark.parametrize("package", list(environments.PACKAGES))
def test_a_package_from_pypi_works_as_published(service, backend, key, package):
    interpreter = _interpreter(environments.CURRENT)
    command = [interpreter.with_name("mem0")] if package == "mem0-cli" else []
    words = [interpreter, "-m", "tests.clients.integrations", package, service.url, key, *command]
    judge(f"PyPI {package} {environments.PACKAGES[package]}", backend, words)


def test_the_npm_client_works_in_all_its_methods(service, backend, key):
    judge(f"npm {environments.NPM}", backend, [_node(), HERE / "node_client.mjs", environments.npm(), service.url, key])


@pytest.mark.parametrize("package", list(environments.NPM_PACKAGES))
def test_a_package_from_npm_works_as_published(service, backend, key, package):
    node = _node()
    if package == "@mem0/cli":
        command = environments.npm() / "node_modules" / ".bin" / "mem0"
        words = [sys.executable, "-m", "tests.clients.integrations", package, service.url, key, command]
    else:
        words = [node, HERE / "node_vercel.mjs", environments.npm(), service.url, key]
    judge(f"npm {package} {environments.NPM_PACKAGES[package]}", backend, words)


def test_the_page_shows_the_results():
    shown = table.PAGE.read_text(encoding="utf-8").partition(table.BEGIN)[2].partition(table.END)[0]
    assert shown == table.tables(table.results())


def _interpreter(client: str) -> Path:
    interpreter = environments.python(client)
    if not environments.ready(interpreter.parents[1]):
        pytest.skip(f"{client} is not installed: make conformance")
    return interpreter


def _node() -> Path:
    if (node := shutil.which("node")) is None:
        pytest.skip("there is no Node here")
    if not environments.ready(environments.npm()):
        pytest.skip("npm's client is not installed: make conformance")
    return Path(node)
