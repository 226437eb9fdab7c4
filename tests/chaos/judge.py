"""The guarantees, G1 to G9, held against one run's history and what Mem0 has afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from tests.chaos.history import Fact, History, Person, Read


def reads(history: History) -> Iterator[str]:
    """What is wrong with the answers."""
    for read in history.reads:
        if read.status == 200:
            yield from _told(read)
            yield from _foreign(read)
            yield from _fresh(read, history)
        elif read.status not in (429, 502, 503, 504):
            yield f"a read was answered {read.status}"


def _told(read: Read) -> Iterator[str]:
    if read.meta["degraded"] and (not read.meta["reason"] or read.meta["age_ms"] is None):
        yield f"G8: degraded without why or how old: {read.meta}"
    if read.meta["stale"] and not read.meta["degraded"] and read.consistency in ("strict", "fresh"):
        yield f"G8: a {read.consistency} answer is stale and not degraded: {read.meta}"


def _foreign(read: Read) -> Iterator[str]:
    mine = f"of {read.person.user} in project {read.person.project}:"
    for text in read.texts:
        if mine not in text:
            yield f"G1: {read.person} was shown {text!r}"


def _fresh(read: Read, history: History) -> Iterator[str]:
    """G2 for strict and fresh, G5 for bounded; G6 for all that say nothing of being degraded or stale."""
    person, shown = read.person, set(read.texts)
    if read.meta["degraded"]:
        return
    limits = {"strict": 0.0, "fresh": 0.0, "bounded": read.max_age}
    if read.consistency in limits:
        since = read.sent - limits[read.consistency]
        name = "G5" if read.consistency == "bounded" else "G2"
        for fact in history.facts[person]:
            if _surely_there(fact, history, person, since, read.answered) and fact.text not in shown:
                yield f"{name}: {read.consistency} from {read.meta['layer']} misses {fact.text!r}: {read.meta}"
            if fact.deleted is not None and fact.deleted < since and fact.text in shown:
                how = "pending" if fact.text in read.pending else read.meta["layer"]
                yield f"{name}: {read.consistency} from {how} shows deleted {fact.text!r}: {read.meta}"
    for fact in history.facts[person]:
        if fact.text in shown and _surely_erased(fact, history, person, read.sent):
            yield f"G6: {read.consistency} from {read.meta['layer']} shows the erased {fact.text!r}: {read.meta}"


def _surely_there(fact: Fact, history: History, person: Person, since: float, until: float) -> bool:
    """Stored before `since`, and nothing asked to remove it before `until`."""
    if fact.stored is None or fact.stored >= since:
        return False
    if fact.delete_sent is not None and fact.delete_sent < until:
        return False
    return not any(
        erase.sent < until and (erase.returned is None or erase.returned > fact.sent)
        for erase in history.erases[person]
    )


def _surely_erased(fact: Fact, history: History, person: Person, before: float) -> bool:
    """Accepted before an erase was asked for that had returned by then."""
    return fact.accepted is not None and any(
        fact.accepted < erase.sent and erase.returned is not None and erase.returned < before
        for erase in history.erases[person]
    )


def stored(
    history: History, found: Mapping[Person, Sequence[str]], failed: Collection[str], ended: float
) -> Iterator[str]:
    """What is wrong with Mem0 once everything is quiet: G3, G4 and G6. `failed` are jobs that ended so."""
    for person, facts in history.facts.items():
        counts = Counter(found[person])
        known = {fact.text for fact in facts}
        for text in counts.keys() - known:
            yield f"G1: Mem0 holds {text!r} for {person}"
        for fact in facts:
            yield from _kept(fact, history, person, counts[fact.text], failed, ended)


def _kept(
    fact: Fact, history: History, person: Person, count: int, failed: Collection[str], ended: float
) -> Iterator[str]:
    if count > 1:
        yield f"G4: Mem0 holds {fact.text!r} {count} times"
    if count and _surely_erased(fact, history, person, ended):
        yield f"G6: Mem0 holds the erased {fact.text!r}"
    if count and fact.delete_accepted is not None:
        yield f"G3: Mem0 holds {fact.text!r}, whose delete was accepted"
    wanted = fact.accepted is not None and fact.delete_sent is None and fact.job not in failed
    spared = all(erase.returned is not None and erase.returned < fact.sent for erase in history.erases[person])
    if wanted and spared and not count:
        yield f"G3: {fact.text!r} was accepted and is not in Mem0"


def settled(person: Person, read: Read, found: Sequence[str]) -> Iterator[str]:
    """A strict answer once everything is quiet is what Mem0 holds."""
    if read.status != 200 or read.meta["degraded"]:
        yield f"after the faults a read of {person} is answered {read.status} {read.meta}"
    elif sorted(read.texts) != sorted(found):
        missing, more = set(found) - set(read.texts), set(read.texts) - set(found)
        yield f"G2: after the faults {person} is not shown {missing}, and shown {more}: {read.meta}"
