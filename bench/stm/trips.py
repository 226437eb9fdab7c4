"""How many times a cached search waits for Redis, without a session and with one."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

from redis.connection import AbstractConnection

from memory import delivery, stack, write
from memory import recall as service
from memory.clock import Deadline
from memory.redis_wire import Wire
from memory.stm import search, store
from memory.stm.store import Said
from memory.tenancy.projects import policy
from memory.types import Query, Scope
from memory.write import Write


def measure(project: int) -> dict[str, int]:
    """Round trips of one search each: answered by the process, and by CACHE after the process has forgotten."""
    scope, rules = Scope(project, "ann"), policy(project)
    facts = {"memories": [{"text": "I drink tea"}]}
    delivery.deliver(write.accept(Write("add", scope, facts), rules).job.lane_id)
    store.add("s", "ann", [Said("user", "I drink cocoa", {})], rules)

    def ask(session: str | None) -> None:
        service.search(Query(scope, "drink?"), rules, Deadline.after(10), session_id=session)

    def forget() -> None:
        stack.L0.held.clear()
        search.forget()

    ask(None)
    ask("s")
    figures = {"LTM, process": made(lambda: ask(None)), "STM and LTM, process": made(lambda: ask("s"))}
    forget()
    figures["LTM, CACHE"] = made(lambda: ask(None))
    forget()
    return figures | {"STM and LTM, CACHE": made(lambda: ask("s"))}


def made(work: Callable[[], object]) -> int:
    """How many packets of commands are sent, by redis-py or by the wire beside it; each is waited for."""
    send, wire = AbstractConnection.send_packed_command, Wire.send
    with (
        mock.patch.object(AbstractConnection, "send_packed_command", autospec=True, side_effect=send) as sent,
        mock.patch.object(Wire, "send", autospec=True, side_effect=wire) as asked,
    ):
        work()
    return sent.call_count + asked.call_count


def show(figures: dict[str, int]) -> list[tuple[str, bool]]:
    """Print the table; what was to hold, and whether it did."""
    for name, count in figures.items():
        print(f"{name:>24} {count}")
    return [
        (f"with a session no more, answered by {where}", figures[f"STM and LTM, {where}"] <= figures[f"LTM, {where}"])
        for where in ("process", "CACHE")
    ]
