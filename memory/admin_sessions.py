"""The operator's page of sessions: what short-term memory holds of whom, and an end to it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from memory.admin_base import PAYLOAD_PERMISSION, Act, Shown
from memory.models import Session
from memory.stm import context, lifecycle


def _end(request: HttpRequest, session: Session) -> str | None:
    return "ended." if lifecycle.end(session.pk) else None


@admin.register(Session)
class SessionAdmin(Shown):
    """Conversations. What was said is seen only by those who may see payloads."""

    list_display = ("session_id", "user_id", "project", "turns", "summarised", "extracted", "raw_tokens", "last_at")
    list_filter = ("project",)
    list_select_related = ("project",)
    ordering = ("-last_at",)
    sortable_by = ()
    search_fields = ("session_id", "user_id")
    search_help_text = "Part of a session's id or of a user's."
    fieldsets = (
        (None, {"fields": ("session_id", "user_id", "project", "started_at", "last_at", "ends")}),
        ("Turns", {"fields": ("turns", "summarised", "extracted", "version", "busy_until")}),
        ("Tiers", {"fields": ("tiers", "tokens", "raw_tokens")}),
        ("What", {"fields": ("said",)}),
    )
    acts = (
        Act(
            name="end",
            label="End",
            question="What is not extracted yet goes to extraction where the project asks for it; all that was said, "
            "its summaries too, is removed. This cannot be undone.",
            permission="memory.delete_session",
            run=_end,
        ),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """What was said is left out for those who may not see payloads."""
        return self.fieldsets if request.user.has_perm(PAYLOAD_PERMISSION) else self.fieldsets[:-1]

    @admin.display(description="ends, if nothing more is said")
    def ends(self, session: Session) -> datetime:
        """When its time is over."""
        return session.last_at + timedelta(hours=settings.STM_SESSION_HOURS)

    @admin.display(description="tokens of its context")
    def tokens(self, session: Session) -> str:
        """By tier, as an estimate."""
        used = context.build(session, ()).tokens
        parts = ", ".join(f"{name} {count}" for name, count in used.items() if name != "pending")
        return f"{sum(used.values())} ({parts})"

    @admin.display(description="older turns")
    def tiers(self, session: Session) -> str | SafeString:
        """Which turns each tier tells of, and who wrote it."""
        held = session.tiers.order_by("first").values_list("name", "first", "last", "tokens", "made_by")
        rows = format_html_join("", "<li>{}: turns {} to {}, {} tokens, by {}</li>", held)
        return format_html("<ul>{}</ul>", rows) if rows else "none yet: every turn is held in full"

    @admin.display(description="its context")
    def said(self, session: Session) -> SafeString:
        """What is handed to an LLM of it, pending facts left out."""
        told = ((one["role"], one["content"]) for one in context.chat(context.build(session, ())))
        return format_html('<pre class="json">{}</pre>', format_html_join("\n\n", "{}: {}", told))
