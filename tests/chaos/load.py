"""Clients that write, change, delete, erase and read, and write down what they were told."""

from __future__ import annotations

import random
import threading
import uuid
from typing import Any

import requests

from tests.chaos.history import Erase, Fact, History, Person, Read, now

THINGS = ("goats", "cats", "lamps", "kites", "drums", "stamps", "mèo", "cà phê")
CONSISTENCIES = ("strict", "strict", "strict", "fresh", "bounded", "eventual")
MAX_AGE_MS = 500
PATIENCE_SECONDS = 20
"""How long a client tries a write again with its Idempotency-Key."""


def query(person: Person) -> str:
    """A question that every fact of the person answers."""
    return f"note of {person.user} in project {person.project}"


def _ended(answer: requests.Response) -> bool:
    """Whether an earlier try was accepted, and its user erased since, or its job failed: no later one says more."""
    return answer.status_code == 410 or (answer.status_code == 502 and answer.json()["code"] == "job_failed")


class Load:
    """Writers and readers over one service, until `stop`. `keys` are the projects' API keys."""

    def __init__(self, url: str, keys: dict[int, str], history: History, seed: int, *, erases: bool) -> None:
        self._url, self._keys, self.history = url, keys, history
        self._people = list(history.facts)
        self._over = threading.Event()
        jobs = [self._write] * 3 + [self._read] * 3 + [self._delete] + ([self._erase] if erases else [])
        self._threads = [
            threading.Thread(target=self._repeat, args=(job, random.Random(f"{seed}/{n}")))
            for n, job in enumerate(jobs)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing new; writes under way are tried until they are accepted or patience ends."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, job: Any, chance: random.Random) -> None:
        with requests.Session() as session:
            while not self._over.wait(chance.uniform(0.01, 0.1)):
                job(session, chance)

    def ask(self, session: requests.Session, method: str, path: str, person: Person, **more: Any) -> Any:
        """The answer; None where none came."""
        headers = {"Authorization": f"Bearer {self._keys[person.project]}", **more.pop("headers", {})}
        try:
            answer = session.request(method, f"{self._url}{path}", headers=headers, timeout=15, **more)
        except requests.RequestException:
            answer = None
        if answer is None or answer.status_code >= 429:
            with self.history.lock:
                self.history.refused += 1
        return answer

    # -- writes --------------------------------------------------------------------------------------------------------

    def _write(self, session: requests.Session, chance: random.Random) -> None:
        person = chance.choice(self._people)
        with self.history.lock:
            facts = self.history.facts[person]
            number = len(facts)
            fact = Fact(f"note {number} of {person.user} in project {person.project}: {chance.choice(THINGS)}", now())
            facts.append(fact)
        body = {"user_id": person.user, "memories": [fact.text], "wait": chance.choice(("none", "none", "stored"))}
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        while fact.accepted is None and now() < fact.sent + PATIENCE_SECONDS:
            answer = self.ask(session, "POST", "/api/v1/memory/add", person, json=body, headers=headers)
            if answer is not None and answer.status_code in (200, 202):
                told = answer.json()
                fact.job, moment = told["job_id"], now()
                fact.stored = moment if told["status"] == "completed" else None
                fact.accepted = moment
            elif answer is not None and _ended(answer):
                return
            elif answer is not None and answer.status_code < 429:
                raise AssertionError(f"a write was refused: {answer.status_code} {answer.text[:300]}")
            else:
                self._over.wait(0.2)

    def _delete(self, session: requests.Session, chance: random.Random) -> None:
        person = chance.choice(self._people)
        answer = self._search(session, person, "strict")
        rows = [row for row in answer["results"] if not row.get("pending")] if answer else []
        if not rows or chance.random() < 0.5:
            return
        row = chance.choice(rows)
        fact = next((one for one in self.history.facts[person] if one.text == row["memory"]), None)
        if fact is None or fact.delete_sent is not None:
            return
        fact.delete_sent = now()
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        while fact.delete_accepted is None and now() < fact.delete_sent + PATIENCE_SECONDS:
            done = self.ask(session, "DELETE", f"/api/v1/memory/{row['id']}", person, headers=headers)
            if done is not None and done.status_code in (200, 202):
                told, moment = done.json(), now()
                fact.deleted = moment if told["status"] == "completed" else None
                fact.delete_accepted = moment
            elif done is not None and (done.status_code in (404, 409) or _ended(done)):
                return
            else:
                self._over.wait(0.2)

    def _erase(self, session: requests.Session, chance: random.Random) -> None:
        if self._over.wait(chance.uniform(1, 4)):
            return
        person = chance.choice(self._people)
        with self.history.lock:
            erase = Erase(now())
            self.history.erases[person].append(erase)
        while erase.returned is None and now() < erase.sent + PATIENCE_SECONDS:
            answer = self.ask(session, "DELETE", f"/api/v1/users/{person.user}", person)
            if answer is not None and answer.status_code == 200:
                erase.returned = now()
            else:
                self._over.wait(0.2)
        self._over.wait(30)

    # -- reads ---------------------------------------------------------------------------------------------------------

    def _read(self, session: requests.Session, chance: random.Random) -> None:
        self._search(session, chance.choice(self._people), chance.choice(CONSISTENCIES))

    def _search(self, session: requests.Session, person: Person, consistency: str) -> Any:
        body = {"user_id": person.user, "query": query(person), "top_k": 100, "consistency": consistency}
        if consistency == "bounded":
            body["max_age_ms"] = MAX_AGE_MS
        sent = now()
        answer = self.ask(session, "POST", "/api/v1/memory/search", person, json=body)
        if answer is None:
            return None
        read = Read(person, consistency, MAX_AGE_MS / 1000, sent, now(), answer.status_code)
        told = answer.json()
        if answer.status_code == 200:
            read.texts, read.meta = [row["memory"] for row in told["results"]], told["meta"]
            read.pending = [row["memory"] for row in told["results"] if row["pending"]]
        with self.history.lock:
            self.history.reads.append(read)
        return told if answer.status_code == 200 else None
