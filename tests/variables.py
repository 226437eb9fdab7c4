"""What the environment can set: found by running the settings with a recording reader."""

from __future__ import annotations

import os
import runpy
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from memsvc import env

ROOT = Path(__file__).resolve().parent.parent
READERS = ("text", "boolean", "integer", "seconds", "words", "secret", "database")


@dataclass(frozen=True)
class Variable:
    """One variable: its default as a person would write it, and whether NAME_FILE may hold it."""

    name: str
    default: str
    secret: bool


def variables() -> dict[str, Variable]:
    """Every variable that memsvc/settings.py reads, by name, with its default in an empty environment."""
    found: dict[str, Variable] = {}
    readers = {name: getattr(env, name) for name in READERS}

    def recording(kind: str):
        def read(name: str, default: object = "", **limits: object) -> object:
            found.setdefault(name, Variable(name, _written(default), kind in ("secret", "database")))
            return readers[kind](name, default, **limits)

        return read

    with patch.dict(os.environ, clear=True), patch.multiple(env, **{name: recording(name) for name in READERS}):
        runpy.run_path(str(ROOT / "memsvc" / "settings.py"))
    return found


def _written(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float | int):
        return f"{default:.10g}"
    return str(default).replace(f"{ROOT}/", "")
