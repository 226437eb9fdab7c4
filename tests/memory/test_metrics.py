"""Metrics: declared once, documented, cheap to say, and the same however they are said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.conf import settings

from memory import metrics, watchdog

ROW = re.compile(r"^\| `(?P<name>[a-z0-9_]+)` \| (?P<rest>.+) \|$", re.MULTILINE)


@pytest.fixture(autouse=True)
def empty():
    metrics.drain()
    yield
    metrics.drain()


def documented() -> dict[str, list[str]]:
    page = (Path(settings.BASE_DIR) / "docs" / "metrics.md").read_text(encoding="utf-8")
    return {row["name"]: row["rest"].split(" | ") for row in ROW.finditer(page)}


def test_the_page_lists_every_metric_with_its_labels_and_meaning():
    told = documented()
    every = {f"memsvc_{name}_total": what for name, what in metrics.DECLARED.items()}
    every |= {f"memsvc_{name}": what for name, what in (metrics.TIMED | metrics.GAUGES).items()}
    assert {name: row for name, row in told.items() if name.startswith("memsvc_")} == {
        name: [", ".join(f"`{label}`" for label in labels), meaning] for name, (labels, meaning) in every.items()
    }


def test_the_page_lists_every_threshold():
    told = {name: row for name, row in documented().items() if not name.startswith("memsvc_")}
    assert told == {
        name: [f"{look:g}", "never" if call == watchdog.NEVER else f"{call:g}", meaning]
        for name, (look, call, meaning) in watchdog.THRESHOLDS.items()
    }


def test_no_metric_is_declared_twice():
    names = [*metrics.DECLARED, *metrics.TIMED, *metrics.GAUGES]
    assert len(names) == len(set(names))


def test_no_label_can_hold_an_id_or_a_text():
    labels = {label for labels, _ in (metrics.DECLARED | metrics.TIMED | metrics.GAUGES).values() for label in labels}
    assert labels <= {"layer", "outcome", "kind", "code", "reason", "step", "part", "name", "state", "queue"}


def test_labels_in_another_order_are_the_same_series():
    metrics.count("lookups", layer="L0", outcome="hit")
    metrics.count("lookups", outcome="hit", layer="L0")
    assert metrics.drain() == {(0, "lookups", "layer=L0,outcome=hit"): 2}


def test_what_was_not_declared_cannot_be_said():
    with pytest.raises(KeyError):
        metrics.observe("made_up", 1.0)
    with pytest.raises(ValueError, match="labels"):
        metrics.observe("search_seconds", 1.0, user="ann")


def test_a_histogram_counts_up_to_each_bound():
    for seconds in (0.001, 0.0011, 0.3, 999.0):
        metrics.observe("search_seconds", seconds, layer="L0")
    counts = {labels.rpartition("le=")[2]: n for (_, _, labels), n in metrics.drain().items()}
    buckets, total = metrics.histogram(counts)
    assert dict(buckets) == {f"{bound:g}": 1 + (bound >= 0.0025) + (bound >= 0.5) for bound in metrics.BUCKETS} | {
        "+Inf": 4
    }
    assert total == pytest.approx(999.3021)
