"""What the clients said, kept in results.json, and the tables of docs/compatibility.md that are made from it.

`make conformance` writes both; any other run of the tests only compares.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.clients import environments

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
RESULTS = Path(__file__).with_name("results.json")
WRITE = "MEMSVC_WRITE_TABLE"
BACKENDS = ("in process", "over REST")
BEGIN, END = "<!-- made by make conformance -->", "<!-- end -->"
OUTCOMES = {"works": "works", "refused": "501", "fails": "fails in the client, after our answer", None: ""}

_CLIENTS = [f"{name} {mode}" for name in environments.PYTHON for mode in ("sync", "async")]
_NPM = [f"npm {environments.NPM}"]
_PACKAGES = {
    **{f"PyPI {name} {version}": name for name, version in environments.PACKAGES.items()},
    **{f"npm {name} {version}": name for name, version in environments.NPM_PACKAGES.items()},
}

Results = dict[str, dict[str, dict[str, str]]]


def results() -> Results:
    """Client → backend → method → outcome."""
    found: Results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def keep(client: str, backend: str, told: list[dict[str, str]]) -> None:
    """Hold what a client said against what is kept, or keep it where the environment asks for that."""
    said = {one["method"]: one["outcome"] for one in told}
    kept = results()
    if not os.environ.get(WRITE):
        assert kept.get(client, {}).get(backend) == said, (
            f"{RESULTS.name} tells otherwise of {client}: make conformance"
        )
        return
    kept.setdefault(client, {})[backend] = said
    RESULTS.write_text(json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + tables(kept) + END + rest.partition(END)[2], encoding="utf-8")


def tables(kept: Results) -> str:
    """The page's part that is made from the results."""
    return "\n".join(
        [
            "",
            "### Mem0's Python client",
            "",
            *_table(kept, _CLIENTS),
            "",
            "### Mem0's npm client",
            "",
            *_table(kept, _NPM),
            "",
            "### Packages around them, as published",
            "",
            "| package | what was used of it | |",
            "|---|---|---|",
            *(_package(kept, client) for client in _PACKAGES),
            "",
        ],
    )


def _table(kept: Results, clients: Sequence[str]) -> Iterator[str]:
    yield f"| method | {' | '.join(clients)} |"
    yield "|---" * (len(clients) + 1) + "|"
    names: dict[str, None] = {}
    for client in clients:
        for said in kept.get(client, {}).values():
            names |= dict.fromkeys(said)
    for method in names:
        yield f"| `{method}` | {' | '.join(_cell(kept.get(client, {}), method) for client in clients)} |"


def _package(kept: Results, client: str) -> str:
    said = kept.get(client, {})
    methods = list(dict.fromkeys(method for told in said.values() for method in told))
    told = sorted({_cell(said, method) for method in methods})
    return f"| {client} | {', '.join(f'`{method}`' for method in methods)} | {', '.join(told) or 'not run'} |"


def _cell(said: dict[str, dict[str, str]], method: str) -> str:
    """One word where the client says the same with both backends, or does not have the method."""
    outcomes = {backend: OUTCOMES[told.get(method)] for backend, told in said.items()}
    if set(outcomes) == set(BACKENDS) and len(set(outcomes.values())) == 1:
        return outcomes[BACKENDS[0]]
    return "; ".join(f"{outcome} ({backend})" for backend, outcome in outcomes.items() if outcome)
