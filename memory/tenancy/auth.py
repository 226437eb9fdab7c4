"""Who may do what: `Authorization: Bearer KEY`, `Authorization: Token KEY` and `X-API-Key: KEY` are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied, Throttled
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from memory import logs
from memory.tenancy import keys, limits
from memory.tenancy.keys import Caller

if TYPE_CHECKING:
    from rest_framework.views import APIView  # which imports this module

SCHEMES = frozenset({"bearer", "token"})
ANY_SCOPE = "any"
"""The scope of a route that every good key may use."""
STANDING = "memsvc.standing"
"""How a key stands after a request that was counted already; no header can have this name."""


class MissingScope(PermissionDenied):
    """The key has not the scope this route needs."""

    default_code = "missing_scope"


class KeyBound(PermissionDenied):
    """The key serves one user, and the request is about another or about none."""

    default_code = "key_bound"
    default_detail = "This key serves one user alone; the request must name that user_id."


class KeyAuthentication(BaseAuthentication):
    """Finds the caller by key; `request.auth` and `request.user` are a `Caller`."""

    def authenticate(self, request: Request) -> tuple[Caller, Caller] | None:
        """The caller, None without a key, AuthenticationFailed for a key that is not good."""
        secret = secret_of(request.META)
        if secret is None:
            return None
        caller = keys.authenticate(secret)
        if caller is None:
            raise AuthenticationFailed("The API key is unknown, revoked or expired.")
        request._request.caller = caller  # type: ignore[attr-defined]
        logs.note(project=caller.project)
        _limit(request, caller)
        return caller, caller

    def authenticate_header(self, request: Request) -> str:
        """What a 401 asks for."""
        return 'Bearer realm="memsvc"'


class HasScope(BasePermission):
    """Asks for the view's `scope`, or else `read` for safe methods and `write` for the others."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """True, or MissingScope; False without a key, which DRF answers with 401."""
        caller = request.auth
        if not isinstance(caller, Caller):
            return False
        needed = getattr(view, "scope", None) or ("read" if request.method in SAFE_METHODS else "write")
        if needed != ANY_SCOPE and needed not in caller.scopes:
            raise MissingScope(f"This key has not the scope '{needed}'.")
        return True


def admit(caller: Caller, user_id: str | None) -> None:
    """Let a request about this user pass, or raise KeyBound; None stands for a request about no user in particular."""
    if caller.user_id is not None and caller.user_id != user_id:
        raise KeyBound
    if user_id is not None:
        logs.note(user_id=user_id)


def may_see(caller: Caller, user_id: str | None) -> bool:
    """Whether a thing of this user exists for the caller; if not, it is answered like an unknown one."""
    return caller.user_id is None or caller.user_id == user_id


def _limit(request: Request, caller: Caller) -> None:
    """Count the request against its key's limit; Throttled beyond it. Refused requests count as well."""
    if caller.requests_per_minute is None:
        return
    # The hot path may have counted it before it left the request to Django.
    standing = request.META.get(STANDING) or limits.take(caller.key, caller.requests_per_minute)
    request._request.rate = standing  # type: ignore[attr-defined]
    if standing.wait:
        raise Throttled(wait=standing.wait)


def secret_of(environ: Mapping[str, Any]) -> str | None:
    """The key that a request's headers carry, if any. AuthenticationFailed for another scheme."""
    scheme, _, secret = environ.get("HTTP_AUTHORIZATION", "").strip().partition(" ")
    if scheme:
        if scheme.lower() not in SCHEMES:
            raise AuthenticationFailed("Authorization must be 'Bearer KEY' or 'Token KEY'.")
        return str(secret).strip()
    header: Any = environ.get("HTTP_X_API_KEY")
    return None if header is None else str(header).strip()
