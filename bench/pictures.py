"""Pictures of what bench/results holds, for docs/benchmarks.md: `make bench-pictures`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style

from bench.measure import RESULTS

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
OURS = ("#1f6feb", "#2da44e", "#bf8700", "#8250df", "#cf222e")
MEM0S = "#8c8c8c"
Row = Mapping[str, Any]


def main() -> None:
    """Draw every picture."""
    PICTURES.mkdir(exist_ok=True)
    hits()
    for embedder in ("local", "slow"):
        beside(embedder)
        trace(embedder)
        peers(embedder)
    quality()


def hits() -> None:
    """`make bench-hit`: requests a second, to the no-op view's of the same round."""
    runs = _result("hit")["runs"]
    names = list(dict.fromkeys(run["name"] for run in runs))
    rates = {(name, count): _rates(runs, name=name, connections=count) for name in names for count in (16, 64)}
    bars = {
        f"{count} connections": [_ratio(rates[name, count], rates[names[0], count]) for name in names]
        for count in (16, 64)
    }
    _draw(
        "hit",
        "A cached search: req/s, to a Django view that does nothing",
        names[::-1],
        {label: rates[::-1] for label, rates in bars.items()},
        "{:.2f}".format,
        lying=True,
    )


def beside(embedder: str) -> None:
    """`make bench-mem0`: requests a second, to Mem0's of the same round."""
    runs = _result(f"mem0-{embedder}")["runs"]
    clients = sorted({run["clients"] for run in runs})
    cells = list(dict.fromkeys((run["kind"], run["side"]) for run in runs if run["side"] != "Mem0"))
    bars = {}
    for kind, side in sorted(cells, key=lambda cell: ("repeated", "bounded", "new").index(cell[0])):
        asked = "new" if kind == "new" else "repeated"
        found = [
            _ratio(
                _rates(runs, kind=kind, side=side, clients=count),
                _rates(runs, kind=asked, side="Mem0", clients=count),
            )
            for count in clients
        ]
        bars[f"{kind}: {side}"] = found
    title = f"req/s, to Mem0's own with {_embedder(embedder)}"
    _draw(f"mem0-{embedder}", title, [_clients(count) for count in clients], bars, "{:.3g}".format, least=0.5)


def trace(embedder: str) -> None:
    """`make bench-trace`: milliseconds of a search."""
    parts = _result(f"trace-{embedder}")["parts"]
    bars = {
        name: [statistics.median(part[share] for part in parts if part["name"] == name) for share in ("p50", "p95")]
        for name in dict.fromkeys(part["name"] for part in parts)
    }
    title = f"A trace of searches, ms; Mem0 with {_embedder(embedder)}"
    _draw(f"trace-{embedder}", title, ["p50", "p95"], bars, "{:.0f}".format)


def peers(embedder: str) -> None:
    """`make bench-peers`: requests a second."""
    runs = _result(f"peers-{embedder}")["runs"]
    cells = list(dict.fromkeys((run["kind"], run["clients"]) for run in runs))
    bars = {
        name: [statistics.median(_rates(runs, name=name, kind=kind, clients=count)) for kind, count in cells]
        for name in dict.fromkeys(run["name"] for run in runs)
    }
    groups = [f"{kind}, {_clients(count)}" for kind, count in cells]
    _draw(f"peers-{embedder}", f"req/s with {_embedder(embedder)}", groups, bars, "{:,.0f}".format, least=5)


def quality() -> None:
    """`make bench-quality`: NDCG@10 over all questions."""
    figures = _result("quality")["figures"]
    sets = {
        "locomo": "LoCoMo",
        "vi": "Vietnamese",
        "bare": "… without accents",
        "vi-en": "vi on en",
        "en-vi": "en on vi",
        "en": "English",
    }
    bars = {name.replace("mem0", "Mem0"): [found[each]["all"] for each in sets] for name, found in figures.items()}
    _draw("quality", "NDCG@10 of each ranking", list(sets.values()), bars, "{:.2f}".format)


def _draw(
    name: str,
    title: str,
    groups: Sequence[str],
    bars: Mapping[str, Sequence[float]],
    told: Callable[[float], str],
    *,
    least: float = 0,
    lying: bool = False,
) -> None:
    """A bar chart: its groups along an axis, a colour for each of `bars`; logarithmic from `least` on, if given."""
    colours = iter(OURS)
    style = Style(
        background="white",
        plot_background="white",
        colors=[MEM0S if label.lower().startswith("mem0") else next(colours) for label in bars],
        font_family="sans-serif",
        title_font_size=18,
        label_font_size=13,
        legend_font_size=13,
        value_font_size=12,
        value_colors=("#24292f",) * len(bars),
    )
    kind = pygal.HorizontalBar if lying else pygal.Bar
    chart = kind(
        style=style,
        js=(),
        width=900,
        height=420,
        title=f"{title} (logarithmic)" if least else title,
        legend_at_bottom=True,
        legend_at_bottom_columns=min(3, len(bars)),
        print_values=True,
        print_values_position="top",
        value_formatter=told,
        logarithmic=bool(least),
        zero=least,
        range=(least, 1.3 * max(map(max, bars.values()))) if least else None,
        show_x_guides=False,
        show_y_guides=False,
        show_y_labels=lying,
        show_x_labels=not lying,
        truncate_legend=-1,
        truncate_label=-1,
    )
    chart.uuid = name  # else every drawing differs
    chart.x_labels = groups
    for label, values in bars.items():
        chart.add(label, values)
    chart.render_to_file(str(PICTURES / f"{name}.svg"))


def _result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _rates(runs: Iterable[Row], **where: Any) -> list[float]:
    return [run["rate"] for run in runs if all(run[key] == value for key, value in where.items())]


def _ratio(rates: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(one / other for one, other in zip(rates, others, strict=True))


def _clients(count: int) -> str:
    return f"{count} client{'s' * (count > 1)}"


def _embedder(name: str) -> str:
    return {"local": "the local embedder", "slow": "an embedder that takes 120 ms"}[name]


if __name__ == "__main__":
    main()
