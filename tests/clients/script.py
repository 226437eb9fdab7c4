"""What the scripts of clients and packages share: each method's outcome is one line of JSON.

Whoever imports it has an interpreter with a client, and perhaps nothing else: standard library only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def tell(method: str, outcome: str, detail: str = "") -> None:
    """One line of the result."""
    print(json.dumps({"method": method, "outcome": outcome, "detail": detail}), flush=True)


def works(method: str, use: Callable[[], Any]) -> Any:
    """A method that does what it is for: `use` asserts it."""
    try:
        answer = use()
    except Exception as error:  # noqa: BLE001  whatever a client raises is the result
        told = f"{type(error).__name__}: {str(error)[:300]}"
        # 1.x fails in its own telemetry after some calls that were answered well.
        tell(method, "fails" if "capture_client_event" in told else "broken", told)
        return None
    tell(method, "works")
    return answer


def refused(method: str, use: Callable[[], Any]) -> None:
    """A method that memsvc does not offer: the client raises, and the message is ours."""
    try:
        use()
    except Exception as error:  # noqa: BLE001
        told = f"{type(error).__name__}: {error}"
        tell(method, "refused" if "memsvc does not offer" in told or "501" in told else "broken", told[:300])
    else:
        tell(method, "broken", "it was not refused")


def require(met: object, told: object = "") -> None:
    """AssertionError unless so."""
    if not met:
        raise AssertionError(str(told)[:300])


def eventually(found: Callable[[], Any]) -> Any:
    """The first truthy value of `found` within 30 s."""
    end = time.monotonic() + 30
    while not (value := found()):
        require(time.monotonic() < end, "not within 30 s")
        time.sleep(0.05)
    return value
