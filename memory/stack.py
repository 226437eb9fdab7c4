"""The layers in read order, and the Mem0 behind them."""

from __future__ import annotations

import threading
from functools import cache as once
from functools import lru_cache
from typing import Any

from django.conf import settings

from memory.backends import gate
from memory.backends.base import Backend
from memory.backends.breaker import Guarded
from memory.backends.namespaced import Namespaced
from memory.layers.l0_process import ProcessLayer
from memory.layers.l2_results import ResultLayer
from memory.layers.l3_summaries import SummaryLayer
from memory.tenancy.projects import Policy

L0 = ProcessLayer()
L2 = ResultLayer()
L3 = SummaryLayer()
ANSWERS = (L0, L2, L3)

_building = threading.Lock()


def backend(policy: Policy) -> Namespaced:
    """L4 as this project sees it."""
    own = policy.upstream_url
    return Namespaced(_own(own, policy.upstream_key) if own else _origin(), policy.id, policy.namespace)


def origin() -> Backend:
    """Mem0 as it is, without any project: for checks and administration."""
    return _origin()


@lru_cache(maxsize=256)
def _own(url: str, key: str) -> Backend:
    from memory.backends.mem0_rest import of_project  # only the upstream in use is loaded

    return of_project(url, key)


def upstream() -> dict[str, Any]:
    """How calls to Mem0 stand, over all processes: the breaker (None in process), the gate, and what this process has
    left to try again with (None where it never does)."""
    behind = _origin()
    guarded = behind if isinstance(behind, Guarded) else None
    budget = getattr(guarded.backend, "budget", None) if guarded else None
    return {
        "breaker": guarded.state()["state"] if guarded else None,
        **gate.of(behind.name).state(),
        "retries_left": budget.left if budget else None,
    }


def _origin() -> Backend:
    with _building:
        return _build()


@once
def _build() -> Backend:
    if settings.MEM0_USE_REST_API and settings.MEM0_REST_API_KIND == "platform":
        from memory.backends import mem0_platform  # only the upstream in use is loaded

        return mem0_platform.connect()
    if settings.MEM0_USE_REST_API:
        from memory.backends import mem0_rest

        return mem0_rest.connect()
    from memory.backends.mem0_sdk import Mem0SDK  # heavy, and absent in REST mode

    return Mem0SDK()
