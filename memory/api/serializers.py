"""The shapes of answers, for the OpenAPI schema; tests compare what is really sent with them."""

from __future__ import annotations

from typing import get_args

from rest_framework import serializers as s

from memory.models.jobs import KINDS, UNFINISHED
from memory.types import Ranking

STATES = (*UNFINISHED, "completed", "failed")
LAYERS = ("L0", "L2", "L3", "L4")
STM_LAYERS = ("stm.L0", "stm.L1", "stm.store", "none", "late", "unavailable")


def _text(**options: object) -> s.CharField:
    return s.CharField(**options)  # type: ignore[arg-type]


def _maybe_text() -> s.CharField:
    return s.CharField(allow_null=True)


class FieldError(s.Serializer[object]):
    """One bad field of a request."""

    field = _text()
    message = _text()


class Problem(s.Serializer[object]):
    """An error, RFC 9457."""

    type = _text()
    title = _text()
    status = s.IntegerField()
    detail = _text(required=False)
    instance = _text()
    code = _text()
    request_id = _maybe_text()
    errors = FieldError(many=True, required=False)  # type: ignore[assignment]  # DRF takes fields off the class


class StoredFact(s.Serializer[object]):
    """What became of one fact: `event` is Mem0's ADD, UPDATE, DELETE or NONE."""

    index = s.IntegerField(required=False)
    id = _text()
    memory = _text(allow_blank=True)
    event = _text()


class FailedFact(s.Serializer[object]):
    """A fact that was not stored, by its place in the request."""

    index = s.IntegerField()
    error = _text()


class JobFailed(Problem):
    """A write that was waited for and failed."""

    job_id = s.UUIDField()
    results = StoredFact(many=True)
    failed = FailedFact(many=True)


class IsPending(Problem):
    """The id of a fact that Mem0 does not have yet: its job tells how far it is."""

    job_id = s.UUIDField()
    job_status = _text()


class Accepted(s.Serializer[object]):
    """A write that is kept and will be done; what was waited for may be late although the job has ended."""

    job_id = s.UUIDField()
    status = s.ChoiceField(choices=STATES)
    status_url = _text()


class Warmth(s.Serializer[object]):
    """How the warm that was waited for ended."""

    status = s.ChoiceField(choices=("completed", "superseded", "failed", "off"))
    reason = _text(required=False)


class Done(s.Serializer[object]):
    """A write that is done."""

    job_id = s.UUIDField()
    status = s.ChoiceField(choices=("completed",))
    version = _text()
    results = StoredFact(many=True)
    warm = Warmth(required=False)


class JobStatus(s.Serializer[object]):
    """An accepted write and how far it is."""

    job_id = s.UUIDField()
    kind = s.ChoiceField(choices=KINDS)
    status = s.ChoiceField(choices=STATES)
    attempts = s.IntegerField()
    error = _maybe_text()
    reason = _maybe_text()
    version = _maybe_text()
    results = StoredFact(many=True)
    failed = FailedFact(many=True)
    user_id = _maybe_text()
    agent_id = _maybe_text()
    run_id = _maybe_text()
    accepted_at = s.DateTimeField()
    completed_at = s.DateTimeField(allow_null=True)
    warmed_at = s.DateTimeField(allow_null=True)


class MemoryShown(s.Serializer[object]):
    """One memory."""

    id = _text()
    memory = _text(allow_blank=True)
    source = s.ChoiceField(choices=("ltm", "stm", "both"))  # type: ignore[assignment]
    pending = s.BooleanField()
    metadata = s.DictField()
    user_id = _maybe_text()
    agent_id = _maybe_text()
    run_id = _maybe_text()
    created_at = _maybe_text()
    updated_at = _maybe_text()
    expiration_date = s.DateField(allow_null=True)


class Parts(s.Serializer[object]):
    """What a merged score is made of: each memory's own, as a share of its best, and what being in both gains."""

    ltm = s.FloatField(allow_null=True)
    stm = s.FloatField(allow_null=True)
    bonus = s.FloatField()


