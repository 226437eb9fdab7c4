"""`make demo`: people, their facts and their questions against a running memsvc, and what each answer cost.

MEMSVC_URL says where it is (http://localhost:8000), MEMSVC_KEY or MEMSVC_HOME/first-key who asks. Each run has users of
its own, so runs do not disturb one another.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

WAIT_SECONDS = 600
EXTRACT_SECONDS = 60
"""An LLM may be slow, or not be there at all; what is accepted is not lost by not waiting for it."""
POLL_SECONDS = 0.2
FLOWS = 4
"""People whose writes are timed in each of the two flows."""

console = Console(width=None if sys.stdout.isatty() else 140)


class Refused(Exception):
    """The service is not there or will not; the message is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Person:
    """One of demo/people.json, as a user of this run."""

    user_id: str
    name: str
    facts: list[str]
    conversation: list[dict[str, str]]
    questions: list[str]
    change: dict[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its answer, with the milliseconds seen from here."""

    name: str
    question: str
    layer: str
    ms: float
    top: str
    upstream_calls: int


class Memsvc:
    """The service over HTTP."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {key}"

    def get(self, path: str) -> dict[str, Any]:
        """An answer's body."""
        return self._send("GET", path)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """An answer's body."""
        return self._send("POST", path, body)

    def add(self, person: Person, facts: list[str], wait: str = "none") -> dict[str, Any]:
        """Facts as they are."""
        return self.post("/memory/add", user_id=person.user_id, memories=facts, wait=wait, timeout_ms=55_000)

    def ask(self, person: Person, question: str, **wish: Any) -> Asked:
        """A question of this person's memories."""
        began = time.perf_counter()
        answer = self.post("/memory/search", user_id=person.user_id, query=question, top_k=5, **wish)
        ms = (time.perf_counter() - began) * 1000
        top = answer["results"][0]["memory"] if answer["results"] else "(nothing)"
        return Asked(person.name, question, answer["meta"]["layer"], ms, top, answer["meta"]["upstream_calls"])

    def finish(self, jobs: Iterable[str], done: Callable[[], None] = lambda: None) -> None:
        """Wait until every job is done; Refused when one fails or takes too long."""
        told = self.follow(jobs, WAIT_SECONDS, done)
        for job in told:
            if job["status"] == "failed":
                raise Refused(f"Job {job['job_id']} failed: {job['error'] or job['reason']}")
        if left := sum(job["status"] != "completed" for job in told):
            raise Refused(f"{left} writes are not done after {WAIT_SECONDS} s. Are the workers and Mem0 running?")

    def follow(self, jobs: Iterable[str], seconds: float, done: Callable[[], None]) -> list[dict[str, Any]]:
        """The jobs as they stand when all have ended, or after so many seconds."""
        waiting, ended, deadline = list(jobs), [], time.monotonic() + seconds
        while True:
            told = [self.get(f"/jobs/{job}/status") for job in waiting]
            over = [job for job in told if job["status"] in ("completed", "failed")]
            ended += over
            waiting = [job["job_id"] for job in told if job not in over]
            for _ in over:
                done()
            if not waiting or time.monotonic() > deadline:
                return ended + [job for job in told if job not in over]
            time.sleep(POLL_SECONDS)

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self._session.request(method, f"{self._url}/api/v1{path}", json=body, timeout=90)
        except requests.RequestException as error:
            raise Refused(f"{self._url} stopped answering: {type(error).__name__}.") from None
        if answer.status_code == requests.codes.unauthorized:
            raise Refused(f"{self._url} does not know this key. Set MEMSVC_KEY to one of its own.")
        if not answer.ok:
            raise Refused(f"{method} {path} was answered {answer.status_code}: {answer.text[:500]}")
        told: dict[str, Any] = answer.json()
        return told


def main() -> None:
    """The whole demo."""
    url = os.environ.get("MEMSVC_URL") or "http://localhost:8000"
    check(url)
    memsvc = Memsvc(url, _key())
    before = memsvc.get("/stats")
    everyone = people()
    store(memsvc, everyone)
    warm(memsvc, everyone)
    asked = {title: list(asking) for title, asking in questions(memsvc, everyone)}
    console.print(answers(asked))
    console.print(flows(memsvc, everyone[:FLOWS]))
    console.print(saved(before, memsvc.get("/stats")))
    console.print(converse(memsvc, everyone))


def check(url: str) -> None:
    """Refused when the service is not there or not ready."""
    try:
        ready = requests.get(f"{url.rstrip('/')}/readyz", timeout=10)
    except requests.RequestException:
        raise Refused(f"Nothing answers at {url}. Start it with `make up`, or set MEMSVC_URL.") from None
    if not ready.ok:
        raise Refused(f"memsvc at {url} is not ready: /readyz says {ready.status_code}. Try again in a moment.")


def people() -> list[Person]:
    """Everyone in the data set, under ids of this run."""
    run = time.strftime("%Y%m%d-%H%M%S")
    told = json.loads((Path(__file__).parent / "people.json").read_text(encoding="utf-8"))["people"]
    fields = ("name", "facts", "conversation", "questions", "change")
    return [Person(f"demo-{run}-{one['user_id']}", **{name: one[name] for name in fields}) for one in told]


def store(memsvc: Memsvc, everyone: list[Person]) -> None:
    """Everyone's facts, accepted at once, with a bar for what Mem0 has."""
    jobs = [_job(memsvc.add(person, person.facts)) for person in everyone]
    with _bar() as progress:
        task = progress.add_task(f"storing {sum(len(person.facts) for person in everyone)} facts", total=len(jobs))
        memsvc.finish(jobs, lambda: progress.advance(task))


def converse(memsvc: Memsvc, everyone: list[Person]) -> str:
    """Everyone's conversation, out of which Mem0 finds facts; what came of it."""
    jobs = [
        _job(memsvc.post("/memory/extract", user_id=person.user_id, messages=person.conversation))
        for person in everyone
    ]
    with _bar() as progress:
        task = progress.add_task(f"extracting from {len(jobs)} conversations", total=len(jobs))
        told = memsvc.follow(jobs, EXTRACT_SECONDS, lambda: progress.advance(task))
    facts = sum(len(job["results"]) for job in told if job["status"] == "completed")
    waiting = [job for job in told if job["status"] not in ("completed", "failed")]
    left = f"; {len(waiting)} still wait: has Mem0 an LLM that answers?" if waiting else ""
    return f"{len(jobs) - len(waiting)} conversations done, {facts} memories out of them{left}\n"


def warm(memsvc: Memsvc, everyone: list[Person]) -> None:
    """Warm everyone by hand, so that nothing is left to the schedule."""
    runs = [memsvc.post(f"/users/{person.user_id}/warm")["run_id"] for person in everyone]
    with _bar() as progress:
        task, deadline = progress.add_task("warming", total=len(runs)), time.monotonic() + WAIT_SECONDS
        while runs and time.monotonic() < deadline:
            running = [run for run in runs if memsvc.get(f"/warms/{run}")["ended_at"] is None]
            progress.advance(task, len(runs) - len(running))
            runs = running
            time.sleep(POLL_SECONDS)


def questions(memsvc: Memsvc, everyone: list[Person]) -> Iterator[tuple[str, Iterator[Asked]]]:
    """The groups of questions, each with what it shows."""
    yield "cold: asked of Mem0", (memsvc.ask(one, one.questions[0], consistency="fresh") for one in everyone)
    yield "warm: never asked before", (memsvc.ask(one, one.questions[1]) for one in everyone)
    yield "warm: asked again", (memsvc.ask(one, question) for one in everyone for question in one.questions)
    yield "just after a write", (_after_a_write(memsvc, one) for one in everyone)


def answers(asked: dict[str, list[Asked]]) -> Table:
    """Every question: when, of whom, from which layer, how fast, what came first."""
    table = Table(title="Questions", title_justify="left")
    table.add_column("who", no_wrap=True, min_width=14)
    table.add_column("question", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("layer", no_wrap=True, min_width=5)
    table.add_column("ms", no_wrap=True, min_width=7, justify="right")
    table.add_column("top answer", no_wrap=True, overflow="ellipsis", ratio=4)
    for title, group in asked.items():
        median = statistics.median(one.ms for one in group)
        table.add_row("", f"[bold]{title}[/]", "", f"[bold]{median:.1f}[/]", "[bold]median[/]")
        for one in group:
            table.add_row(one.name, one.question, one.layer, f"{one.ms:.1f}", one.top)
        table.add_section()
    return table


def flows(memsvc: Memsvc, everyone: list[Person]) -> Table:
    """Flow A answers when the write is safe, Flow B when the caches are warm as well."""
    table = Table(title="The two flows of a write (medians, ms)", title_justify="left")
    table.add_column()
    for heading in ("the write is answered after", "Mem0 has it after", "the next question takes", "from layer"):
        table.add_column(heading, justify="right")
    for title, wait in (("A  wait=none", "none"), ("B  wait=warm", "warm")):
        rows = [_flow(memsvc, person, wait) for person in everyone]
        columns = [f"{statistics.median(times):.1f}" for times in zip(*(times for times, _ in rows), strict=True)]
        layers = Counter(layer for _, layer in rows)
        table.add_row(title, *columns, ", ".join(f"{layer} x {n}" for layer, n in sorted(layers.items())))
    return table


def saved(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """What Mem0 and the embedder were spared in this run, and what warming asked ahead, by the service's counters."""
    searches = {layer: n - before["searches"].get(layer, 0) for layer, n in after["searches"].items()}
    total, asked = sum(searches.values()), searches.get("L4", 0)
    ahead = max(0, _grown(before, after, "upstream_calls", "search") - asked)
    hits, computed = (_grown(before, after, "embeddings", outcome) for outcome in ("hit", "computed"))
    table = Table(title="Calls saved", title_justify="left", show_header=False)
    table.add_row("searches answered", f"{total}  ({', '.join(f'{layer} {n}' for layer, n in searches.items() if n)})")
    table.add_row("[bold]searches of Mem0 saved[/]", f"[bold]{total - asked}[/]")
    table.add_row("searches of Mem0 made ahead, by warms", str(ahead))
    table.add_row("vectors found in L1", str(hits))
    table.add_row("vectors computed", str(computed))
    return table


def _after_a_write(memsvc: Memsvc, person: Person) -> Asked:
    memsvc.finish([_job(memsvc.add(person, [person.change["fact"]], "stored"))])
    return memsvc.ask(person, person.change["question"])


def _flow(memsvc: Memsvc, person: Person, wait: str) -> tuple[tuple[float, float, float], str]:
    """Milliseconds until the answer, until Mem0 has the fact, and of the next question; and that one's layer."""
    began = time.perf_counter()
    told = memsvc.add(person, [f"{person.name}: note of {time.strftime('%H:%M:%S')}, flow {wait}."], wait)
    answered = (time.perf_counter() - began) * 1000
    memsvc.finish([_job(told)])
    stored = answered if told["status"] == "completed" else (time.perf_counter() - began) * 1000
    asked = memsvc.ask(person, person.questions[0])
    return (answered, stored, asked.ms), asked.layer


def _job(told: dict[str, Any]) -> str:
    return str(told["job_id"])


def _grown(before: dict[str, Any], after: dict[str, Any], counter: str, label: str) -> int:
    return int(after[counter].get(label, 0) - before[counter].get(label, 0))


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def _key() -> str:
    if key := os.environ.get("MEMSVC_KEY", "").strip():
        return key
    file = Path(os.environ.get("MEMSVC_HOME") or ".memsvc").expanduser() / "first-key"
    try:
        return file.read_text().strip()
    except OSError:
        raise Refused(f"There is no key in {file}. Set MEMSVC_KEY, or start the service with `make up`.") from None


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        sys.exit(f"demo: {refused}")
    except KeyboardInterrupt:
        sys.exit(130)
