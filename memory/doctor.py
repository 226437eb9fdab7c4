"""What `manage.py doctor` looks at: each part by itself, so that one that is down hides no other."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from django.conf import settings
from django.core.checks import ERROR, CheckMessage, run_checks
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from memory import checks, clock, db, embedders, stack, watchdog
from memory.clock import Deadline
from memory.redis_client import cache

State = Literal["ok", "look", "fail"]

PATIENCE_SECONDS = 40.0
"""A part that hangs is given up after this long; the first use of Mem0 in process and of an embedder loads them."""
MEM0_SECONDS = 30.0
SKEW_LOOK_SECONDS = 1.0
SKEW_FAIL_SECONDS = 5.0
POSTGRESQL = 140000
REDIS = (6, 2)
UNASKED = "memory.W025"
PACKAGES = ("django", "celery", "redis", "psycopg2-binary", "mem0ai")


@dataclass(frozen=True, slots=True)
class Finding:
    """How one part is, and what mends it."""

    part: str
    state: State
    said: str
    mend: str = ""


def examine(patience: float = PATIENCE_SECONDS) -> Iterator[Finding]:
    """Every part in turn. Nothing is raised, whatever is down."""
    parts: Sequence[tuple[str, Callable[[], Iterator[Finding]], str]] = (
        ("settings", _settings, "See docs/configuration.md."),
        ("versions", _versions, ""),
        ("PostgreSQL", _postgresql, "Start it, or set DATABASE_URL to where it is."),
        ("pgvector", _pgvector, "Start PostgreSQL first."),
        ("CACHE", _cache, "Start a Redis or Valkey, or set REDIS_URL to where it is."),
        ("roles", _roles, "Start CACHE and BROKER first."),
        ("Mem0", _mem0, "Start it, or set MEM0_REST_API_URL and MEM0_REST_API_KEY; in process it needs PostgreSQL."),
        ("embedder", _embedder, "See EMBEDDER in docs/configuration.md; EMBEDDER=none ranks by words."),
        ("clocks", _clocks, "Start PostgreSQL and CACHE first."),
        ("work", _work, "Start PostgreSQL and apply the migrations first."),
    )
    for part, ask, mend in parts:
        yield from _asked(part, ask, mend, patience)


def _asked(part: str, ask: Callable[[], Iterator[Finding]], mend: str, patience: float) -> list[Finding]:
    """What a part says; in a thread of its own, so that what hangs is given up."""
    found: list[Finding] = []

    def run() -> None:
        try:
            found.extend(ask())
        except Exception as error:  # noqa: BLE001  whatever a part raises, the others are still told
            found.append(Finding(part, "fail", _first_line(error), mend))
        finally:
            db.release()

    thread = threading.Thread(target=run, name=f"doctor-{part}", daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive():
        return [Finding(part, "fail", f"does not answer within {patience:g} s", mend)]
    return [replace(one, mend=mend) if one.state == "fail" and not one.mend else one for one in found]


def _settings() -> Iterator[Finding]:
    told = [*_of_checks("settings", run_checks())]
    yield from told or [Finding("settings", "ok", "hold together; no pickle anywhere")]


def _versions() -> Iterator[Finding]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    yield Finding("versions", "ok", ", ".join([f"Python {platform.python_version()}", *found]))


def _postgresql() -> Iterator[Finding]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version'), pg_is_in_recovery()")
        said, replica = cursor.fetchone()
        cursor.execute("SELECT current_setting('server_version_num')::int")
        (number,) = cursor.fetchone()
    if replica:
        yield Finding("PostgreSQL", "fail", f"{said} is a replica", "DATABASE_URL has to lead to the primary.")
    elif number < POSTGRESQL:
        yield Finding("PostgreSQL", "fail", f"{said} is too old", f"Version {POSTGRESQL // 10000} or later.")
    else:
        yield Finding("PostgreSQL", "ok", said)
    executor = MigrationExecutor(connection)
    missing = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    if missing:
        yield Finding("migrations", "fail", f"{missing} are not applied", "`manage.py setup`.")
    else:
        yield Finding("migrations", "ok", "applied")


def _pgvector() -> Iterator[Finding]:
    if settings.MEM0_USE_REST_API:
        yield Finding("pgvector", "ok", "not needed: Mem0 is reached over REST")
        return
    if told := [*_of_checks("pgvector", checks.pgvector())]:
        yield from told
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        row = cursor.fetchone()
    yield Finding("pgvector", "ok", row[0] if row else "available; made with Mem0's first memory")


def _cache() -> Iterator[Finding]:
    info: Any = cache().info()
    said = f"{info['redis_version']}, {info['used_memory']} of {info['maxmemory'] or 'unlimited'} bytes used"
    if tuple(int(part) for part in info["redis_version"].split(".")[:2]) < REDIS:
        yield Finding("CACHE", "fail", f"{said}: too old", f"Redis {REDIS[0]}.{REDIS[1]} or later, or Valkey.")
    else:
        yield Finding("CACHE", "ok", said)


def _roles() -> Iterator[Finding]:
    told = [*_of_checks("roles", checks.redis_servers())]
    yield from told or [Finding("roles", "ok", "CACHE evicts, BROKER does not, and they are two servers")]


def _mem0() -> Iterator[Finding]:
    told = [*_of_checks("Mem0", checks.mem0_server())]
    if told:
        yield from told
        return
    found = stack.origin().check(Deadline.after(MEM0_SECONDS))
    yield Finding("Mem0", "ok", ", ".join(f"{name} {value}" for name, value in found.items()))


def _embedder() -> Iterator[Finding]:
    embedder = embedders.get()
    if embedder is None:
        yield Finding("embedder", "ok", "none: ranking by words")
        return
    (vector,) = embedder.embed(["doctor"], "search")
    if len(vector) != embedder.dimensions:
        said = f"{embedder.name} makes {len(vector)} dimensions, not {embedder.dimensions}"
        yield Finding("embedder", "fail", said, "Set EMBEDDER_DIMENSIONS to what the model makes.")
    else:
        yield Finding("embedder", "ok", f"{embedder.name}, {embedder.dimensions} dimensions")


def _clocks() -> Iterator[Finding]:
    """This host's clock against PostgreSQL's and CACHE's: ages, expiry and heartbeats go by theirs."""
    began = clock.wall().timestamp()
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        (postgresql,) = cursor.fetchone()
    between = clock.wall().timestamp()
    seconds, micros = cache().time()
    ended = clock.wall().timestamp()
    # What a round trip took is no skew.
    skews = {
        "PostgreSQL": _outside(postgresql, began, between),
        "CACHE": _outside(seconds + micros / 1e6, between, ended),
    }
    said = ", ".join(f"{name} {skew:+.3f} s" for name, skew in skews.items())
    worst = max(map(abs, skews.values()))
    state: State = "fail" if worst > SKEW_FAIL_SECONDS else "look" if worst > SKEW_LOOK_SECONDS else "ok"
    yield Finding("clocks", state, said, "" if state == "ok" else "Run NTP (chrony, systemd-timesyncd) on every host.")


