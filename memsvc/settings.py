"""Every setting, from the environment and nowhere else, read once. Units are in the names.

`memory/checks.py` tests the combinations at start; `docs/configuration.md` lists them all.
"""

from __future__ import annotations

from pathlib import Path

from memsvc import env

BASE_DIR = Path(__file__).resolve().parent.parent

# -- the service ------------------------------------------------------------------------------------------------------
DEBUG = env.boolean("DEBUG", default=False)
# Signs admin sessions and keys the hashes of cached texts. `make up` makes one; elsewhere it has no default.
SECRET_KEY = env.secret("SECRET_KEY", "insecure-for-debug-only" if DEBUG else "")
# Always allowed: probes, and whoever is on this machine, ask by these names. No browser sends them for another's site.
LOCAL_HOSTS = "localhost,127.0.0.1,[::1]"
ALLOWED_HOSTS = [*env.words("ALLOWED_HOSTS", LOCAL_HOSTS), *LOCAL_HOSTS.split(",")]
CSRF_TRUSTED_ORIGINS = env.words("CSRF_TRUSTED_ORIGINS")
# Where `make up` keeps its data, and Mem0 in process its files.
MEMSVC_HOME = Path(env.text("MEMSVC_HOME", str(BASE_DIR / ".memsvc"))).expanduser().absolute()
PORT = env.integer("PORT", 8000, least=1, most=65535)
# The address web listens on; 0.0.0.0 for every one.
BIND_ADDRESS = env.text("BIND_ADDRESS", "127.0.0.1")
WEB_PROCESSES = env.integer("WEB_PROCESSES", 2, least=1)
# Threads of one web process; at most half of them, and never fewer than 16, may wait for Mem0 (PROTOCOL E).
WEB_THREADS = env.integer("WEB_THREADS", 96, least=2)
MAX_BODY_BYTES = env.integer("MAX_BODY_BYTES", 1 << 20, least=1024)
# Who may read /metrics: key (an admin's), loopback (also whoever asks on this machine, not by a proxy), open (anybody).
METRICS_ACCESS = env.text("METRICS_ACCESS", "loopback", choices=("key", "loopback", "open"))
LOG_LEVEL = env.text("LOG_LEVEL", "INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
# True behind a TLS proxy: secure cookies and HSTS.
HTTPS = env.boolean("HTTPS", default=False)

# -- stores -----------------------------------------------------------------------------------------------------------
DATABASE_CONNECTIONS = env.integer("DATABASE_CONNECTIONS", 8, least=2)
DATABASE_TIMEOUT_SECONDS = env.seconds("DATABASE_TIMEOUT_SECONDS", 3, least=0.1)
# Seconds one SQL statement may take; 0: no limit, as `make up` sets for migrations.
DATABASE_STATEMENT_TIMEOUT_SECONDS = env.seconds("DATABASE_STATEMENT_TIMEOUT_SECONDS", 30)
REDIS_URL = env.secret("REDIS_URL", "redis://localhost:6379/0")
REDIS_TIMEOUT_SECONDS = env.seconds("REDIS_TIMEOUT_SECONDS", 0.25, least=0.01)
BROKER_URL = env.secret("BROKER_URL", "redis://localhost:6380/0")
# Memory of the Valkey that `make up` starts for CACHE; it evicts what was used least recently.
EMBEDDED_CACHE_MB = env.integer("EMBEDDED_CACHE_MB", 256, least=16)

DATABASES = {
    "default": {
        "ENGINE": "memsvc.postgres",
        **env.database("DATABASE_URL", "postgresql://memsvc@localhost:5432/memsvc"),
        "CONN_MAX_AGE": 0,
        "DISABLE_SERVER_SIDE_CURSORS": True,
        "POOL_SIZE": DATABASE_CONNECTIONS,
        "POOL_TIMEOUT_SECONDS": DATABASE_TIMEOUT_SECONDS,
        "STATEMENT_TIMEOUT_SECONDS": DATABASE_STATEMENT_TIMEOUT_SECONDS,
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# -- Mem0 -------------------------------------------------------------------------------------------------------------
MEM0_USE_REST_API = env.boolean("MEM0_USE_REST_API", default=False)
# What answers there: Mem0's open-source server, or its hosted Platform.
MEM0_REST_API_KIND = env.text("MEM0_REST_API_KIND", "server", choices=("server", "platform"))
MEM0_REST_API_URL = env.text("MEM0_REST_API_URL")
MEM0_REST_API_KEY = env.secret("MEM0_REST_API_KEY")
# Certificates (PEM) that Mem0's own must come from; empty: those that browsers trust.
MEM0_REST_API_CA_FILE = env.text("MEM0_REST_API_CA_FILE")
# Hosts inside the network that a project's own upstream may be; public ones need no leave, link-local ones get none.
PROJECT_UPSTREAM_HOSTS = frozenset(host.lower() for host in env.words("PROJECT_UPSTREAM_HOSTS"))
# Seconds one call to Mem0 over REST may take.
MEM0_REST_API_TIMEOUT = env.seconds("MEM0_REST_API_TIMEOUT", 30, least=0.05)
# Seconds an extraction may take: an LLM is behind it.
MEM0_EXTRACT_TIMEOUT_SECONDS = env.seconds("MEM0_EXTRACT_TIMEOUT_SECONDS", 100, least=0.05)
# Seconds after its start for which an attempt of unknown outcome may still be running inside Mem0 (PROTOCOL A5).
MEM0_ADD_SETTLE_SECONDS = env.seconds("MEM0_ADD_SETTLE_SECONDS", 30)
MEM0_LOOK_TIMEOUT_SECONDS = env.seconds("MEM0_LOOK_TIMEOUT_SECONDS", 20, least=0.1)
MEM0_EXTRACT_SETTLE_SECONDS = env.seconds("MEM0_EXTRACT_SETTLE_SECONDS", 120)
# The circuit breaker opens after this many failures within the window, for a pause that doubles with each failed probe.
BREAKER_FAILURES = env.integer("BREAKER_FAILURES", 5, least=1)
BREAKER_WINDOW_SECONDS = env.seconds("BREAKER_WINDOW_SECONDS", 10, least=0.1)
BREAKER_OPEN_SECONDS = env.seconds("BREAKER_OPEN_SECONDS", 1, least=0.01)
BREAKER_OPEN_MAX_SECONDS = env.seconds("BREAKER_OPEN_MAX_SECONDS", 10, least=0.01)
# All processes together ask Mem0 at most so many times a second, and so many at a time; 0: no limit. After an outage
# both begin at a tenth and rise for so many seconds.
UPSTREAM_CALLS_PER_SECOND = env.integer("UPSTREAM_CALLS_PER_SECOND", 200)
UPSTREAM_CONCURRENCY = env.integer("UPSTREAM_CONCURRENCY", 64)
UPSTREAM_RAMP_SECONDS = env.seconds("UPSTREAM_RAMP_SECONDS", 10)
# Processes that share these limits evenly while CACHE is away; 0: those of one machine.
UPSTREAM_PROCESSES = env.integer("UPSTREAM_PROCESSES", 0)
# Calls to Mem0 over REST that may be made again, in hundredths of all.
UPSTREAM_RETRY_PERCENT = env.integer("UPSTREAM_RETRY_PERCENT", 10, most=100)
# Connections to PostgreSQL that one process's embedded Mem0 has of its own.
MEM0_CONNECTIONS = env.integer("MEM0_CONNECTIONS", 4, least=1)
MEM0_COLLECTION = env.text("MEM0_COLLECTION", "mem0_memories")
# An LLM for Mem0 in process to extract facts with; without one `extract` stores messages as they are.
OPENAI_API_KEY = env.secret("OPENAI_API_KEY")
OPENAI_BASE_URL = env.text("OPENAI_BASE_URL")
LLM_MODEL = env.text("LLM_MODEL", "gpt-4.1-mini")

# -- the embedder -----------------------------------------------------------------------------------------------------
# none: ranking by words. auto: local with Mem0 in process, else none.
EMBEDDER = env.text("EMBEDDER", "auto", choices=("auto", "local", "openai", "none"))
EMBEDDER_URL = env.text("EMBEDDER_URL", OPENAI_BASE_URL)
EMBEDDER_API_KEY = env.secret("EMBEDDER_API_KEY", OPENAI_API_KEY)
EMBEDDER_MODEL = env.text("EMBEDDER_MODEL", "text-embedding-3-small")
EMBEDDER_DIMENSIONS = env.integer("EMBEDDER_DIMENSIONS", 1536, least=2)
EMBEDDER_TIMEOUT_SECONDS = env.seconds("EMBEDDER_TIMEOUT_SECONDS", 10, least=0.05)
EMBEDDER_SYMMETRIC = env.boolean("EMBEDDER_SYMMETRIC", MEM0_USE_REST_API)
if EMBEDDER == "auto":
    EMBEDDER = "none" if MEM0_USE_REST_API else "local"

# -- the layers -------------------------------------------------------------------------------------------------------
L0_MAX_BYTES = env.integer("L0_MAX_BYTES", 32 << 20)
# Bytes of users' memories and vectors a process keeps to rank new questions with.
L3_PROCESS_BYTES = env.integer("L3_PROCESS_BYTES", 64 << 20)
L1_TTL_SECONDS = env.integer("L1_TTL_SECONDS", 3600, least=1)
L2_TTL_SECONDS = env.integer("L2_TTL_SECONDS", 86400, least=1)
# L3 keeps vectors of users who were active within this many days.
L3_ACTIVE_DAYS = env.integer("L3_ACTIVE_DAYS", 30, least=1)
# ... and anything at all, summaries too, of those active within this many.
L3_KEEP_DAYS = env.integer("L3_KEEP_DAYS", 180, least=1)
VERSION_LEASE_SECONDS = env.seconds("VERSION_LEASE_SECONDS", 30, least=0.1)
# The largest `max_age_ms` a request may ask for, and how long a floor may go unconfirmed (PROTOCOL B9).
BOUNDED_MAX_AGE_MS = env.integer("BOUNDED_MAX_AGE_MS", 5000)
EVENTUAL_MAX_STALE_SECONDS = env.seconds("EVENTUAL_MAX_STALE_SECONDS", 60)
# Policies of projects that set none of their own; auto: on and hybrid with Mem0 in process, else degraded and as Mem0.
LOCAL_SEARCH = env.text("LOCAL_SEARCH", "auto", choices=("auto", "off", "degraded", "on"))
LOCAL_RANKING = env.text("LOCAL_RANKING", "auto", choices=("auto", "like_upstream", "hybrid"))
if LOCAL_SEARCH == "auto":
    LOCAL_SEARCH = "degraded" if MEM0_USE_REST_API else "on"
if LOCAL_RANKING == "auto":
    LOCAL_RANKING = "like_upstream" if MEM0_USE_REST_API else "hybrid"

# -- short-term memory ------------------------------------------------------------------------------------------------
# A session ends this long after its last message.
STM_SESSION_HOURS = env.seconds("STM_SESSION_HOURS", 24, least=0.001)
# How long the memory that answers first waits for the other, in a search with a session.
STM_BUDGET_MS = env.integer("STM_BUDGET_MS", 300)
# A function that takes a text and returns its tokens, by its dotted path.
STM_TOKEN_COUNTER = env.text("STM_TOKEN_COUNTER", "memory.stm.tokens.estimate")
# An LLM to summarise older turns with, behind any OpenAI-compatible endpoint; without one their own sentences are used.
STM_LLM_URL = env.text("STM_LLM_URL")
STM_LLM_API_KEY = env.secret("STM_LLM_API_KEY", OPENAI_API_KEY)
STM_LLM_MODEL = env.text("STM_LLM_MODEL", LLM_MODEL)
STM_LLM_TIMEOUT_SECONDS = env.seconds("STM_LLM_TIMEOUT_SECONDS", 60, least=0.05)
# What a score gains, in hundredths: an item that both memories hold, and one that short-term memory alone holds.
MERGE_BOTH_PERCENT = env.integer("MERGE_BOTH_PERCENT", 15, most=100)
MERGE_STM_PERCENT = env.integer("MERGE_STM_PERCENT", 10, most=100)

# -- delivery ---------------------------------------------------------------------------------------------------------
LANE_LEASE_SECONDS = env.seconds("LANE_LEASE_SECONDS", 150, least=0.1)
LANE_SLICE_JOBS = env.integer("LANE_SLICE_JOBS", 20, least=1)
DELIVER_THREADS = env.integer("DELIVER_THREADS", 8, least=1)
SWEEP_SECONDS = env.seconds("SWEEP_SECONDS", 2, least=0.05)
RESEND_SECONDS = env.seconds("RESEND_SECONDS", 10, least=0.1)
JOB_ATTEMPTS = env.integer("JOB_ATTEMPTS", 10, least=1)
RETRY_SECONDS = env.seconds("RETRY_SECONDS", 1, least=0.01)
RETRY_MAX_SECONDS = env.seconds("RETRY_MAX_SECONDS", 60, least=0.01)
BACKLOG_MAX_JOBS = env.integer("BACKLOG_MAX_JOBS", 100_000, least=1)
BACKLOG_MAX_BYTES = env.integer("BACKLOG_MAX_BYTES", 1 << 30, least=1024)
IDEMPOTENCY_HOURS = env.integer("IDEMPOTENCY_HOURS", 24, least=1)
JOB_KEEP_DAYS = env.integer("JOB_KEEP_DAYS", 30, least=1)
EXTRACT_KEEP_DAYS = env.integer("EXTRACT_KEEP_DAYS", 7, least=1)

# -- warming ----------------------------------------------------------------------------------------------------------
# False: nothing is warmed by itself, neither after writes nor by beat; by hand it still works.
PROACTIVE_CACHE_ENABLED = env.boolean("PROACTIVE_CACHE_ENABLED", default=True)
WARM_THREADS = env.integer("WARM_THREADS", 4, least=1)
REBUILD_THREADS = env.integer("REBUILD_THREADS", 2, least=1)
# A burst of writes is warmed once: this long after its last write, at most WARM_MAX_WAIT_SECONDS after its first.
WARM_DEBOUNCE_SECONDS = env.seconds("WARM_DEBOUNCE_SECONDS", 0.3)
WARM_MAX_WAIT_SECONDS = env.seconds("WARM_MAX_WAIT_SECONDS", 5)
# Longer than any step: a thousand new texts take a loaded core two minutes to embed.
WARM_LEASE_SECONDS = env.seconds("WARM_LEASE_SECONDS", 300, least=1)
WARM_ATTEMPTS = env.integer("WARM_ATTEMPTS", 5, least=1)
WARM_SET_QUERIES = env.integer("WARM_SET_QUERIES", 20)
# Upstream searches one warm may make where local search does not answer: each saves one later at most (PROTOCOL C3).
WARM_UPSTREAM_BUDGET = env.integer("WARM_UPSTREAM_BUDGET", 4)
REBUILD_PERIOD_SECONDS = env.integer("REBUILD_PERIOD_SECONDS", 1800, least=1)
REBUILD_BATCH_USERS = env.integer("REBUILD_BATCH_USERS", 100, least=1)
REBUILD_CALLS_PER_SECOND = env.integer("REBUILD_CALLS_PER_SECOND", 50, least=1)
REBUILD_FULL_EVERY = env.integer("REBUILD_FULL_EVERY", 8, least=1)

# -- Django -----------------------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "memory",
    "cachewarm",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "memory.api.middleware.RequestContext",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "memsvc.urls"
WSGI_APPLICATION = "memsvc.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
# Django's own cache framework (log-in throttle, admin fragments); the layers use memory/redis_client.py.
CACHES = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "django",
        "OPTIONS": {
            "SERIALIZER": "django_redis.serializers.json.JSONSerializer",
            "SOCKET_CONNECT_TIMEOUT": REDIS_TIMEOUT_SECONDS,
            "SOCKET_TIMEOUT": REDIS_TIMEOUT_SECONDS,
            "IGNORE_EXCEPTIONS": True,
        },
    },
}
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("vi", "Tiếng Việt")]
LOCALE_PATHS = [BASE_DIR / "locale"]
FORMAT_MODULE_PATH = "memsvc.formats"
TIME_ZONE = "UTC"
USE_TZ = True
APPEND_SLASH = False
STATIC_URL = "/static/"
STATIC_ROOT = MEMSVC_HOME / "static"
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY_BYTES
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_HTTPONLY = True
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
X_FRAME_OPTIONS = "DENY"
# The TLS proxy redirects: inside the network Mem0 asks /v1/embeddings, and probes ask, without TLS. Subdomains and
# browsers' preload lists are decisions about a domain that is not ours.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W008", "security.W021"]

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["memory.tenancy.auth.KeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["memory.tenancy.auth.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["memory.api.encoding.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["memory.api.encoding.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "memory.api.encoding.OnlyRenderer",
    "URL_FORMAT_OVERRIDE": None,
    "EXCEPTION_HANDLER": "memory.api.problems.exception_handler",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "memsvc",
    "DESCRIPTION": "A memory service for AI assistants, in front of Mem0.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "ENUM_NAME_OVERRIDES": {"JobState": "memory.api.serializers.STATES"},
    "PREPROCESSING_HOOKS": ["memory.api.urls.tidy"],
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "memory.logs.JSONFormatter"}},
    "handlers": {"stderr": {"class": "memory.logs.Lines", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {name: {"level": LOG_LEVEL} for name in ("memory", "cachewarm", "memsvc")},
}
LOGGING_CONFIG = "logging.config.dictConfig"

# -- Celery -----------------------------------------------------------------------------------------------------------
# Redis hands a message out again after the visibility timeout: it must outlast the longest task.
CELERY_TASK_TIME_LIMIT_SECONDS = env.integer("CELERY_TASK_TIME_LIMIT_SECONDS", 900, least=1)
CELERY = {
    "broker_url": BROKER_URL,
    "broker_transport_options": {
        "visibility_timeout": CELERY_TASK_TIME_LIMIT_SECONDS * 2,
        "socket_connect_timeout": 0.1,
        "socket_timeout": 10,
        "socket_keepalive": True,
    },
    "broker_connection_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "task_ignore_result": True,
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_default_queue": "deliver",
    "task_create_missing_queues": True,
    "worker_prefetch_multiplier": 1,
    "worker_hijack_root_logger": False,
    "worker_send_task_events": False,
    "task_send_sent_event": False,
    "timezone": "UTC",
    "beat_scheduler": "django_celery_beat.schedulers:DatabaseScheduler",
    "beat_max_loop_interval": 5,
    "task_routes": {
        "memory.keep_session": {"queue": "warm"},  # it may wait for an LLM: no delivery stands behind it
        "memory.*": {"queue": "deliver"},
        "cachewarm.warm_*": {"queue": "warm"},
        "cachewarm.run_*": {"queue": "rebuild"},
        "cachewarm.rebuild_*": {"queue": "rebuild"},
    },
}
