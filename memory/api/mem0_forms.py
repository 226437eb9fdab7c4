"""What both of Mem0's surfaces share: who calls, what a conversation may be, how a memory looks, errors as `detail`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, cast

import orjson
from rest_framework.exceptions import APIException, NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from memory import clock, rank, read, waits, write
from memory.api import mem0_filters, problems
from memory.api.fields import Field, Ident, Record, Text, Wrong, named
from memory.api.mem0_filters import APP, PINS, Branch
from memory.api.native import Door, ids, is_uuid
from memory.clock import Deadline
from memory.errors import Overloaded
from memory.layers.base import public
from memory.models import Job
from memory.tenancy.auth import may_see
from memory.tenancy.keys import Caller
from memory.types import Memory, Scope
from memory.write import DELETE_ALL, Write

WAIT_SECONDS = 55.0
READ_SECONDS = 30.0
"""Mem0's clients wait 300 s; a first search may find Mem0 still starting."""
MAX_MESSAGES = 1000

ID = Ident()
IDS: dict[str, Field] = dict.fromkeys(PINS, ID)
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


class BadRequest(APIException):
    """A request that Mem0 answers with 400 and one sentence."""

    status_code = 400
    default_code = "bad_request"


class NotOffered(APIException):
    """What the Platform has and memsvc has not."""

    status_code = 501
    default_code = "not_offered"


class JobFailed(APIException):
    """A write that was waited for and failed."""

    status_code = 502
    default_code = "job_failed"


