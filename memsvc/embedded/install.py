"""`python -m memsvc.embedded.install up|dev`: the virtual environment and the pinned packages in it.

The one module that runs before there is anything to import: standard library only. pip runs again only when a
requirements file has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
QUIET_SECONDS = 3.0


def main(purpose: str) -> None:
    """Make .venv hold what `purpose` needs."""
    wanted = ROOT / ("requirements-dev.txt" if purpose == "dev" else _service())
    with (ROOT / "pyproject.toml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two copies may be started from one folder at once
        if not _usable():
            _create()
        if not all(_stamp(file).exists() for file in _with_included(wanted)):
            _install(wanted)


def _service() -> str:
    """Mem0 and its embedder are installed where one of them is used."""
    rest = os.environ.get("MEM0_USE_REST_API", "").strip().lower() in {"1", "true", "yes", "on"}
    local = os.environ.get("EMBEDDER", "").strip() == "local"
    return "requirements.txt" if rest and not local else "requirements-embedded.txt"


def _with_included(file: Path) -> Iterator[Path]:
    yield file
    for line in file.read_text().splitlines():
        if line.startswith("-r "):
            yield from _with_included(file.parent / line[3:].strip())


def _stamp(file: Path) -> Path:
    return VENV / f".installed-{file.stem}-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"


def _usable() -> bool:
    if not PYTHON.exists():
        return False
    check = "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))"
    return subprocess.run([PYTHON, "-c", check], capture_output=True, check=False).returncode == 0


def _create() -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"Creating {VENV.name} with Python {version}", flush=True)
    pip = importlib.util.find_spec("ensurepip") is not None
    if not pip and importlib.util.find_spec("pip") is None:
        sys.exit(
            "memsvc: this Python has neither ensurepip nor pip. Install your system's package for virtual "
            f"environments (Debian and Ubuntu: python{sys.version_info[0]}.{sys.version_info[1]}-venv)."
        )
    command = [sys.executable, "-m", "venv", "--clear", *([] if pip else ["--without-pip"]), str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"memsvc: the virtual environment cannot be created:\n{done.stdout}{done.stderr}")


def _install(file: Path) -> None:
    print(f"Installing {file.name} (once; a few minutes at first)", flush=True)
    own = [str(PYTHON), "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode:
        own = [sys.executable, "-m", "pip", "--python", str(PYTHON)]
    command = [*own, "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "-r", str(file)]
    started = time.monotonic()
    pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = _follow(pip)
    if pip.wait():
        sys.exit(f"{said}\nmemsvc: pip could not install {file.name}; its own words are above.")
    for stale in VENV.glob(".installed-*"):
        stale.unlink()
    for done in _with_included(file):
        _stamp(done).touch()
    print(f"Installed in {time.monotonic() - started:.0f} s", flush=True)


def _follow(pip: subprocess.Popen[str]) -> str:
    """Show how far pip is: in place on a terminal, else a line every few seconds. Returns all it said."""
    said: list[str] = []
    packages, shown, terminal = 0, time.monotonic(), sys.stdout.isatty()
    for line in pip.stdout or ():
        said.append(line)
        words = line.split()
        if words[:1] not in (["Collecting"], ["Downloading"], ["Installing"]):
            continue
        packages += words[0] == "Collecting"
        what = f"{words[0].lower()} {words[1]}" if words[0] != "Installing" else "unpacking them all"
        if terminal:
            print(f"\r\033[K  {packages} packages, {what}", end="", flush=True)
        elif words[0] == "Installing" or time.monotonic() - shown > QUIET_SECONDS:
            shown = time.monotonic()
            print(f"  {packages} packages, {what}", flush=True)
    if terminal:
        print("\r\033[K", end="", flush=True)
    return "".join(said)


if __name__ == "__main__":
    main(sys.argv[1])
