"""JSON in and out. What comes in must mean the same everywhere: no NaN, no lone surrogates, no bottomless nesting."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import IO, Any, NoReturn

import orjson
from rest_framework.exceptions import ParseError, ValidationError
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS


class JSONRenderer(BaseRenderer):
    """An answer as UTF-8 JSON."""

    media_type = "application/json"
    format = "json"
    charset = None
    render_style = "binary"

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None) -> bytes:
        """The bytes; nothing for no answer."""
        return b"" if data is None else orjson.dumps(data, option=OPTIONS)


class JSONParser(BaseParser):
    """A request's body; of a name given twice the last value counts."""

    media_type = "application/json"

    def parse(self, stream: IO[bytes], media_type: str | None = None, parser_context: Any = None) -> Any:
        """The value. ValidationError names a field whose text or number JSON cannot carry, ParseError says the rest."""
        raw = stream.read()
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            _refuse(raw, error)


class LinesParser(BaseParser):
    """JSON Lines: handed on as the stream that they are."""

    media_type = "application/x-ndjson"

    def parse(self, stream: IO[bytes], media_type: str | None = None, parser_context: Any = None) -> Any:
        """The stream, unread."""
        return stream


class OnlyRenderer(DefaultContentNegotiation):
    """Answers in the view's one format, whatever the request accepts; views with several choose as usual."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        """The renderer and its media type."""
        if len(renderers) == 1:
            return renderers[0], renderers[0].media_type
        return super().select_renderer(request, renderers, format_suffix)


def _refuse(raw: bytes, error: orjson.JSONDecodeError) -> NoReturn:
    try:
        value = json.loads(raw.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        place = f"line {error.lineno}, column {error.colno}"
        raise ParseError(f"The body is not JSON ({place}).") from None
    found = {path.removeprefix(".") or "body": [message] for path, message in _odd(value, "")}
    if found:
        raise ValidationError(found)
    raise ParseError("The body is not JSON as memsvc reads it: UTF-8, no byte order mark, at most 1024 levels.")


def _odd(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The places of what Python's reader lets through and JSON does not carry."""
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        yield path, "may not contain a lone surrogate"
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, "must be a finite number"
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if any("\ud800" <= char <= "\udfff" for char in key):
                yield path, "may not contain a lone surrogate"
            else:
                yield from _odd(part, f"{path}.{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _odd(part, f"{path}[{index}]")
