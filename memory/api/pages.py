"""Lists: `{count, next, previous, results}`, by page and page_size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from rest_framework.request import Request
from rest_framework.utils.urls import replace_query_param

T = TypeVar("T")


def page(
    request: Request,
    asked: dict[str, Any],
    count: int,
    rows: Callable[[int, int], Iterable[T]],
    show: Callable[[T], Any],
) -> dict[str, Any]:
    """The page asked for; `rows` takes its first and its last place. A page beyond the end is empty."""
    number, size = asked["page"], asked["page_size"]
    first = (number - 1) * size
    here = request.build_absolute_uri()
    last = max(1, -(-count // size))
    return {
        "count": count,
        "next": replace_query_param(here, "page", number + 1) if number < last else None,
        "previous": replace_query_param(here, "page", min(number - 1, last)) if number > 1 else None,
        "results": [show(row) for row in rows(first, first + size)] if first < count else [],
    }


def of(items: Sequence[T]) -> Callable[[int, int], Sequence[T]]:
    """The pages of a list at hand."""
    return lambda first, last: items[first:last]
