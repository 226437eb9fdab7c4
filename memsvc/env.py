"""Reading the environment. Each reader names the variable in its error; `problems` keeps them, to be told at once."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

problems: list[str] = []
"""What is wrong with the environment, one sentence each; `memory.checks` reports them as memory.E001."""

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


def text(name: str, default: str = "", *, choices: tuple[str, ...] = ()) -> str:
    """The variable as it is, trimmed; one of `choices` where given."""
    value = os.environ.get(name, "").strip() or default
    if choices and value not in choices:
        problems.append(f"{name} is {value!r}; it must be one of {', '.join(choices)}.")
        return default
    return value


def boolean(name: str, default: bool) -> bool:
    """1, true, yes, on or 0, false, no, off, in any case."""
    value = os.environ.get(name, "").strip().lower()
    if value == "" and name not in os.environ:
        return default
    if value not in _TRUE | _FALSE:
        problems.append(f"{name} is {value!r}; it must be true or false.")
        return default
    return value in _TRUE


def integer(name: str, default: int, *, least: int = 0, most: int | None = None) -> int:
    """A whole number between `least` and `most`."""
    return int(_number(name, default, least, most, whole=True))


def seconds(name: str, default: float, *, least: float = 0.0) -> float:
    """A duration in seconds; fractions are allowed."""
    return _number(name, default, least, None, whole=False)


def _number(name: str, default: float, least: float, most: float | None, *, whole: bool) -> float:
    value = os.environ.get(name, "").strip()
    if not value:
        return default
    try:
        number = int(value) if whole else float(value)
    except ValueError:
        problems.append(f"{name} is {value!r}; it must be a {'whole ' if whole else ''}number.")
        return default
    if number != number or number < least or (most is not None and number > most):
        limits = f"at least {least:g}" + ("" if most is None else f" and at most {most:g}")
        problems.append(f"{name} is {value}; it must be {limits}.")
        return default
    return number


def words(name: str, default: str = "") -> list[str]:
    """A list separated by commas."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def secret(name: str, default: str = "") -> str:
    """A secret from NAME, or from the file that NAME_FILE names. It is never shown."""
    path = os.environ.get(f"{name}_FILE", "").strip()
    if not path:
        return os.environ.get(name, "").strip() or default
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        problems.append(f"{name}_FILE cannot be read: {error.strerror}.")
        return default


def database(name: str, default: str) -> dict[str, object]:
    """A PostgreSQL URL as Django's settings: postgres[ql]://USER:PASSWORD@HOST:PORT/NAME; a HOST that is a
    percent-encoded path, or `?host=/path`, is a socket folder."""
    url = urlsplit(secret(name, default))
    if url.scheme not in {"postgres", "postgresql"} or not url.path.strip("/"):
        problems.append(f"{name} must look like postgresql://USER:PASSWORD@HOST:5432/NAME.")
        return {"NAME": "memsvc"}
    query = dict(pair.split("=", 1) for pair in url.query.split("&") if "=" in pair)
    host = unquote(query.pop("host", "")) or unquote(url.hostname or "")
    try:
        port = query.pop("port", "") or str(url.port or "")
    except ValueError:
        problems.append(f"{name} has a port that is no number.")
        port = ""
    return {
        "NAME": unquote(url.path.strip("/")),
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "HOST": host,
        "PORT": port,
        "OPTIONS": {key: unquote(value) for key, value in query.items()},
    }
