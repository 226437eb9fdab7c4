"""What to hand to an LLM of a session: its tiers and what is on its way to Mem0, within a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memory.models import Message, Session, Tier
from memory.pending import Item
from memory.stm import tokens
from memory.text import normalised

OVERHEAD = 4
"""Tokens that a message costs beside its text."""


@dataclass(frozen=True, slots=True)
class Context:
    """A session's tiers as they fit; `cut` when something was left out."""

    session: Session
    turns: list[Message]
    summary: tuple[Tier, str] | None
    compressed: tuple[Tier, str] | None
    pending: list[Item]
    tokens: dict[str, int]
    cut: bool


def build(session: Session, unstored: tuple[Item, ...], max_tokens: int | None = None) -> Context:
    """The newest turns come first, then what is on its way, the summary and the compressed rest, as room is left."""
    tiers = {tier.name: tier for tier in session.tiers.all()}
    summarised = max((tier.last for tier in tiers.values()), default=0)
    said = list(session.messages.filter(turn__gt=summarised).order_by("turn"))
    room = _Room(max_tokens)
    turns = [one for one in reversed(said) if room.take("full", one.tokens + OVERHEAD)][::-1]
    told = {normalised(one.content) for one in turns}
    others = [one for one in unstored if normalised(one.text) not in told]
    items = [one for one in others if room.take("pending", tokens.count(one.text))]
    summary = _fitted(tiers.get("summary"), room)
    compressed = _fitted(tiers.get("compressed"), room)
    return Context(session, turns, summary, compressed, items, room.used, room.short)


def chat(context: Context) -> list[dict[str, str]]:
    """The same as chat messages: earlier turns and pending facts as one system message, then the turns."""
    told = []
    if context.compressed:
        told.append(f"Earlier in this conversation, in short:\n{context.compressed[1]}")
    if context.summary:
        told.append(f"Before the messages below:\n{context.summary[1]}")
    if context.pending:
        told.append("Also known of the user:\n" + "\n".join(f"- {item.text}" for item in context.pending))
    first = [{"role": "system", "content": "\n\n".join(told)}] if told else []
    # A tool's message needs the call it answers, which nobody keeps: it is told as the system's.
    return [*first, *({"role": _role(one), "content": one.content} for one in context.turns)]


class _Room:
    def __init__(self, most: int | None) -> None:
        self.left = most
        self.used = {"full": 0, "summary": 0, "compressed": 0, "pending": 0}
        self.short = False
        self._closed: set[str] = set()

    def take(self, name: str, size: int) -> bool:
        """Room for one more; once something did not fit, nothing older of its kind does."""
        if name in self._closed or (self.left is not None and size > self.left):
            self._closed.add(name)
            self.short = True
            return False
        self.left = None if self.left is None else self.left - size
        self.used[name] += size
        return True


def _fitted(tier: Tier | None, room: _Room) -> tuple[Tier, str] | None:
    """As many of a tier's newest lines as there is room for."""
    if tier is None or not tier.text:
        return None
    lines = [line for line in reversed(tier.text.split("\n")) if room.take(tier.name, tokens.count(line) + 1)]
    return (tier, "\n".join(reversed(lines))) if lines else None


def _role(message: Message) -> Any:
    return "system" if message.role == "tool" else message.role
