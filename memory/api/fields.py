"""What the fields of a request may hold.

Each kind checks a value and describes itself to OpenAPI, so that the two cannot differ. A check answers the value as
memsvc uses it or raises `Wrong`, naming every bad field below it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Protocol

import orjson

from memory.text import nfc

ID_MAX_CHARACTERS = 512
ID_MAX_BYTES = 1500
"""An id is part of PostgreSQL's indexes, whose entries have a limit."""
METADATA_MAX_BYTES = 16_384
METADATA_MAX_DEPTH = 16
WHOLE_MAX = 2**63
"""Whole numbers beyond it do not survive JSON's way through other languages, nor through ours."""
MAX_ERRORS = 20

RESERVED_METADATA = frozenset(
    {
        *("data", "hash", "created_at", "updated_at", "id", "text_lemmatized", "attributed_to"),
        *("user_id", "agent_id", "run_id", "actor_id", "role", "expiration_date"),
    },
)
"""Mem0 keeps its own fields beside the metadata, under these names: a value of ours would be lost."""

_BLANK = re.compile(r"\s")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_VERSION = re.compile(r"(user|agent|run):([0-9]{1,16})")
_WHOLE = re.compile(r"-?[0-9]{1,18}")

Schema = dict[str, Any]
REQUIRED = "is required"


class Wrong(ValueError):
    """A value that is not what its field takes: [(path below the field, message)]."""

    def __init__(self, message: str = "", errors: list[tuple[str, str]] | None = None) -> None:
        super().__init__(message)
        self.errors = errors if errors is not None else [("", message)]


class Field(Protocol):
    """One kind of value."""

    def check(self, value: Any) -> Any:
        """The value as memsvc uses it; Wrong."""
        ...

    def schema(self) -> Schema:
        """The kind in JSON Schema."""
        ...


@dataclass(frozen=True, slots=True)
class Ident:
    """An id: any text without NUL or white space, exactly as given."""

    def check(self, value: Any) -> str:
        """See Field."""
        text = _text(value)
        if not text or text.isspace():
            raise Wrong("may not be blank")
        if _BLANK.search(text):
            raise Wrong("may not contain white space")
        if text == "*":
            raise Wrong("may not be '*', which means everyone to Mem0")
        if len(text) > ID_MAX_CHARACTERS or len(text.encode()) > ID_MAX_BYTES:
            raise Wrong(f"may have at most {ID_MAX_CHARACTERS} characters and {ID_MAX_BYTES} bytes")
        return text

    def schema(self) -> Schema:
        """See Field."""
        return {"type": "string", "minLength": 1, "maxLength": ID_MAX_CHARACTERS, "pattern": r"^[^\s\u0000]+$"}


