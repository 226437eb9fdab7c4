"""The clients, and packages around them, as their users install them, in environments of their own.

`python -m tests.clients.environments` makes those that are missing: it needs the package registries, and Node 18 or
later for npm's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(os.environ.get("MEMSVC_CLIENTS", Path(__file__).resolve().parents[2] / ".clients"))
PACKAGES = {
    "mem0-strands": "0.1.1",
    "agent-framework-mem0": "1.0.0b261015",
    "llama-index-memory-mem0": "2.1.0",
    "mem0-cli": "0.2.13",
}
NPM_PACKAGES = {"@mem0/vercel-ai-provider": "3.0.2", "@mem0/cli": "0.2.13"}
CURRENT = "mem0ai 2.2.1"
PYTHON = {
    CURRENT: ["mem0ai==2.2.1", *(f"{name}=={version}" for name, version in PACKAGES.items())],
    "mem0ai 1.0.11": ["mem0ai==1.0.11"],
}
NPM = "mem0ai@3.3.1"


def python(name: str) -> Path:
    """The interpreter that has the client; the current one's has the packages around it as well."""
    return FOLDER / name.replace(" ", "-") / "bin" / "python"


def npm() -> Path:
    """The folder whose node_modules holds npm's client and packages."""
    return FOLDER / "npm"


def ready(folder: Path) -> bool:
    """Whether an environment holds what is pinned here now."""
    mark = folder / "ready"
    return mark.exists() and mark.read_text() == _wanted(folder)


def make() -> None:
    """Install what is missing."""
    for name, packages in PYTHON.items():
        folder = python(name).parents[1]
        if not ready(folder):
            print(f"Installing {', '.join(packages)}", flush=True)
            venv.create(folder, with_pip=True, clear=True)
            subprocess.run([python(name), "-m", "pip", "install", "--quiet", *packages], check=True)
            _done(folder)
    if shutil.which("npm") is None:
        print("npm's client and packages: skipped, there is no npm here")
    elif not ready(npm()):
        packages = _npm_packages()
        print(f"Installing {', '.join(packages)}", flush=True)
        shutil.rmtree(npm(), ignore_errors=True)
        npm().mkdir(parents=True)
        words = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--omit=peer", "--legacy-peer-deps"]
        subprocess.run([*words, *packages], cwd=npm(), check=True)
        _done(npm())


def _npm_packages() -> list[str]:
    return [NPM, *(f"{name}@{version}" for name, version in NPM_PACKAGES.items())]


def _wanted(folder: Path) -> str:
    of = {python(name).parents[1]: packages for name, packages in PYTHON.items()} | {npm(): _npm_packages()}
    return "\n".join(of[folder])


def _done(folder: Path) -> None:
    (folder / "ready").write_text(_wanted(folder))


if __name__ == "__main__":
    sys.exit(make())
