"""API keys: 256 random bits, shown once, kept as SHA-256, known to each process for a second at a time.

A request asks PostgreSQL about a key only when this process has not asked within FRESH_SECONDS, so that a revocation is
effective everywhere within that time. While PostgreSQL is away a key seen within GRACE_SECONDS stays good.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import Error as DatabaseError
from django.db.models import Q
from django.db.models.functions import Now
from django.dispatch import receiver

from memory import clock, signals
from memory.errors import DatabaseUnavailable
from memory.models import ApiKey, Project

SCOPES = ("read", "write", "admin")
FRESH_SECONDS = 1.0
GRACE_SECONDS = 300.0
USED_EVERY_SECONDS = 60.0
MAX_KNOWN = 10_000
MAX_UNKNOWN = 1_000

_MARK = "msk_"
_PREFIX_CHARACTERS = 8
_SECRET_LENGTH = len(_MARK) + _PREFIX_CHARACTERS + 43


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request this is and what it may do; `user_id` is set for a key that serves one user alone."""

    key: int
    project: int
    scopes: frozenset[str]
    user_id: str | None = None
    requests_per_minute: int | None = None


@dataclass(slots=True)
class _Seen:
    caller: Caller
    confirmed_at: float
    asked_at: float


_known: dict[bytes, _Seen] = {}
_unknown: dict[bytes, float] = {}
_used: dict[int, float] = {}
_unsaved: set[int] = set()
_lock = threading.Lock()
_asking = threading.Lock()
_away_until = 0.0


def create(
    project: Project,
    *,
    name: str,
    scopes: Iterable[str],
    user_id: str = "",
    requests_per_minute: int | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is not kept. ValueError for no scope or an unknown one."""
    wanted = set(scopes)
    if not wanted or not wanted <= set(SCOPES):
        raise ValueError(f"scopes are of {', '.join(SCOPES)}")
    prefix = f"{_MARK}{secrets.token_hex(_PREFIX_CHARACTERS // 2)}"
    secret = prefix + secrets.token_urlsafe(32)
    key = ApiKey.objects.create(
        project=project,
        name=name,
        prefix=prefix,
        digest=_digest(secret).hex(),
        scopes=",".join(scope for scope in SCOPES if scope in wanted),
        user_id=user_id,
        requests_per_minute=requests_per_minute,
        expires_at=expires_at,
    )
    return key, secret


def authenticate(secret: str) -> Caller | None:
    """Who calls with this secret; None for a key that is unknown, revoked or expired. DatabaseUnavailable when it
    cannot be told."""
    if not secret.startswith(_MARK) or len(secret) != _SECRET_LENGTH:
        return None
    digest = _digest(secret)
    seen = _known.get(digest)
    if seen is None or clock.now() - seen.asked_at >= FRESH_SECONDS:
        if clock.now() - _unknown.get(digest, -FRESH_SECONDS) < FRESH_SECONDS:
            return None
        seen = _ask(digest)
    if seen is None:
        return None
    _note_use(seen.caller.key)
    return seen.caller


def known(secret: str) -> Caller | None:
    """Who calls with this secret, where `authenticate` would not have to ask; None otherwise."""
    seen = _known.get(_digest(secret))
    if seen is None or clock.now() - seen.asked_at >= FRESH_SECONDS:
        return None
    _note_use(seen.caller.key)
    return seen.caller


def forget() -> None:
    """Ask about every key again at its next use."""
    global _away_until
    with _lock:
        _known.clear()
        _unknown.clear()
        _used.clear()
        _unsaved.clear()
        _away_until = 0.0


@receiver(signals.ticked)
def save_last_used(**_: Any) -> None:
    """Write when keys were last used, each at most once in USED_EVERY_SECONDS; the upkeep does it, no request."""
    with _lock:
        due = list(_unsaved)
        _unsaved.clear()
    if due:
        ApiKey.objects.filter(pk__in=due).update(last_used_at=Now())


def _ask(digest: bytes) -> _Seen | None:
    # One question at a time: a hundred requests on one stale entry are one query, not a hundred.
    with _asking:
        seen = _known.get(digest)
        asked = clock.now()
        if seen is not None and asked - seen.asked_at < FRESH_SECONDS:
            return seen
        try:
            caller = _read(digest)
        except DatabaseUnavailable:
            if seen is None or asked - seen.confirmed_at >= GRACE_SECONDS:
                raise
            seen.asked_at = clock.now()
            return seen
        return _keep(digest, caller, asked)


def _read(digest: bytes) -> Caller | None:
    global _away_until
    if clock.now() < _away_until:
        raise DatabaseUnavailable("the key cannot be checked")
    try:
        return _select(digest)
    except DatabaseError as error:
        # The next requests, which wait for this one, must not each wait for PostgreSQL again.
        _away_until = clock.now() + FRESH_SECONDS
        raise DatabaseUnavailable("the key cannot be checked") from error


def _select(digest: bytes) -> Caller | None:
    valid = Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=Now()))
    wanted = ("pk", "project_id", "scopes", "user_id", "requests_per_minute")
    row = ApiKey.objects.filter(valid, digest=digest.hex()).values_list(*wanted).first()
    if row is None:
        return None
    key, project, scopes, user_id, limit = row
    return Caller(key, project, frozenset(scope.strip() for scope in scopes.split(",")), user_id or None, limit)


def _keep(digest: bytes, caller: Caller | None, asked: float) -> _Seen | None:
    with _lock:
        if caller is None:
            _known.pop(digest, None)
            if len(_unknown) >= MAX_UNKNOWN:
                _unknown.clear()
            _unknown[digest] = asked
            return None
        if len(_known) >= MAX_KNOWN and digest not in _known:
            _known.clear()
        _known[digest] = seen = _Seen(caller, asked, asked)
        return seen


def _note_use(key: int) -> None:
    now = clock.now()
    if now - _used.get(key, -USED_EVERY_SECONDS) >= USED_EVERY_SECONDS:
        with _lock:
            _used[key] = now
            _unsaved.add(key)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
