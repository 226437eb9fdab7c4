"""The native API over sessions: short-term memory."""

from __future__ import annotations

from typing import Any, NoReturn

from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from memory import pending
from memory.api import bodies
from memory.api import serializers as shown
from memory.api.documented import operation
from memory.api.native import Door
from memory.models import Session, Tier
from memory.stm import context, lifecycle, store
from memory.stm.store import Said
from memory.stm.tiers import SUMMARY
from memory.tenancy.auth import admit, may_see
from memory.types import Scope


class AddMessage(Door):
    """Something was said."""

    @operation(
        "stm_add_message",
        "Keep one message of a session, or several in their order",
        {200: shown.Said},
        body=bodies.ADD_MESSAGE,
        problems=(409, 413, 415),
    )
    def post(self, request: Request) -> Response:
        """Keep it."""
        sent = bodies.said(request)
        user_id = sent.get("user_id", self.caller.user_id)
        admit(self.caller, user_id)
        said = [
            Said(one["role"], one["content"], one.get("metadata", {}), one.get("message_id"))
            for one in sent["messages"]
        ]
        done = store.add(sent["session_id"], user_id, said, self.policy)
        held = done.session
        return Response(
            {
                "session_id": held.session_id,
                "user_id": held.user_id,
                "turn": done.turns[-1],
                "turns": done.turns,
                "tiers": {
                    "full": held.turns - held.summarised,
                    "summary": min(held.summarised, SUMMARY),
                    "compressed": max(0, held.summarised - SUMMARY),
                },
            },
        )


class SessionDoor(Door):
    """Routes of one session."""

    def session(self, session_id: str) -> Session:
        """The session in the path, if there is one and the caller may know."""
        found = store.find(self.caller.project, bodies.ident("session_id", session_id))
        if found is None or not may_see(self.caller, found.user_id):
            _no_session()
        return found


class OneSession(SessionDoor):
    """A session by its id."""

    @operation("stm_end", "End a session", {200: shown.SessionEnded}, path=("session_id",))
    def delete(self, request: Request, session_id: str) -> Response:
        """End it as its time would: extraction where the project asks for it, then its messages go."""
        bodies.query(request, bodies.NOTHING)
        held = self.session(session_id)
        if not lifecycle.end(held.pk):
            _no_session()
        return Response({"session_id": held.session_id, "user_id": held.user_id, "ended": True})


class Context(SessionDoor):
    """What to hand to an LLM."""

    @operation(
        "stm_context",
        "What to hand to an LLM of a session",
        {200: shown.SessionContext},
        query=bodies.CONTEXT,
        path=("session_id",),
    )
    def get(self, request: Request, session_id: str) -> Response:
        """Its tiers and the pending facts, as tiers or as chat messages."""
        asked = bodies.query(request, bodies.CONTEXT)
        held = self.session(session_id)
        scope = Scope(held.project_id, held.user_id)
        unstored = pending.current(scope.pin, self.policy.generation).of(scope)
        elsewhere = tuple(item for item in unstored if item.session != held.session_id)
        found = context.build(held, elsewhere, asked.get("max_tokens"))
        chat = {"messages": context.chat(found)} if asked["format"] == "openai" else _tiers(found)
        return Response(
            {
                "session_id": held.session_id,
                "user_id": held.user_id,
                "turns": held.turns,
                "tokens": {**found.tokens, "total": sum(found.tokens.values()), "raw": held.raw_tokens},
                "cut": found.cut,
                **chat,
            },
        )


def _tiers(found: context.Context) -> dict[str, Any]:
    full = [
        {
            "turn": one.turn,
            "role": one.role,
            "content": one.content,
            "metadata": one.metadata,
            "created_at": one.created_at,
        }
        for one in found.turns
    ]
    told = [
        {
            "id": one.id,
            "memory": one.text,
            "job_id": one.job or None,
            "failed": one.failed,
            "created_at": one.accepted_at,
        }
        for one in found.pending
    ]
    tiers = {"full": full, "summary": _tier(found.summary), "compressed": _tier(found.compressed)}
    return {"tiers": tiers, "pending": told}


def _tier(held: tuple[Tier, str] | None) -> dict[str, Any] | None:
    if held is None:
        return None
    tier, text = held
    return {"first_turn": tier.first, "last_turn": tier.last, "text": text, "made_by": tier.made_by}


def _no_session() -> NoReturn:
    raise NotFound("There is no session with this id, or it has ended.")
