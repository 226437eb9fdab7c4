"""Which process this is, so that another can tell whether it is gone (PROTOCOL A5)."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def process() -> str:
    """This process: `host/boot/namespace/pid/start`. The same pid after a restart is another process."""
    return "/".join((*_where(), str(os.getpid()), _started(os.getpid()) or "?"))


def gone(identity: str) -> bool:
    """Whether the process of that name certainly runs no more; False where this host cannot tell."""
    parts = identity.split("/")
    if len(parts) != 5 or tuple(parts[:3]) != _where() or not parts[3].isdigit() or "?" in parts:
        return False
    return _started(int(parts[3])) != parts[4]


def _where() -> tuple[str, str, str]:
    return socket.gethostname().replace("/", "_"), _boot(), _namespace()


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "?"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return "?"


def _started(pid: int) -> str | None:
    """The kernel's start time of a process; None for none, or one that is dead and only not yet reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