def _work() -> Iterator[Finding]:
    for one in watchdog.read().findings:
        if one.level != "ok":
            look, call, meaning = watchdog.THRESHOLDS[one.name]
            bound = call if one.level == "call" else look
            mend = _MENDS.get(one.name, "See docs/metrics.md.")
            state: State = "fail" if one.level == "call" else "look"
            yield Finding(one.name, state, f"{one.value:g} (from {bound:g}). {meaning}", mend)
    yield Finding("work", "ok", "asked the watchdog")


_MENDS = {
    "oldest_pending_seconds": "Is Mem0 up? The admin's jobs page says what each write waits for.",
    "unattended_seconds": "Start a worker of the queue `deliver`.",
    "erase_seconds": "The admin's erasures say what each waits for.",
    "reconcile_late_seconds": "Start a worker of the queue `deliver`.",
    "failed_jobs": "Retry or dismiss them in the admin.",
    "missing_workers": "Start workers of `deliver`, `warm` and `rebuild`.",
    "sweep_seconds": "Start beat, or a worker of the queue `deliver`.",
    "breaker_open": "Mem0 fails: look at its own log.",
}


def _of_checks(part: str, told: Sequence[CheckMessage] | Iterator[CheckMessage]) -> Iterator[Finding]:
    for message in told:
        fails = message.level >= ERROR or message.id == UNASKED
        yield Finding(part, "fail" if fails else "look", message.msg, message.hint or "")


def _outside(moment: float, began: float, ended: float) -> float:
    """How far a moment lies outside an interval; 0 inside."""
    return min(0.0, moment - began) + max(0.0, moment - ended)


def _first_line(error: Exception) -> str:
    """A driver's message names hosts and ports, and no secret; what follows its first line is detail."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