class Found(MemoryShown):
    """One memory that was found; scores order one answer and are not comparable between answers."""

    score = s.FloatField(allow_null=True)
    job_id = s.UUIDField(required=False, allow_null=True)
    failed = s.BooleanField(required=False)
    session_id = _text(required=False)
    turn = s.IntegerField(required=False)
    role = _text(required=False)
    parts = Parts(required=False)


class SearchMeta(s.Serializer[object]):
    """Where an answer came from and how fresh it is."""

    layer = s.ChoiceField(choices=(*LAYERS, "stm"))
    stm_layer = s.ChoiceField(choices=STM_LAYERS, required=False)
    ranking = s.ChoiceField(choices=get_args(Ranking))
    version = _maybe_text()
    as_of = s.DateTimeField()
    age_ms = s.IntegerField()
    stale = s.BooleanField()
    degraded = s.BooleanField()
    partial = s.BooleanField(required=False)  # type: ignore[assignment]
    reason = _maybe_text()
    pending_jobs = s.IntegerField(allow_null=True)
    upstream_calls = s.IntegerField()


class SearchAnswer(s.Serializer[object]):
    """What a search found."""

    results = Found(many=True)
    meta = SearchMeta()


class HistoryEvent(s.Serializer[object]):
    """One change of a memory, in Mem0's fields."""

    id = _text()
    memory_id = _text()
    old_memory = _maybe_text()
    new_memory = _maybe_text()
    event = _text()
    created_at = _maybe_text()
    updated_at = _maybe_text()


class TopicMemory(s.Serializer[object]):
    """A memory under a topic."""

    id = _text()
    memory = _text()
    score = s.FloatField(allow_null=True)


class RecentMemory(s.Serializer[object]):
    """A memory by its time."""

    id = _text()
    memory = _text()
    created_at = _maybe_text()


class Summary(s.Serializer[object]):
    """What L3 holds for a user; `stale` when a later write is not in it yet."""

    user_id = _text()
    version = _maybe_text()
    built_at = s.DateTimeField(allow_null=True)
    stale = s.BooleanField()
    complete = s.BooleanField()
    topics = s.DictField(child=TopicMemory(many=True))
    user_favorite_summary = s.DictField(child=TopicMemory(many=True))
    recent = RecentMemory(many=True)
    counts = s.DictField()


class LineRefused(s.Serializer[object]):
    """A line of an import that is no fact, and why."""

    line = s.IntegerField()
    error = _text()


class Imported(s.Serializer[object]):
    """What an import has accepted, and of the lines that it has refused the first hundred."""

    lines = s.IntegerField()
    facts = s.IntegerField()
    jobs = s.IntegerField()
    skipped = s.IntegerField()
    refused = s.IntegerField()
    first_refused = LineRefused(many=True)


class Invalidated(s.Serializer[object]):
    """The user's version from now on."""

    user_id = _text()
    version = _text()


class Upstream(s.Serializer[object]):
    """How calls to Mem0 stand now, over all processes; `retries_left` is the answering process's own."""

    breaker = s.ChoiceField(choices=["closed", "open", "half_open"], allow_null=True)
    in_flight = s.IntegerField()
    open_percent = s.IntegerField(help_text="Part of the limits that is open: it rises after an outage.")
    retries_left = s.IntegerField(allow_null=True)


class Erasure(s.Serializer[object]):
    """The erase of a user: a receipt once completed. `removed` counts, `remains` names what nobody could remove."""

    erasure_id = s.UUIDField()
    user_id = _text()
    status = s.ChoiceField(choices=STATES)
    reason = _maybe_text()
    accepted_at = s.DateTimeField()
    emptied_at = s.DateTimeField(allow_null=True)
    completed_at = s.DateTimeField(allow_null=True)
    looked_again_at = s.DateTimeField(allow_null=True)
    removed = s.DictField(child=s.IntegerField())
    remains = s.ListField(child=_text())


