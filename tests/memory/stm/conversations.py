"""What twenty people say in Vietnamese, and a hundred questions about it: our own writing, in `conversations.txt`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

REPLIES = ("Dạ, tôi nhớ rồi.", "Nghe thú vị quá!", "Vâng, bạn kể thêm đi.", "Thế à, chúc bạn mọi việc suôn sẻ.")


@dataclass
class Person:
    """What one person says in three sessions, and questions with the statement that answers each."""

    name: str
    sessions: list[list[str]] = field(default_factory=list)
    telling: list[str] = field(default_factory=list)
    questions: list[tuple[str, str]] = field(default_factory=list)

    @property
    def talk(self) -> list[tuple[str, str]]:
        """Everything that was said, as (role, text): an assistant answers each time, and tells nothing."""
        talk = []
        for session in self.sessions:
            for text in session:
                talk += [("user", text), ("assistant", REPLIES[len(talk) // 2 % len(REPLIES)])]
        return talk


def people() -> list[Person]:
    """The twenty."""
    found: list[Person] = []
    for line in (Path(__file__).parent / "conversations.txt").read_text(encoding="utf-8").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "@":
            found.append(Person(rest))
        elif kind == "=":
            found[-1].sessions.append([])
        elif kind in "-~":
            found[-1].sessions[-1].append(rest)
            found[-1].telling += [rest] if kind == "-" else []
        elif kind == "?":
            text, _, number = rest.rpartition(" ")
            found[-1].questions.append((text, found[-1].telling[int(number) - 1]))
    return found
