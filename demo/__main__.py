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
        """Wait until every job is done; Refused when one fails."""
        waiting, deadline = list(jobs), time.monotonic() + WAIT_SECONDS
        while waiting:
            for job in list(waiting):
                told = self.get(f"/jobs/{job}/status")
                if told["status"] == "failed":
                    raise Refused(f"Job {job} failed: {told['error'] or told['reason']}")
                if told["status"] == "completed":
                    waiting.remove(job)
                    done()
            if waiting and time.monotonic() > deadline:
                raise Refused(f"{len(waiting)} writes are not done after {WAIT_SECONDS} s. Are the workers running?")
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
    """Everyone's facts and conversation, accepted at once, with a bar for what Mem0 has."""
    jobs = []
    for person in everyone:
        jobs.append(memsvc.add(person, person.facts)["job_id"])
        talk = memsvc.post("/memory/extract", user_id=person.user_id, messages=person.conversation)
        jobs.append(talk["job_id"])
    facts = sum(len(person.facts) for person in everyone)
    with _bar() as progress:
        task = progress.add_task(f"storing {facts} facts and {len(everyone)} conversations", total=len(jobs))
        memsvc.finish(jobs, lambda: progress.advance(task))


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
    """What Mem0 and the embedder were spared in this run, by the service's own counters."""
    searches = {layer: n - before["searches"].get(layer, 0) for layer, n in after["searches"].items()}
    asked, total = _grown(before, after, "upstream_calls", "search"), sum(searches.values())
    hits, computed = (_grown(before, after, "embeddings", outcome) for outcome in ("hit", "computed"))
    table = Table(title="Calls saved", title_justify="left", show_header=False)
    table.add_row("searches answered", f"{total}  ({', '.join(f'{layer} {n}' for layer, n in searches.items() if n)})")
    table.add_row("searches Mem0 was asked", str(asked))
    table.add_row("[bold]searches Mem0 was spared[/]", f"[bold]{total - asked}[/]")
    table.add_row("vectors computed", str(computed))
    table.add_row("vectors found in L1", str(hits))
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