def exception_handler(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """The same problems as everywhere, with `detail` as Mem0's clients read it."""
    found = problems.exception_handler(error, context)
    if found is None:
        return None
    told = problems.in_mem0s_words(cast(dict[str, Any], found.data))
    headers = {name: value for name, value in found.items() if name != "Content-Type"}
    return Response(told, status=found.status_code, headers=headers)


class Conversation:
    """Messages: a text, one message, or a list of them; afterwards a list of {role, content}. The text parts of a
    content in parts are joined; a message without text says nothing and is left out."""

    def check(self, value: Any) -> list[dict[str, str]]:
        """See fields.Field."""
        if isinstance(value, str):
            value = [{"role": "user", "content": value}]
        sent = value if isinstance(value, list) else [value]
        if len(sent) > MAX_MESSAGES:
            raise Wrong(f"may have at most {MAX_MESSAGES} messages")
        said, errors = [], []
        for index, message in enumerate(sent):
            try:
                said += _message(message)
            except Wrong as wrong:
                errors += [(f"[{index}]{path}", told) for path, told in wrong.errors]
        if errors:
            raise Wrong(errors=errors[:20])
        if not said:
            raise Wrong("must hold a message with text")
        return said

    def schema(self) -> dict[str, Any]:
        """See fields.Field."""
        return {"oneOf": [{"type": "string"}, {"type": "object"}, {"type": "array"}]}


class Mem0Door(Door):
    """A route in Mem0's words."""

    schema = None  # Mem0 describes it, not memsvc

    def get_exception_handler(self) -> Callable[..., Response | None]:
        """Errors as `detail`."""
        return exception_handler

    def scope_of(self, ids: Mapping[str, str]) -> Scope:
        """The ids of a write or search, if the caller may. BadRequest without any."""
        return scope_of(ids, self.caller)

    # -- reading ------------------------------------------------------------------------------------------------------

    def listed(self, found: Iterable[Branch], *, expired: bool) -> tuple[list[Memory], bool]:
        """Every memory of the alternatives, newest first, and whether they are all."""
        deadline = Deadline.after(READ_SECONDS)
        today = clock.wall().date().isoformat()
        rows: dict[str, Memory] = {}
        whole = True
        for branch in found:
            conditions = orjson.loads(branch.conditions or "{}")
            if not rank.understands(conditions):
                raise BadRequest("filters hold a condition that only a search can evaluate.")
            memories, _, complete = read.memories(self.scope_of(branch.ids), self.policy, deadline)
            whole = whole and complete
            for memory in memories:
                there = all(getattr(memory, name) is not None for name in branch.present)
                fresh = expired or memory.expiration_date is None or memory.expiration_date >= today
                if there and fresh and rank.matches(conditions, memory):
                    rows[memory.id] = memory
        newest = sorted(rows.values(), key=lambda memory: (memory.created_at or "", memory.id), reverse=True)
        return newest, whole

    def find(self, memory_id: str) -> Memory | None:
        """A memory, if there is one and the caller may know."""
        if not is_uuid(memory_id):
            return None
        found = read.get(memory_id.lower(), self.policy, Deadline.after(READ_SECONDS))
        return found if found is not None and may_see(self.caller, found.user_id) else None

    def entities(self) -> tuple[list[dict[str, Any]], bool]:
        """The ids that have memories, and whether they are all; to a key bound to a user, that user."""
        rows, complete = read.entities(self.policy, Deadline.after(READ_SECONDS))
        bound = self.caller.user_id
        mine = [row for row in rows if bound is None or (row["type"], row["id"]) == ("user", bound)]
        return mine, complete

    # -- writing ------------------------------------------------------------------------------------------------------

    def accept(self, kind: str, scope: Scope, payload: Mapping[str, Any], memory_id: str | None = None) -> Job:
        """Accept a write."""
        return write.accept(Write(kind, scope, payload, memory_id), self.policy).job

    def change(self, kind: str, memory_id: str, changes: Mapping[str, Any]) -> Job:
        """Accept a write by id; NotFound for a memory that is not there or not the caller's."""
        return self.accept(kind, self.owner(memory_id), changes, memory_id.lower())

    def owner(self, memory_id: str) -> Scope:
        """The ids a memory is filed under. NotFound."""
        owner = write.owner(memory_id.lower(), self.policy) if is_uuid(memory_id) else None
        if owner is None or not may_see(self.caller, owner.user_id):
            no_memory(memory_id)
        return owner

    def delete_all(self, found: Iterable[Mapping[str, str]]) -> list[Job]:
        """Accept deletes of everything under these ids."""
        return [self.accept(DELETE_ALL, scope, {}) for scope in [self.scope_of(ids) for ids in found]]

    def wait(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs as they stand once all have ended, or time is up. NotFound or JobFailed when one failed."""
        deadline = Deadline.after(WAIT_SECONDS)
        ended = [self._wait(job, deadline) for job in jobs]
        for job in ended:
            if job.state == "failed":
                if job.memory_id is not None and self.find(job.memory_id) is None:
                    no_memory(job.memory_id)
                raise JobFailed(job.error or job.reason or "The write was accepted and failed.")
        return ended

    def _wait(self, job: Job, deadline: Deadline) -> Job:
        try:
            return waits.until_stored(job, deadline).job
        except Overloaded:  # too many wait already, and the write is safe
            return job


def scope_of(named: Mapping[str, str], caller: Caller) -> Scope:
    """The ids of a write or search, if the caller may. BadRequest without any, KeyBound."""
    if not named.keys() & set(PINS):
        raise BadRequest("At least one identifier is needed: user_id, agent_id or run_id.")
    return ids(dict(named), caller)


def body(request: Request) -> dict[str, Any]:
    """A request's body, which is an object. ValidationError."""
    if not isinstance(request.data, dict):
        raise ValidationError({"body": ["must be an object"]})
    return request.data


def checked(shape: Record, sent: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the shape knows, the others left aside as Mem0 does. ValidationError."""
    try:
        return shape.check({name: value for name, value in sent.items() if name in shape.fields})
    except Wrong as wrong:
        raise ValidationError({named(path): [message] for path, message in wrong.errors}) from None


def refused(sent: Mapping[str, Any], names: Iterable[str]) -> None:
    """BadRequest for what would change the outcome and memsvc cannot do; sent empty, it asks for nothing."""
    if given := sorted(name for name in names if sent.get(name)):
        raise BadRequest(f"memsvc cannot do this: {', '.join(given)}.")


def ids_in(sent: Mapping[str, Any]) -> dict[str, str]:
    """The ids among the fields of a request, an app's included."""
    return {name: sent[name] for name in (*PINS, APP) if name in sent}


def asked(sent: Mapping[str, Any]) -> list[Branch]:
    """What a search or listing is about: filters, and the ids that older clients send beside them. BadRequest."""
    beside = ids_in(checked(Record({**IDS, APP: ID}), sent))
    filters = sent.get("filters") or {}
    if not isinstance(filters, dict):
        raise BadRequest("filters must be an object.")
    if not filters and not beside:
        raise BadRequest("filters must contain at least one of: user_id, agent_id, run_id.")
    return filtered({"AND": [one for one in (beside, filters) if one]})


def filtered(filters: Any) -> list[Branch]:
    """The alternatives of a filter. BadRequest for what cannot be kept to."""
    try:
        return mem0_filters.branches(filters)
    except Wrong as wrong:
        raise BadRequest("; ".join(f"filters{path} {message}" for path, message in wrong.errors)) from None


def facts(messages: Sequence[Mapping[str, str]], metadata: Mapping[str, Any], day: str | None) -> list[dict[str, Any]]:
    """A conversation stored as it is: each message but the system's is a memory."""
    told = [message["content"] for message in messages if message["role"] != "system"]
    if not told:
        raise BadRequest("messages must hold one that is not the system's.")
    return [{"text": text, "metadata": dict(metadata), "expiration_date": day} for text in told]


def results(job: Job) -> list[dict[str, Any]]:
    """What a write has stored, in Mem0's words."""
    return [{"id": one["id"], "memory": one["memory"], "event": one["event"]} for one in job.results]


def shown(memory: Memory) -> dict[str, Any]:
    """A memory as `public` shows it, without a score."""
    return {name: value for name, value in public(memory).items() if name not in ("score", "source", "pending")}


def no_memory(memory_id: str) -> NoReturn:
    """404 in Mem0's words."""
    raise NotFound(f"Memory with id {memory_id} not found.")


def _message(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, dict):
        raise Wrong("must be an object with role and content")
    role = ROLES.get(value.get("role", "user")) if isinstance(value.get("role", "user"), str) else None
    if role is None:
        raise Wrong(errors=[(".role", f"must be one of {', '.join(ROLES)}")])
    content = value.get("content")
    if isinstance(content, list):
        content = "\n".join(_text_of(part) for part in content)
    if content is None or content == "" or (isinstance(content, str) and content.isspace()):
        return []
    try:
        return [{"role": role, "content": Text().check(content)}]
    except Wrong as wrong:
        raise Wrong(errors=[(f".content{path}", message) for path, message in wrong.errors]) from None


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise Wrong(errors=[(".content", "may hold text alone: memsvc reads no images, audio or files")])
