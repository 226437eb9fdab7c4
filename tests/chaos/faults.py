"""What goes wrong: each fault is begun and mended, and says what it did and to whom."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from memsvc.embedded import process
from tests.chaos.history import now
from tests.chaos.proxy import Trouble
from tests.chaos.world import SMALL, World
from tests.fake_mem0 import Fault as Mem0Fault
from tests.live import process_kill

PARTS = ("web", "worker-deliver", "worker-warm", "worker-rebuild", "beat")
SERVERS = ("postgres", "cache", "broker")
LINKS = ("postgres", "cache", "broker", "mem0")
LEASES = {
    "worker-deliver": SMALL["LANE_LEASE_SECONDS"],
    "worker-warm": SMALL["WARM_LEASE_SECONDS"],
    "worker-rebuild": SMALL["WARM_LEASE_SECONDS"],
}
"""How long what a part holds stays its own while it stands still."""
PAST_LEASE = "SIGSTOP past its lease"
WRITES, READS = ("add", "update", "delete", "delete_all"), ("search", "list", "get")


@dataclass
class Planned:
    """A fault of a run: its name, when it begins and how long it lasts, in seconds."""

    name: str
    begins: float
    lasts: float
    begin: Callable[[World], str]
    end: Callable[[World], None]


def plan(chance: random.Random, seconds: float) -> list[Planned]:
    """One to three faults of different victims, all over before `seconds` but for those that outlast a lease."""
    made: dict[str, Planned] = {}
    for _ in range(chance.randint(1, 3)):
        name, begin, end = chance.choice(_KINDS)(chance)
        begins = chance.uniform(0.3, seconds / 2)
        lasts = chance.uniform(0.5, seconds - begins - 0.2)
        victim = name.rpartition(" ")[2]
        if name.startswith(PAST_LEASE):
            begins, lasts = begins / 3, LEASES[victim] + 0.5
        made.setdefault(victim, Planned(name, begins, lasts, begin, end))
    return list(made.values())


def play(world: World, planned: list[Planned]) -> list[str]:
    """All of them, at their times; a line for each thing done."""
    start = now()

    def one(fault: Planned) -> str:
        time.sleep(fault.begins)
        moment = now() - start
        try:
            said = fault.begin(world)
            time.sleep(fault.lasts)
        finally:
            fault.end(world)
        return f"{moment:.2f} s, for {fault.lasts:.2f} s: {fault.name} ({said})"

    with ThreadPoolExecutor(len(planned)) as pool:
        return sorted(pool.map(one, planned))


def _signal(pid: int, number: signal.Signals) -> None:
    """To a server and its children: PostgreSQL's are no part of its session."""
    children = [int(entry.name) for entry in process.PROC.glob("[0-9]*") if process.parent(int(entry.name)) == pid]
    for each in (pid, *children):
        process_kill(each, number)


Made = tuple[str, Callable[[World], str], Callable[[World], None]]


def _nothing(world: World) -> None:
    return


def _kill_part(chance: random.Random) -> Made:
    name = chance.choice(PARTS)

    def begin(world: World) -> str:
        record = world.live.records().get(name)
        if record is None:
            return "was down already"
        world.live.kill(name)
        return f"pid {record.pid}"

    return f"kill -9 {name}", begin, _nothing


def _kill_one_web_process(chance: random.Random) -> Made:
    def begin(world: World) -> str:
        record = world.live.records().get("web")
        pids = [pid for pid in record.session(world.live.home) if pid != record.pid] if record else []
        if not pids:
            return "was down already"
        pid = chance.choice(pids)
        process_kill(pid)
        return f"pid {pid}"

    return "kill -9 one process of web", begin, _nothing


def _pause_part(chance: random.Random) -> Made:
    return _paused("SIGSTOP", chance.choice(PARTS))


def _outlast_lease(chance: random.Random) -> Made:
    return _paused(PAST_LEASE, chance.choice(list(LEASES)))


def _paused(how: str, name: str) -> Made:
    def begin(world: World) -> str:
        record = world.live.records().get(name)
        if record:
            world.live.signal(name, signal.SIGSTOP)
        return f"pid {record.pid}" if record else "was down already"

    def end(world: World) -> None:
        if name in world.live.records():
            world.live.signal(name, signal.SIGCONT)

    return f"{how} {name}", begin, end


def _kill_server(chance: random.Random) -> Made:
    name = chance.choice(SERVERS)

    def begin(world: World) -> str:
        pid = getattr(world.servers, name).process.record.pid
        _signal(pid, signal.SIGKILL)
        return f"pid {pid}"

    def end(world: World) -> None:
        server = getattr(world.servers, name)
        server.process.stop()
        server.start()

    return f"kill -9 {name}", begin, end


def _pause_server(chance: random.Random) -> Made:
    name = chance.choice(SERVERS)

    def begin(world: World) -> str:
        pid: int = getattr(world.servers, name).process.record.pid
        _signal(pid, signal.SIGSTOP)
        return f"pid {pid}"

    def end(world: World) -> None:
        _signal(getattr(world.servers, name).process.record.pid, signal.SIGCONT)

    return f"SIGSTOP {name}", begin, end


def _kill_mem0(chance: random.Random) -> Made:
    def begin(world: World) -> str:
        world.mem0.stop(kill=True)
        return "killed"

    return "kill -9 mem0", begin, lambda world: world.mem0.start()


def _mem0_fails(chance: random.Random) -> Made:
    fault = Mem0Fault(
        chance.choice(("stall", "delay", "drop", "status", "cut")),
        chance.choice((WRITES, READS, WRITES + READS)),
        chance.choice(("before", "after")),
        seconds=chance.uniform(0.2, 3.0),
        status=chance.choice((500, 502, 503, 429)),
        times=chance.choice((-1, 1, 3)),
    )

    def begin(world: World) -> str:
        world.mem0.fault(fault)
        return f"{fault.how} {fault.when} {'/'.join(fault.kinds)}"

    return "trouble in mem0", begin, lambda world: world.mem0.fault()


def _flush(chance: random.Random) -> Made:
    name = chance.choice(("cache", "cache", "broker"))

    def begin(world: World) -> str:
        world.redis(name).flushall()
        return "emptied"

    return f"FLUSHALL {name}", begin, _nothing


def _trouble(chance: random.Random) -> Made:
    name = chance.choice(LINKS)
    trouble = Trouble(
        chance.choice(("latency", "reset", "black_hole", "cut")), chance.choice((0.5, 1.0)), chance.uniform(0.05, 0.5)
    )

    def begin(world: World) -> str:
        world.proxies[name].begin(trouble)
        return f"{trouble.kind}, {trouble.share:.0%} of the connections"

    return f"the way to {name}", begin, lambda world: world.proxies[name].heal()


_KINDS: tuple[Callable[[random.Random], Made], ...] = (
    _kill_part,
    _kill_one_web_process,
    _pause_part,
    _outlast_lease,
    _kill_server,
    _pause_server,
    _kill_mem0,
    _mem0_fails,
    _mem0_fails,
    _flush,
    _trouble,
    _trouble,
)
