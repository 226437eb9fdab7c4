"""The worker: the real rebuild in a process of its own, a stretch of users at a time."""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Worker:
    """Its side of the pipe."""

    def __init__(self, pipe: Connection, process: Any) -> None:
        self._pipe = pipe
        self.pid: int = process.pid

    def ask(self, what: str, **more: Any) -> Any:
        """What the worker did, and how long that took it."""
        self._pipe.send((what, more))
        told = self._pipe.recv()
        if isinstance(told, Exception):
            raise told
        return told


@contextmanager
def started(users: int, page: int) -> Iterator[Worker]:
    """A worker over a Mem0 of so many users, of whom it looks at so many together: at the end of such a page nothing is
    under way."""
    from multiprocessing import get_context

    spawned = get_context("spawn")
    ours, theirs = spawned.Pipe()
    process = spawned.Process(target=_serve, args=(theirs, users, page))
    process.start()
    try:
        yield Worker(ours, process)
    finally:
        ours.send(("end", {}))
        process.join(30)


def _serve(pipe: Connection, users: int, page: int) -> None:
    import django

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # a line of log a user
    django.setup()
    from bench.warm.doubles import Personas, Words
    from cachewarm import rebuild
    from memory import embedders, stack
    from tests import data

    rebuild.PAGE_USERS = page
    personas = data.load("msc-personas.json.gz")
    mem0, embedder = Personas(personas, users), Words()
    embedder.read(text for sentences in personas for text in sentences)
    stack._build = lambda: mem0  # type: ignore[assignment]
    embedders.get = lambda: embedder  # type: ignore[assignment]
    rebuilding = Rebuilding([mem0, embedder])
    while (asked := pipe.recv())[0] != "end":
        try:
            told = getattr(rebuilding, asked[0])(**asked[1])
        except Exception as error:  # noqa: BLE001  (process border: told where it can be seen)
            told = RuntimeError("".join(traceback.format_exception(error)))
        pipe.send(told)


class Rebuilding:
    """One rebuild after the other, each as `manage.py rebuild` does it."""

    def __init__(self, doubles: Sequence[Any]) -> None:
        self._mem0, self._embedder = doubles
        self._run: Any = None
        self._progress: Iterator[Any] = iter(())

    def begin(self, full: bool) -> bool:
        """Begin a rebuild; whether it lists everybody."""
        from cachewarm import rebuild

        run, made = rebuild.begin("manual", full=full)
        work = rebuild.claim(run.pk)
        assert made
        assert work
        self._run, self._progress = work.run, rebuild.run_here(work)
        return bool(run.full)

    def work(self, until: int) -> dict[str, Any]:
        """Go on until so many users are done, or all are."""
        before = self._counts()
        began, cpu = time.perf_counter(), time.process_time()
        while self._run.done < until and next(self._progress, None) is not None:
            pass
        spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        after = self._counts()
        return {**spent, **{name: after[name] - before[name] for name in after}, **_memory()}

    def _counts(self) -> dict[str, Any]:
        return {
            "users": self._run.done,
            "unchanged": self._run.unchanged,
            "failed": self._run.failed,
            "calls": self._mem0.calls,
            "embedded": self._embedder.texts,
            "apart": self._mem0.seconds + self._embedder.seconds,
        }


def _memory() -> dict[str, int]:
    """Bytes that the process has in memory now, and had at most."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss": pages * resource.getpagesize(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
