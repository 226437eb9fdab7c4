"""Log-ins to the admin, throttled: who guesses passwords is let guess few."""

from __future__ import annotations

import hashlib
from typing import Any

from django.contrib.admin.forms import AdminAuthenticationForm
from django.core.cache import cache
from django.core.exceptions import ValidationError

WINDOW_SECONDS = 15 * 60
MOST_FOR_A_NAME = 5
MOST_FROM_AN_ADDRESS = 50
"""More than for one name: behind a proxy everyone comes from one address."""


class ThrottledLogin(AdminAuthenticationForm):
    """Refuses unread what comes after too many failures, for a name from one address or from that address at all.

    Counted in CACHE: while that is away nothing is, and the length of passwords has to do.
    """

    def clean(self) -> dict[str, Any]:
        """See the form it extends."""
        limits = self._limits()
        counts = cache.get_many(limits)
        if any(int(counts.get(name, 0)) >= most for name, most in limits.items()):
            minutes = WINDOW_SECONDS // 60
            raise ValidationError(f"Too many failed attempts. Try again in {minutes} minutes.", code="throttled")
        try:
            cleaned: dict[str, Any] = super().clean()
        except ValidationError:
            for name in limits:
                _count(name)
            raise
        cache.delete(next(iter(limits)))  # the name's; what came from the address besides still counts
        return cleaned

    def _limits(self) -> dict[str, int]:
        """What is counted, and how much of it is let pass."""
        address = self.request.META.get("REMOTE_ADDR", "") if self.request is not None else ""
        who = f"{address}\n{self.cleaned_data.get('username', '')}"
        return {_name("name", who): MOST_FOR_A_NAME, _name("address", address): MOST_FROM_AN_ADDRESS}


def _name(kind: str, of: str) -> str:
    return f"login:{kind}:{hashlib.sha256(of.encode()).hexdigest()}"


def _count(name: str) -> None:
    cache.add(name, 0, WINDOW_SECONDS)
    try:
        cache.incr(name)
    except ValueError:  # it ran out, or was evicted, meanwhile
        return
