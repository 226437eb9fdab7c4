"""How far local ranking agrees with Mem0's own search: LoCoMo dev, the same memories and vectors on both sides, ours
as L3 keeps them.

    python -m bench.agreement            all samples: about three minutes, most of it embedding
    python -m bench.agreement conv-26    one

With --url and --key it is Mem0's server at that address, which is told to embed through a service of this run: it must
be one that may be changed.
"""

from __future__ import annotations

import argparse
import math
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import django

from memsvc.embedded.home import Home
from memsvc.embedded.services import Services
from tests.live import Live
from tests.real_mem0 import RealMem0

TOP, BATCH = 10, 50


@dataclass(frozen=True)
class Figures:
    """Means over questions. `recall` and `ndcg` are (Mem0's, ours); `milliseconds` is ours, without the embedding."""

    questions: int
    overlap: float
    same_first: float
    recall: tuple[float, float]
    ndcg: tuple[float, float]
    milliseconds: float


def recall(found: Sequence[int], relevant: frozenset[int]) -> float:
    """The share of the relevant facts that were found."""
    return len(relevant & set(found)) / len(relevant)


def ndcg(found: Sequence[int], relevant: frozenset[int]) -> float:
    """Normalised discounted cumulative gain of the first TOP."""
    gained = sum(1 / math.log2(place + 2) for place, index in enumerate(found[:TOP]) if index in relevant)
    return gained / sum(1 / math.log2(place + 2) for place in range(min(TOP, len(relevant))))


def measure(sample: object, project: int = 0) -> Figures:
    """Store a sample's facts in the real Mem0, ask both sides every question, remove them again."""
    from memory import embedders, rank, stack
    from memory.clock import Deadline
    from memory.layers import l3_rows
    from memory.layers.l1_vectors import CachedEmbedder
    from memory.types import Query, Scope
    from tests.data import Sample

    assert isinstance(sample, Sample)
    mem0, scope = stack.origin(), Scope(project, user_id=f"agreement-{sample.id}")
    made = embedders.get()
    assert made is not None
    embedder = CachedEmbedder(made, project)
    mem0.delete_all(scope, Deadline.after(60))
    batches = [sample.facts[start : start + BATCH] for start in range(0, len(sample.facts), BATCH)]
    stored = [row for batch in batches for row in mem0.add(scope, batch, {}, None, Deadline.after(60))]
    try:
        places = {row.id: place for place, row in enumerate(stored)}
        kept = l3_rows.loosen(l3_rows.keep(embedder.embed(sample.facts, "passage")))
        rows = rank.Rows(sample.facts, kept)
        totals = [0.0] * 7
        for question in sample.questions:
            theirs = [places[m.id] for m in mem0.search(Query(scope, question.text, TOP), Deadline.after(60))]
            (vector,) = embedder.embed([question.text], "search")
            began = time.perf_counter()
            ours = [index for index, _ in rank.like_upstream(question.text, vector, rows, TOP)]
            spent = time.perf_counter() - began
            one = (
                len(set(theirs) & set(ours)) / max(len(theirs), len(ours), 1),
                float(theirs[:1] == ours[:1]),
                recall(theirs, question.relevant),
                recall(ours, question.relevant),
                ndcg(theirs, question.relevant),
                ndcg(ours, question.relevant),
                spent * 1000,
            )
            totals = [total + value for total, value in zip(totals, one, strict=True)]
    finally:
        mem0.delete_all(scope, Deadline.after(60))
    count = len(sample.questions)
    mean = [total / count for total in totals]
    return Figures(count, mean[0], mean[1], (mean[2], mean[3]), (mean[4], mean[5]), mean[6])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="*")
    parser.add_argument("--url")
    parser.add_argument("--key", default="")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memsvc-bench-") as folder, upstream(Path(folder), given.url, given.key):
        django.setup()
        compare(given.samples)


@contextmanager
def upstream(folder: Path, url: str | None, key: str) -> Iterator[None]:
    """Settings for Mem0 in process on a PostgreSQL of this run, or for the server at `url`, which then embeds through a
    service of this run."""
    servers = Services(Home(folder / "servers"), cache_mb=64, durable=False)
    for server in servers.every.values():
        server.start()
    live = None
    try:
        own = {name: server.url for name, server in servers.every.items()}
        own |= {"SECRET_KEY": secrets.token_hex(32), "MEM0_DIR": str(folder / "mem0"), "EMBEDDER": "local"}
        if url:
            own |= {"MEM0_USE_REST_API": "true", "MEM0_REST_API_URL": url, "MEM0_REST_API_KEY": key}
            live = Live(folder / "service", servers=servers, **own).up()
            RealMem0(url, key).embed_through(live.url, live.key)
        os.environ.update(own, DJANGO_SETTINGS_MODULE="memsvc.settings")
        yield
    finally:
        if live:
            live.remove()
        for server in servers.every.values():
            server.stop()


def compare(names: Sequence[str]) -> None:
    """One line a sample, and one for all."""
    from tests import data

    print(f"{'sample':>8} {'questions':>9} {'overlap@10':>10} {'same 1st':>8}  R@10 Mem0/ours  NDCG@10 Mem0/ours  ms")
    figures = []
    for sample in data.locomo():
        if not names or sample.id in names:
            figures.append(measure(sample))
            _print(sample.id, figures[-1])
    if len(figures) > 1:
        _print("all", _joined(figures))


def _joined(figures: Sequence[Figures]) -> Figures:
    count = sum(one.questions for one in figures)

    def mean(values: Sequence[float]) -> float:
        return sum(value * one.questions for value, one in zip(values, figures, strict=True)) / count

    return Figures(
        count,
        mean([one.overlap for one in figures]),
        mean([one.same_first for one in figures]),
        (mean([one.recall[0] for one in figures]), mean([one.recall[1] for one in figures])),
        (mean([one.ndcg[0] for one in figures]), mean([one.ndcg[1] for one in figures])),
        mean([one.milliseconds for one in figures]),
    )


def _print(name: str, one: Figures) -> None:
    pairs = "  ".join(f"{theirs:.4f} / {ours:.4f}" for theirs, ours in (one.recall, one.ndcg))
    print(
        f"{name:>8} {one.questions:>9} {one.overlap:>10.4f} {one.same_first:>8.4f}  {pairs}  {one.milliseconds:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