class Erasing(Erasure):
    """An erase that will be done, and where to ask about it."""

    status_url = _text()


class Measured(s.Serializer[object]):
    """One thing the watchdog measures, in the unit of its name."""

    value = s.FloatField()
    level = s.ChoiceField(choices=("ok", "look", "call"))


class Watchdog(s.Serializer[object]):
    """Whether anybody has to look at the service, or be called; by what is measured."""

    level = s.ChoiceField(choices=("ok", "look", "call"))
    findings = s.DictField(child=Measured())
    lanes_held = s.IntegerField()
    reconciles_waiting = s.IntegerField()


class Stats(s.Serializer[object]):
    """Counters of the project over all processes; maps of a label's value to its total."""

    since = s.DateTimeField()
    searches = s.DictField(child=s.IntegerField())
    upstream_calls = s.DictField(child=s.IntegerField())
    upstream_errors = s.DictField(child=s.IntegerField())
    embeddings = s.DictField(child=s.IntegerField())
    warms = s.DictField(child=s.IntegerField())
    jobs = s.DictField(child=s.IntegerField())
    lookups = s.DictField(child=s.DictField(child=s.IntegerField()))
    degraded = s.DictField(child=s.IntegerField())
    attempts = s.DictField(child=s.IntegerField())
    upstream = Upstream()
    loads_joined = s.IntegerField()
    surplus_removed = s.IntegerField()
    rebuild_differences = s.IntegerField()
    watchdog = Watchdog()


class TierSizes(s.Serializer[object]):
    """How many turns each tier holds."""

    full = s.IntegerField()
    summary = s.IntegerField()
    compressed = s.IntegerField()


class Said(s.Serializer[object]):
    """Messages that are kept: the last one's turn, and each one's in the order of the request."""

    session_id = _text()
    user_id = _text()
    turn = s.IntegerField()
    turns = s.ListField(child=s.IntegerField())
    tiers = TierSizes()


class SessionEnded(s.Serializer[object]):
    """A session that is no more."""

    session_id = _text()
    user_id = _text()
    ended = s.BooleanField()


class TurnShown(s.Serializer[object]):
    """One message as it was said."""

    turn = s.IntegerField()
    role = _text()
    content = _text()
    metadata = s.DictField()
    created_at = s.DateTimeField()


class TierText(s.Serializer[object]):
    """What is told of older turns, and who made it: `extractive` or a model's name."""

    first_turn = s.IntegerField()
    last_turn = s.IntegerField()
    text = _text()
    made_by = _text()


class Tiers(s.Serializer[object]):
    """The newest turns in full, those before as one summary, the rest compressed."""

    full = TurnShown(many=True)
    summary = TierText(allow_null=True)
    compressed = TierText(allow_null=True)


class PendingShown(s.Serializer[object]):
    """A fact that Mem0 does not have yet."""

    id = _text()
    memory = _text()
    job_id = s.UUIDField(allow_null=True)
    failed = s.BooleanField()
    created_at = _text()


class ChatMessage(s.Serializer[object]):
    """A message as OpenAI's chat endpoints take it."""

    role = _text()
    content = _text()


class TokenCounts(s.Serializer[object]):
    """Estimated tokens of what is handed over by part, and `raw` of everything that was said."""

    full = s.IntegerField()
    summary = s.IntegerField()
    compressed = s.IntegerField()
    pending = s.IntegerField()
    total = s.IntegerField()
    raw = s.IntegerField()


class SessionContext(s.Serializer[object]):
    """A session for an LLM: `tiers` and `pending`, or `messages` with `format=openai`. `cut` if `max_tokens` left
    something out."""

    session_id = _text()
    user_id = _text()
    turns = s.IntegerField()
    tokens = TokenCounts()
    cut = s.BooleanField()
    tiers = Tiers(required=False)
    pending = PendingShown(many=True, required=False)
    messages = ChatMessage(many=True, required=False)
