"""What the admin's own templates need: ages and versions as people read them, and the panel of the front page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django import template
from django.db import DatabaseError

from memory import status, watchdog

register = template.Library()

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


@register.filter
def span(seconds: float | None) -> str:
    """A duration in the unit that fits it; a dash for none."""
    if seconds is None:
        return "–"
    for size, unit in _UNITS:
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if abs(seconds) >= 10 else f"{seconds:.2f} s"


@register.filter
def moment(version: int | None) -> str:
    """When a version was made: it is microseconds of PostgreSQL's clock."""
    return datetime.fromtimestamp(version / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC") if version else "never"


@register.inclusion_tag("admin/status_panel.html", takes_context=True)
def status_panel(context: dict[str, Any]) -> dict[str, Any]:
    """The service at a glance, for those who may see jobs."""
    if not context["request"].user.has_perm("memory.view_job"):
        return {}
    try:
        return {"status": status.read(), "watch": watchdog.read()}
    except DatabaseError:
        return {"away": True}