@dataclass(frozen=True, slots=True)
class Text:
    """A text with something in it; it is composed (NFC), and trimmed where `trim` says so."""

    trim: bool = False

    def check(self, value: Any) -> str:
        """See Field."""
        text = _text(value)
        if not text or text.isspace():
            raise Wrong("may not be blank")
        composed = text if text.isascii() else nfc(text)
        return composed.strip() if self.trim else composed

    def schema(self) -> Schema:
        """See Field."""
        return {"type": "string", "minLength": 1, "pattern": r"\S"}


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within limits; as text in a query string."""

    least: int
    most: int

    def check(self, value: Any) -> int:
        """See Field."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong("must be a whole number")
        if not self.least <= value <= self.most:
            raise Wrong(f"must be between {self.least} and {self.most}")
        return value

    def schema(self) -> Schema:
        """See Field."""
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class Number:
    """A number within limits."""

    least: float
    most: float

    def check(self, value: Any) -> float:
        """See Field."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong("must be a number")
        if not self.least <= value <= self.most:
            raise Wrong(f"must be between {self.least:g} and {self.most:g}")
        return float(value) + 0.0  # -0.0 is 0.0

    def schema(self) -> Schema:
        """See Field."""
        return {"type": "number", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    def check(self, value: Any) -> bool:
        """See Field."""
        if not isinstance(value, bool):
            raise Wrong("must be true or false")
        return value

    def schema(self) -> Schema:
        """See Field."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    def check(self, value: Any) -> str:
        """See Field."""
        if not isinstance(value, str) or value not in self.words:
            raise Wrong(f"must be one of {', '.join(self.words)}")
        return value

    def schema(self) -> Schema:
        """See Field."""
        return {"type": "string", "enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class Day:
    """A date as YYYY-MM-DD; `clears` lets null stand for none."""

    clears: bool = False

    def check(self, value: Any) -> str | None:
        """See Field."""
        if value is None and self.clears:
            return None
        if not isinstance(value, str) or not _DATE.fullmatch(value):
            raise Wrong("must be a date as YYYY-MM-DD")
        try:
            date.fromisoformat(value)
        except ValueError:
            raise Wrong("is no day of the calendar") from None
        return value

    def schema(self) -> Schema:
        """See Field."""
        return {"type": ["string", "null"] if self.clears else "string", "format": "date"}


@dataclass(frozen=True, slots=True)
class MinVersion:
    """A version of this kind, as an answer gave it: `KIND:NUMBER` (PROTOCOL B11)."""

    kind: str

    def check(self, value: Any) -> int:
        """See Field."""
        found = _VERSION.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise Wrong(f"must be a version as an answer gave it, like {self.kind}:1700000000000000")
        if found[1] != self.kind:
            raise Wrong(f"must be a version of the {self.kind}, whose memories are searched")
        return int(found[2])

    def schema(self) -> Schema:
        """See Field."""
        return {"type": "string", "pattern": f"^{self.kind}:[0-9]{{1,16}}$"}


@dataclass(frozen=True, slots=True)
class Metadata:
    """An object of the caller's own, without the names that Mem0 and memsvc keep for themselves."""

    def check(self, value: Any) -> dict[str, Any]:
        """See Field."""
        if not isinstance(value, dict):
            raise Wrong("must be an object")
        if taken := sorted(key for key in value if key in RESERVED_METADATA or key.startswith("memsvc_")):
            raise Wrong(errors=[(f".{key}", "is a name that Mem0 or memsvc keeps for itself") for key in taken])
        storable(value, METADATA_MAX_DEPTH)
        if len(orjson.dumps(value)) > METADATA_MAX_BYTES:
            raise Wrong(f"may have at most {METADATA_MAX_BYTES} bytes as JSON")
        return value

    def schema(self) -> Schema:
        """See Field."""
        return {"type": "object", "additionalProperties": True}


@dataclass(frozen=True, slots=True)
class Many:
    """A list of between `least` and `most` items of one kind."""

    item: Field
    least: int
    most: int

    def check(self, value: Any) -> list[Any]:
        """See Field."""
        if not isinstance(value, list):
            raise Wrong("must be a list")
        if not self.least <= len(value) <= self.most:
            raise Wrong(f"must have between {self.least} and {self.most} items")
        found, errors = [], []
        for index, item in enumerate(value):
            try:
                found.append(self.item.check(item))
            except Wrong as wrong:
                errors += [(f"[{index}]{path}", message) for path, message in wrong.errors]
        if errors:
            raise Wrong(errors=errors[:MAX_ERRORS])
        return found

    def schema(self) -> Schema:
        """See Field."""
        return {"type": "array", "items": self.item.schema(), "minItems": self.least, "maxItems": self.most}


@dataclass(frozen=True, slots=True)
class Record:
    """An object with these fields and no others. A null stands for a field not given, unless its kind takes null."""

    fields: Mapping[str, Field]
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def check(self, value: Any) -> dict[str, Any]:
        """See Field; only the fields given, and the defaults of the others."""
        if not isinstance(value, dict):
            raise Wrong("must be an object")
        found: dict[str, Any] = dict(self.defaults)
        errors = [(f".{name}", "is not a field of this request") for name in value if name not in self.fields]
        errors += [(f".{name}", REQUIRED) for name in self.required if value.get(name) is None]
        for name, kind in self.fields.items():
            if name not in value or (value[name] is None and not getattr(kind, "clears", False)):
                continue
            try:
                found[name] = kind.check(value[name])
            except Wrong as wrong:
                errors += [(f".{name}{path}", message) for path, message in wrong.errors]
        if errors:
            raise Wrong(errors=errors[:MAX_ERRORS])
        return found

    def schema(self) -> Schema:
        """See Field."""
        properties = {
            name: kind.schema() if name in self.required else _or_null(kind.schema())
            for name, kind in self.fields.items()
        }
        for name, default in self.defaults.items():
            properties[name] = {**properties[name], "default": default}
        described: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
        return described | ({"required": list(self.required)} if self.required else {})


def _or_null(schema: Schema) -> Schema:
    """The same, or null."""
    null = {"type": "null"}
    if "oneOf" in schema:
        return {**schema, "oneOf": [*schema["oneOf"], *([] if null in schema["oneOf"] else [null])]}
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    enum = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": list(dict.fromkeys([*kinds, "null"])), **enum}


@dataclass(frozen=True, slots=True)
class TextOr:
    """A text alone, or a record whose field `text` is that text."""

    record: Record

    def check(self, value: Any) -> dict[str, Any]:
        """See Field."""
        if isinstance(value, str):
            value = {"text": value}
        elif not isinstance(value, dict):
            raise Wrong("must be a text or an object with a text")
        return self.record.check(value)

    def schema(self) -> Schema:
        """See Field."""
        return {"oneOf": [self.record.fields["text"].schema(), self.record.schema()]}


def named(path: str) -> str:
    """A path as an error names it: `.memories[0].text` is `memories[0].text`, and the whole is `body`."""
    return path.removeprefix(".") or "body"


def from_query(kind: Field, value: str) -> Any:
    """A query string's text as the kind takes it."""
    if isinstance(kind, Whole) and _WHOLE.fullmatch(value):
        return int(value)
    return value


def storable(value: Any, depth: int) -> None:
    """Raise Wrong for what PostgreSQL or Mem0 cannot keep exactly: NUL, numbers beyond 64 bits, bottomless nesting."""
    if isinstance(value, str):
        _text(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) >= WHOLE_MAX:
            raise Wrong("may not contain numbers beyond 64 bits")
    elif isinstance(value, dict | list):
        if depth == 0:
            raise Wrong("is nested too deeply")
        for part in value.values() if isinstance(value, dict) else value:
            storable(part, depth - 1)
        for key in value if isinstance(value, dict) else ():
            _text(key)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong("must be text")
    if "\0" in value:
        raise Wrong("may not contain NUL")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise Wrong("may not contain a lone surrogate")
    return value
