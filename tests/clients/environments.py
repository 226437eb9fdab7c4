"""The clients as their users install them, each in an environment of its own.

`python -m tests.clients.environments` makes those that are missing: it needs the package registries, and npm's client
Node 18 or later.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(os.environ.get("MEMSVC_CLIENTS", Path(__file__).resolve().parents[2] / ".clients"))
PYTHON = {"mem0ai 2.2.1": ["mem0ai==2.2.1"], "mem0ai 1.0.11": ["mem0ai==1.0.11"]}
NPM = "mem0ai@3.3.1"


def python(name: str) -> Path:
    """The interpreter that has the client."""
    return FOLDER / name.replace(" ", "-") / "bin" / "python"


def npm() -> Path:
    """The folder whose node_modules holds npm's client."""
    return FOLDER / "npm"


def make() -> None:
    """Install what is missing."""
    for name, packages in PYTHON.items():
        if not _ready(python(name)):
            venv.create(python(name).parents[1], with_pip=True)
            subprocess.run([python(name), "-m", "pip", "install", "--quiet", *packages], check=True)
            _done(python(name))
    if shutil.which("npm") is None:
        print("npm's client: skipped, there is no npm here")
    elif not (npm() / "node_modules" / "mem0ai").exists():
        npm().mkdir(parents=True, exist_ok=True)
        words = ["npm", "install", "--no-audit", "--no-fund", "--omit=peer", "--legacy-peer-deps", NPM]
        subprocess.run(words, cwd=npm(), check=True)


def _ready(interpreter: Path) -> bool:
    return (interpreter.parents[1] / "ready").exists()


def _done(interpreter: Path) -> None:
    (interpreter.parents[1] / "ready").touch()


if __name__ == "__main__":
    sys.exit(make())
