"""The table of clients and methods in docs/compatibility.md, made from what the clients' scripts said.

`make conformance` runs them and writes it; a test of any other run only compares.
"""

from __future__ import annotations

import os
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
WRITE = "MEMSVC_WRITE_TABLE"
_BEGIN, _END = "<!-- clients: {} -->", "<!-- end -->"


def keep(client: str, told: list[dict[str, str]]) -> None:
    """Hold a client's part of the table against what it said, or write it where the environment asks for that."""
    page = PAGE.read_text(encoding="utf-8")
    begin = _BEGIN.format(client)
    before, found, rest = page.partition(begin)
    assert found, f"{PAGE.name} has no part for {client}"
    stands, _, after = rest.partition(_END)
    made = "\n" + _rows(told) + "\n"
    if os.environ.get(WRITE):
        PAGE.write_text(before + begin + made + _END + after, encoding="utf-8")
    else:
        assert stands == made, f"{PAGE.name} tells otherwise of {client}: make conformance"


def _rows(told: list[dict[str, str]]) -> str:
    kinds = {"works": "works", "refused": "refused with 501", "fails": "fails in the client itself, after our answer"}
    lines = []
    for outcome, said in kinds.items():
        if names := [f"`{one['method']}`" for one in told if one["outcome"] == outcome]:
            lines.append(f"- {said}: {', '.join(names)}")
    return "\n".join(lines)
