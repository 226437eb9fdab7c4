"""How a view is described to OpenAPI: what it takes out of `bodies`, what it answers out of `serializers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers

from memory import exports
from memory.api.fields import Record
from memory.api.problems import MEDIA_TYPE
from memory.api.serializers import Problem

View = TypeVar("View", bound=Callable[..., Any])

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255},
    OpenApiParameter.HEADER,
    description="The same key and body within 24 hours is the same write.",
)


LINES = {"type": "string"}
"""The shape of JSON Lines, as far as OpenAPI can tell it."""


class KeySchemes(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """The three ways to send a key."""

    target_class = "memory.tenancy.auth.KeyAuthentication"
    name = ["bearer", "apiKey"]

    def get_security_definition(self, auto_schema: Any) -> list[dict[str, str]]:
        """In OpenAPI's words; `Authorization: Token KEY` is the same as Bearer."""
        return [{"type": "http", "scheme": "bearer"}, {"type": "apiKey", "in": "header", "name": "X-API-Key"}]

    def get_security_requirement(self, auto_schema: Any) -> list[dict[str, list[str]]]:
        """Any one of them."""
        return [{name: []} for name in self.name]


def operation(
    name: str,
    summary: str,
    answers: Mapping[int, Any],
    *,
    body: Record | None = None,
    query: Record | None = None,
    path: tuple[str, ...] = (),
    problems: tuple[int, ...] = (),
    idempotent: bool = False,
    lines: bool = False,
) -> Callable[[View], View]:
    """Describe one method of a view; 400, 401, 403, 404, 429, 500 and 503 go without saying. `lines`: its body, or its
    answer where that is no shape but LINES, is JSON Lines."""
    parameters = [OpenApiParameter(id_, {"type": "string"}, OpenApiParameter.PATH) for id_ in path]
    for id_, kind in (query.fields if query else {}).items():
        parameters.append(OpenApiParameter(id_, kind.schema(), OpenApiParameter.QUERY))
    if idempotent:
        parameters.append(IDEMPOTENCY_KEY)
    usual = (400, 401, 403, 429, 500, 503) + ((404,) if path else ()) + ((410,) if idempotent else ())
    responses: dict[Any, Any] = {
        (status, MEDIA_TYPE): OpenApiResponse(Problem, description="A problem")
        for status in sorted({*usual, *problems})
    }
    for status, answer in answers.items():
        ok = exports.MEDIA_TYPE if answer is LINES else "application/json"
        responses[(status, MEDIA_TYPE if status >= 400 else ok)] = answer
    taken = (
        {exports.MEDIA_TYPE: LINES} if lines else {"application/json": body.schema()} if body and body.fields else None
    )
    return extend_schema(
        operation_id=name,
        summary=summary,
        description="",
        parameters=parameters,
        request=taken,
        responses=responses,
    )


def paged(item: type[serializers.BaseSerializer[Any]]) -> serializers.BaseSerializer[Any]:
    """A page of such items."""
    return _page(f"{item.__name__}Page", item)


def _page(name: str, item: type[serializers.BaseSerializer[Any]]) -> serializers.BaseSerializer[Any]:
    fields = {
        "count": serializers.IntegerField(),
        "next": serializers.URLField(allow_null=True),
        "previous": serializers.URLField(allow_null=True),
        "results": item(many=True),
    }
    kind: type[serializers.BaseSerializer[Any]] = type(name, (serializers.Serializer,), fields)
    return kind()
