"""What clients did and were told during one run: the model of the truth."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

now = time.monotonic


class Person(NamedTuple):
    """A user of a project; two projects have users of the same ids."""

    project: int
    user: str


@dataclass
class Fact:
    """One text that a client asked to store. Times are of this machine's monotonic clock; None: not (yet) so."""

    text: str
    sent: float
    accepted: float | None = None
    """When the write was answered 2xx."""
    stored: float | None = None
    """When its job was known to be completed."""
    job: str = ""
    delete_sent: float | None = None
    delete_accepted: float | None = None
    deleted: float | None = None
    """When the delete's job was known to be completed."""


@dataclass
class Erase:
    """One erase of a person."""

    sent: float
    returned: float | None = None


@dataclass
class Read:
    """One search and what it was answered."""

    person: Person
    consistency: str
    max_age: float
    sent: float
    answered: float
    status: int
    texts: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    """Those of them that were shown as on their way to Mem0."""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class History:
    """Everything of one run. Facts are appended before they are sent."""

    facts: dict[Person, list[Fact]]
    erases: dict[Person, list[Erase]]
    reads: list[Read] = field(default_factory=list)
    refused: int = 0
    """Requests answered 5xx, 429 or not at all."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, people: list[Person]) -> History:
        """An empty one."""
        return cls({person: [] for person in people}, {person: [] for person in people})
