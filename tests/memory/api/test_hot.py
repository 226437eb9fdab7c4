"""The hot path beside the view: whatever is asked, in whatever state, nobody can tell which of them answered."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from django.core.handlers.wsgi import WSGIHandler
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rest_framework.exceptions import APIException, ValidationError

from memory import clock, metrics, refreshing, stack, versions
from memory import keys as names
from memory.api import bodies
from memory.api.hot import ROUTES, Hot
from memory.layers.base import encode, pack
from memory.logs import JSONFormatter
from memory.models import ApiKey, Project
from memory.stm import search as session
from memory.stm import store
from memory.stm.store import Said
from memory.tenancy import keys, limits, projects
from memory.types import Entry, Memory, Pin, Query, Scope, Version

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = 60
FAR = 1_000_000_000
"""Microseconds that no test lasts."""
DAY = "2000-01-01"

GOOD: dict[str, list[Any]] = {
    "user_id": ["ann", "ben"],
    "query": ["drink?", " drink? ", "cà phê", "ca\u0300 phe\u0302"],
    "top_k": [1, 10],
    "threshold": [0, -0.0, 0.5],
    "agent_id": ["a"],
    "filters": [{}, {"room": "kitchen"}],
    "consistency": ["strict", "strict", "eventual", "fresh"],
    "min_version": ["user:{version}", "user:{later}"],
    "explain": [True, False],
    "session_id": ["s", "s", "another"],
    "timeout_ms": [5000],
}
ODD_FIELDS: list[dict[str, Any]] = [
    *({"user_id": value} for value in ("", " ", "*", 5, None, "a b", "a\0", "x" * 600)),
    *({"query": value} for value in ("", "   ", 5, None, ["drink?"])),
    *({"top_k": value} for value in (0, True, "10", 1.5, 10**6)),
    *({"threshold": value} for value in (2, "0.5", True)),
    *({"consistency": value} for value in ("lax", 1, None, "bounded")),
    *({"max_age_ms": value} for value in (5000, 0)),
    *({"consistency": "bounded", "max_age_ms": value} for value in (0, -1, 10**6, "5", None)),
    *({"min_version": value} for value in ("agent:1", "1", 1)),
    *({"filters": value} for value in ({"user_id": "ben"}, [], "x")),
    {"session_id": "s"},
    {"colour": "red"},
]
SPOILT: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("broken", b'{"user_id": "ann", "query": "dri'),
    ("list", b"[]"),
    ("infinite", b'{"user_id": "ann", "query": "drink?", "threshold": NaN}'),
    ("surrogate", b'{"user_id": "ann", "query": "\\ud800"}'),
    ("latin", '{"user_id": "ann", "query": "cà phê"}'.encode("latin-1")),
    ("twice", b'{"user_id": "ben", "user_id": "ann", "query": "no", "query": "drink?"}'),
    ("marked", b'\xef\xbb\xbf{"user_id": "ann", "query": "drink?"}'),
    ("deep", b"[" * 2000),
]
ODD_HEADERS: list[dict[str, Any]] = [
    *({"REQUEST_METHOD": value} for value in ("GET", "PUT", "OPTIONS", "HEAD", "post")),
    *({"PATH_INFO": value} for value in ("/api/v1/memory/search/", "/api/v1/memory/search//", "/api/v1/memory/Search")),
    *({"QUERY_STRING": value} for value in ("a=1", "format=json", "&")),
    *({"CONTENT_TYPE": value} for value in ("application/json; charset=utf-8", "application/json; charset=latin-1")),
    *({"CONTENT_TYPE": value} for value in ("text/plain", "APPLICATION/JSON", None, "multipart/form-data; boundary=x")),
    *({"CONTENT_LENGTH": value} for value in ("5", "x", "", None, "-1", "9999999999", "\xb2")),
    {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": None},
    *({"HTTP_HOST": value} for value in ("elsewhere", "testserver:80", "a b", None)),
    *({"HTTP_X_FORWARDED_PROTO": value} for value in ("https", "http", "https, http")),
    {"wsgi.url_scheme": "https"},
    *({"HTTP_X_REQUEST_ID": value} for value in ("mine", "not mine", "x" * 200, "")),
    *({"HTTP_ACCEPT": value} for value in ("text/html", "application/xml;q=1")),
    {"HTTP_X_HTTP_METHOD_OVERRIDE": "GET"},
    {"HTTP_COOKIE": "sessionid=x; csrftoken=y"},
    {"SCRIPT_NAME": "/under"},
]
ODD_KEYS: list[dict[str, str | None]] = [
    {"HTTP_AUTHORIZATION": None},
    *({"HTTP_AUTHORIZATION": value} for value in ("Basic eDp5", "Bearer", "Bearer ", "Bearer wrong", "Bearer \xff")),
    *({"HTTP_AUTHORIZATION": f"{scheme} {{secret}}"} for scheme in ("Token", "bearer", " Bearer ")),
    {"HTTP_AUTHORIZATION": None, "HTTP_X_API_KEY": "{secret}"},
    {"HTTP_AUTHORIZATION": "", "HTTP_X_API_KEY": " {secret} "},
    {"HTTP_AUTHORIZATION": "Token wrong", "HTTP_X_API_KEY": "{secret}"},
]
KEYS = ("every", "every", "reader", "writer", "of ann", "limited", "revoked", "elsewhere")


@dataclass(frozen=True)
class State:
    """What the process and CACHE hold when a request comes."""

    l0: str = "none"
    l2: str = "none"
    version: str = "held"
    pending: str = "nobody"
    confirmed: float = 0.0
    left: int = 2
    forgotten: str = "nothing"
    session: str = "none"


NATIVE, PLATFORM, OSS = "/api/v1/memory/search", "/v2/memories/search/", "/search"
IN_MEM0S_WORDS: list[dict[str, Any]] = [
    {"query": "drink?", "user_id": "ann"},
    {"query": "drink?", "filters": {"user_id": "ann"}},
    {"query": "drink?", "filters": {"AND": [{"user_id": "ann"}, {"room": "kitchen"}]}},
    {"query": "drink?", "filters": {"OR": [{"user_id": "ann"}, {"user_id": "ben"}]}},
    {"query": "drink?", "filters": {"user_id": "*"}},
    {"query": "cà phê", "user_id": "ben", "limit": 3, "output_format": "v1.1"},
    {"query": "drink?", "user_id": "ann", "top_k": 5, "fields": ["memory"], "threshold": 0.1},
    {"query": "drink?", "user_id": "ann", "top_k": 0},
    {"query": "drink?", "user_id": "ann", "show_expired": True},
    {"query": "drink?", "user_id": "ann", "categories": ["food"]},
    {"query": "drink?", "user_id": 5},
    {"query": "", "user_id": "ann"},
    {"query": "drink?"},
    {"query": "drink?", "filters": ["user_id"]},
    {"query": "drink?", "agent_id": "a"},
]


@dataclass(frozen=True)
class Asked:
    """One request."""

    key: str = "every"
    body: bytes | Mapping[str, Any] = field(default_factory=lambda: {"user_id": "ann", "query": "drink?"})
    headers: Mapping[str, str | None] = field(default_factory=dict)
    path: str = NATIVE


ENTRIES = ("current", "behind", "expired", "local")
STATES = st.builds(
    State,
    l0=st.sampled_from(("none", *ENTRIES)),
    l2=st.sampled_from(("none", *ENTRIES, "current", "ahead", "torn")),
    version=st.sampled_from(("held", "held", "held", "none")),
    pending=st.sampled_from(("nobody", "nobody", "nobody", "none", "a job", "a fact", "another's")),
    confirmed=st.sampled_from((0.0, 4.0, 60.0)),
    left=st.sampled_from((2, 1, 0, -1)),
    forgotten=st.sampled_from(("nothing", "nothing", "nothing", "key", "policy")),
    session=st.sampled_from(("none", "stm.L0", "stm.L1", "moved")),
)


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    """Mostly as they should be, with one thing odd here and there."""
    if draw(st.integers(0, 3)) == 0:
        odd_headers = draw(st.sampled_from(({}, {}, *ODD_KEYS, *ODD_HEADERS)))
        path = draw(st.sampled_from((PLATFORM, PLATFORM[:-1].replace("2", "1"), OSS, OSS + "/")))
        return Asked(draw(st.sampled_from(KEYS)), draw(st.sampled_from(IN_MEM0S_WORDS)), odd_headers, path)
    chosen = ["user_id", "query", *draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=2))]
    body: Any = {name: draw(st.sampled_from(GOOD[name])) for name in chosen}
    if draw(st.integers(0, 3)) == 0:
        body |= {"consistency": "bounded", "max_age_ms": 5000}
    headers: dict[str, Any] = {}
    odd = draw(st.sampled_from(("nothing", "nothing", "nothing", "field", "body", "header", "key")))
    if odd == "field":
        body |= draw(st.sampled_from(ODD_FIELDS))
    elif odd == "body":
        body = draw(st.sampled_from(SPOILT))[1]
    elif odd == "header":
        headers = draw(st.sampled_from(ODD_HEADERS))
    elif odd == "key":
        headers = draw(st.sampled_from(ODD_KEYS))
    return Asked(draw(st.sampled_from(KEYS)), body, headers)


class World:
    """A project with keys of every sort, what Ann's and Ben's memories are at, and both ways to the answer."""

    def __init__(self, project: Project, cache: Any) -> None:
        self.project, self._cache = project, cache
        elsewhere = Project.objects.create(name="Elsewhere", slug="elsewhere", namespace="elsewhere")
        self.keys = {
            "every": self._key(project),
            "reader": self._key(project, scopes=["read"]),
            "writer": self._key(project, scopes=["write"]),
            "of ann": self._key(project, user_id="ann"),
            "limited": self._key(project, requests_per_minute=LIMIT),
            "revoked": self._key(project),
            "elsewhere": self._key(elsewhere),
        }
        said = [Said("user", "Is there any cold tea to drink?", {}), Said("user", "I had tea.", {})]
        store.add("s", "ann", said, projects.policy(project.pk))
        pins = [Pin(one.pk, "user", name) for one in (project, elsewhere) for name in ("ann", "ben")]
        pins += [Pin(one.pk, "agent", "a") for one in (project, elsewhere)]
        self.versions = {version.pin: version.number for version in versions.move(pins)}
        ApiKey.objects.filter(pk=self.keys["revoked"][0].pk).update(revoked_at="2026-01-01T00:00Z")
        self.left_to_django = 0
        self.django = WSGIHandler()
        self.hot = Hot(self._counting)

    def _key(self, project: Project, **more: Any) -> tuple[ApiKey, str]:
        return keys.create(project, name="test", **({"scopes": keys.SCOPES} | more))

    def _counting(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.left_to_django += 1
        return self.django(environ, start_response)

    # -- a request ----------------------------------------------------------------------------------------------------

    def environ(self, asked: Asked) -> dict[str, Any]:
        raw = self.raw(asked)
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": asked.path,
            "SCRIPT_NAME": "",
            "QUERY_STRING": "",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(raw)),
            "HTTP_HOST": "testserver",
            "HTTP_AUTHORIZATION": "Bearer {secret}",
            "SERVER_NAME": "testserver",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(raw),
            "wsgi.errors": io.StringIO(),
        }
        secret = self.keys[asked.key][1]
        for name, value in (environ | asked.headers).items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value.replace("{secret}", secret) if isinstance(value, str) else value
        return environ

    def raw(self, asked: Asked) -> bytes:
        if isinstance(asked.body, bytes):
            return asked.body
        number = self.versions[self.query(asked, told=False).scope.pin]
        text = orjson.dumps(asked.body).decode()
        return text.replace("{version}", str(number)).replace("{later}", str(number + 10)).encode()

    def query(self, asked: Asked, *, told: bool = True) -> Query:
        """What is asked, or else what mostly is."""
        project = self.keys[asked.key][0].project_id
        if told and asked.path != NATIVE:
            caller = keys.Caller(0, project, frozenset())
            try:
                return ROUTES[asked.path][1].wanted(asked.body, caller).queries[0]
            except (APIException, IndexError):
                return Query(Scope(project, "ann"), "drink?")
        try:
            sent = bodies.searched(orjson.loads(self.raw(asked))) if told else {}
        except (ValidationError, ValueError):
            sent = {}
        user = sent.get("user_id") or (asked.body.get("user_id") if isinstance(asked.body, dict) else None)
        scope = Scope(project, user if user in ("ann", "ben") else "ann", sent.get("agent_id"))
        text = sent.get("query", "drink?")
        return Query(scope, text, sent.get("top_k", 10), sent.get("threshold"), sent.get("filters", ""))

    # -- the state it finds -------------------------------------------------------------------------------------------

    def prepare(self, state: State, query: Query, key: str) -> None:
        """The same state every time."""
        pin = query.scope.pin
        number, generation = self.versions[pin], 1
        seconds, micros = self._cache.time()
        now = seconds * 1_000_000 + micros
        self._cache.flushall()
        pending = {"nobody": b"[0,[]]", "a job": b"[1,[]]", "a fact": _fact(None), "another's": _fact("b")}
        if state.pending != "none":
            self._cache.set(names.pending(pin, generation), pending[state.pending])
        if state.version == "held":
            self._cache.set(names.version(pin, generation), f"{number}:0")
        if state.l2 != "none":
            stored = b"torn" if state.l2 == "torn" else pack(_entry(state.l2, number, now))
            self._cache.set(names.result(pin, generation, query.fingerprint), stored)
        stack.L0.held.clear()
        if state.l0 != "none":
            confirmed = clock.now() - state.confirmed
            stack.L0.put(query, _entry(state.l0, number, now), Version(pin, number, 0, confirmed), generation, now)
        self._talk(state, query)
        self._remember(state, key)

    def _talk(self, state: State, query: Query) -> None:
        """What Ann has said, as another search of the same has left it."""
        session.forget()
        if state.session == "none":
            return
        policy = projects.policy(query.scope.project)
        session.look("s", query, policy)
        if state.session == "stm.L1":
            session.forget()
        if state.session == "moved":
            self._cache.delete(names.session(query.scope.pin, policy.generation, "s"))

    def _remember(self, state: State, key: str) -> None:
        for module in (keys, projects, limits):
            module.forget()
        row, secret = self.keys[key]
        if state.forgotten != "key":
            keys.authenticate(secret)
        if state.forgotten != "policy":
            projects.policy(row.project_id)
        if state.left > 0:
            limits._blocks[row.pk] = limits._Block(LIMIT, state.left, 5, clock.now() + FAR)
        elif state.left < 0:
            spent = {"tokens": -LIMIT, "at": self._cache.time()[0] * 1000, "limit": LIMIT}
            self._cache.hset(names.rate(row.pk), mapping=spent)

    def allowed(self, asked: Asked, state: State) -> list[list[str]]:
        """What may be served of the entries, by what is asked of freshness."""
        wish = asked.body.get("consistency") if isinstance(asked.body, dict) else None
        if wish == "eventual":
            return [["current"], ["behind"], ["ahead"]]
        return [["current"], *([["behind"]] if wish == "bounded" and state.confirmed < 5 else [])]

    # -- what comes of it ---------------------------------------------------------------------------------------------

    def told(self, application: Callable[..., Any], asked: Asked, state: State) -> dict[str, Any]:
        """Everything that can be noticed of one request."""
        query = self.query(asked)
        self.prepare(state, query, asked.key)
        confirmed = [held.confirmed_at for _, held, _ in stack.L0.held.items()]
        metrics.drain()
        lines: list[str] = []
        answered: list[Any] = []
        with _listening(lines):
            parts = application(self.environ(asked), lambda status, headers: answered.append((status, headers)))
            body = b"".join(parts)
            if hasattr(parts, "close"):
                parts.close()
            refreshing.settle()
        ((status, headers),) = answered
        length = dict(headers).get("Content-Length")
        own_id = asked.headers.get("HTTP_X_REQUEST_ID") == "mine"
        return {
            "status": status,
            "headers": sorted(
                (name, _timeless(value, own_id=own_id)) for name, value in headers if name != "Content-Length"
            ),
            "whole": length is None or int(length) == len(body) or not body,
            "body": _timeless(body.decode(), own_id=own_id),
            "counted": _counts(metrics.drain()),
            "logged": [_line(line, own_id=own_id) for line in lines],
            "allowed": {key: (block.left, block.beyond) for key, block in limits._blocks.items()},
            "held": [
                (pin, held.entry.version, held.entry.results, held.confirmed_at in confirmed)
                for pin, held, _ in stack.L0.held.items()
            ],
        }


@pytest.fixture
def world(project: Any, redis: Any, mem0: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    settings.LOCAL_SEARCH = "off"
    settings.EMBEDDER = "none"
    settings.PROACTIVE_CACHE_ENABLED = False
    settings.ALLOWED_HOSTS = ["testserver"]
    settings.HTTPS = True
    settings.SECURE_HSTS_SECONDS = 1000
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    for module in (keys, projects):  # what is remembered stays so while a test looks
        monkeypatch.setattr(module, "FRESH_SECONDS", FAR)
    mem0.rows = [Memory(f"00000000-0000-4000-8000-00000000000{name[0]}", "tea", name) for name in ("ann", "ben")]
    return World(project, redis)


LATER = Asked(body={"user_id": "ann", "query": "drink?", "min_version": "user:{later}"})


# What Hypothesis finds in most runs, and what each guard of this path is for: in every run.
@example(asked=Asked(key="writer"), state=State(l0="current"))
@example(asked=Asked(key="limited"), state=State(l0="current"))
@example(asked=Asked(), state=State(l0="current", pending="a fact"))
@example(asked=Asked(), state=State(l0="current", pending="a job"))
@example(asked=Asked(), state=State(l2="current", pending="a fact"))
@example(asked=Asked(), state=State(l2="current", pending="a job"))
@example(asked=LATER, state=State(l0="current"))
@example(asked=LATER, state=State(l2="current"))
@given(asked=requests(), state=STATES)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nobody_can_tell_which_of_them_answered(world: World, asked: Asked, state: State) -> None:
    told = world.told(world.hot, asked, state)
    assert told == world.told(world.django, asked, state)
    assert re.findall(r'"memory":"(\w+) tea"', told["body"]) in ([], *world.allowed(asked, state))


ODDITIES = [
    *(Asked(body={"user_id": "ann", "query": "drink?"} | odd) for odd in ODD_FIELDS),
    *(Asked(body=raw) for _, raw in SPOILT),
    *(Asked(headers=odd) for odd in (*ODD_HEADERS, *ODD_KEYS)),
    *(Asked(body=body, path=path) for body in IN_MEM0S_WORDS for path in (PLATFORM, OSS)),
    *(Asked(body=IN_MEM0S_WORDS[0], headers=odd, path=PLATFORM) for odd in (*ODD_HEADERS, *ODD_KEYS)),
]


def test_each_oddity_is_answered_alike_where_an_answer_is_at_hand(world: World) -> None:
    state = State(l0="current", l2="current")
    for asked in ODDITIES:
        assert world.told(world.hot, asked, state) == world.told(world.django, asked, state), asked


BOUNDED = {"user_id": "ann", "query": "drink?", "consistency": "bounded", "max_age_ms": 5000}
TALKED = Asked(body={"user_id": "ann", "query": "drink?", "session_id": "s"})
AT_HAND = {
    "current in L0": (State(l0="current"), Asked(), ["L0 hit"]),
    "current in L2": (State(l2="current"), Asked(), ["L0 miss", "L2 hit"]),
    "behind in L0, current in L2": (State(l0="behind", l2="current"), Asked(), ["L0 miss", "L2 hit"]),
    "confirmed lately": (State(l0="current", confirmed=4.0, version="none"), Asked(body=BOUNDED), []),
    "behind, but confirmed lately": (State(l0="behind", confirmed=4.0), Asked(body=BOUNDED), []),
    "within the limit": (State(l0="current"), Asked(key="limited"), ["L0 hit"]),
    "both memories in L0": (State(l0="current", session="stm.L0"), TALKED, ["stm.L0 hit", "L0 hit"]),
    "both memories in CACHE": (
        State(l2="current", session="stm.L1"),
        TALKED,
        ["stm.L0 miss", "stm.L1 hit", "L0 miss", "L2 hit"],
    ),
    "in the Platform's words": (State(l0="current"), Asked(body=IN_MEM0S_WORDS[6], path=PLATFORM), ["L0 hit"]),
    "in the words of Mem0's server": (
        State(l2="current"),
        Asked(body=IN_MEM0S_WORDS[0], path=OSS),
        ["L0 miss", "L2 hit"],
    ),
    "of the one user": (State(l2="current"), Asked(key="of ann"), ["L0 miss", "L2 hit"]),
}


@pytest.mark.parametrize("case", AT_HAND)
def test_what_is_at_hand_needs_no_django(world: World, case: str) -> None:
    state, asked, lookups = AT_HAND[case]
    told = world.told(world.hot, asked, state)
    assert (told["status"], world.left_to_django) == ("200 OK", 0)
    project, layer = world.project.pk, lookups[-1][:2] if lookups else "L0"
    split = [one.split() for one in lookups]
    looked = {(project, "lookups", f"layer={where},outcome={outcome}"): 1 for where, outcome in split}
    answered = {(project, "searches", f"layer={layer}"): 1}
    if asked.path == NATIVE:
        answered[0, "search_seconds", f"layer={layer},"] = 1
    assert told["counted"] == looked | answered
    assert [line["layer"] for line in told["logged"]] == [layer]


def test_g1_a_body_that_another_has_sent_is_still_the_own_keys_question(world: World) -> None:
    about_ben = {"user_id": "ben", "query": "drink?"}
    state = State(l0="current")
    assert world.told(world.hot, Asked("every", about_ben), state)["status"] == "200 OK"
    for key, status in (("of ann", "403 Forbidden"), ("elsewhere", "200 OK"), ("every", "200 OK")):
        asked = Asked(key, about_ben)
        told = world.told(world.hot, asked, state)
        assert told["status"] == status
        assert told == world.told(world.django, asked, state)


@pytest.mark.parametrize("module", [keys, projects])
def test_what_this_process_knows_of_keys_and_projects_is_as_fresh_as_for_the_view(world, monkeypatch, module):
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    world.told(world.hot, Asked(), State(l0="current"))
    assert world.left_to_django == 1


# -- told apart by nothing but time and the names of requests ----------------------------------------------------------


def _entry(kind: str, number: int, now: int) -> Entry:
    """An entry as it stands to the current version; each kind is told from the others by its text."""
    memory = Memory("00000000-0000-4000-8000-000000000009", f"{kind} tea", "ann", score=0.5)
    version = number + {"behind": -5, "ahead": 5}.get(kind, 0)
    entry = encode([memory], version=version, as_of=now, ranking="local" if kind == "local" else "upstream")
    return Entry(entry.results, version, now, now - 1, "upstream", 1, entry.jobs) if kind == "expired" else entry


def _fact(agent: str | None) -> bytes:
    fact = ("00000000-0000-4000-8000-000000000001", 0, "she drinks mate", False, "2026-01-01T00:00:00Z", agent)
    return orjson.dumps((1, [(*fact, None, "ann", "add", {}, None, "")]))


def _timeless(text: str, *, own_id: bool) -> str:
    text = re.sub(r'("age_ms":|dur=|available in )[\d.]+', r"\1#", text)
    text = re.sub(r'"as_of":"[^"]*"', '"as_of":#', text)
    text = re.sub(r"(csrftoken|expires)=[^;]*", r"\1=#", text)
    return text if own_id else re.sub(r"\b[0-9a-f]{32}\b", "#", text)


def _counts(counted: Mapping[metrics.Key, int]) -> Counter[metrics.Key]:
    """How often, not how long."""
    told: Counter[metrics.Key] = Counter()
    for (project, name, labels), n in counted.items():
        timed = name in metrics.TIMED
        if not (timed and labels.endswith(metrics.SUM)):
            told[project, name, re.sub(r"le=.*", "", labels) if timed else labels] += n
    return told


def _line(line: str, *, own_id: bool) -> dict[str, Any]:
    told = orjson.loads(line)
    return {
        name: value for name, value in told.items() if name not in ("at", "ms") and (own_id or name != "request_id")
    }


class _listening(logging.Handler):
    """Hears what memsvc logs, as lines."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines
        self.setFormatter(JSONFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def __enter__(self) -> None:
        self._was = logging.getLogger("memory").level
        logging.getLogger("memory").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("memory").removeHandler(self)
