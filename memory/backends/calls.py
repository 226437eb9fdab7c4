"""Calls to a Mem0 over HTTP: reads may be tried again, writes only while nothing of them can have taken effect."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import orjson
from django.conf import settings

from memory import retry
from memory.backends import answers, filters, forms, gate
from memory.backends.base import LIST_LIMIT
from memory.backends.gate import Gate
from memory.backends.transport import Reply, Transport
from memory.clock import Deadline
from memory.errors import OriginRateLimited, OriginRejected, OriginUnavailable
from memory.types import Query, Scope

ATTEMPTS = 3
BACKOFF_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 2.0


class Caller:
    """What the backends over HTTP share. Which server they meet, and what its 404 means, is theirs to say."""

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        timeout: float = 30.0,
        extract_timeout: float = 100.0,
        ca_file: str = "",
        connections: int = 64,
        guarded: bool = False,
        pause: Callable[[float], None] = time.sleep,
        gate: Gate | None = None,
        retry_share: float = 0.1,
    ) -> None:
        headers = self._headers(key) if key else {}
        self._transport = Transport(url, headers, ca_file=ca_file, connections=connections, gate=gate, guarded=guarded)
        self._host = urlsplit(url).hostname or ""
        self._timeout, self._extract_timeout = timeout, extract_timeout
        self._pause = pause
        self.budget = retry.Budget(retry_share)

    @classmethod
    def configured(cls, url: str, key: str, *, name: str, guarded: bool = False) -> Self:
        """The one at this address, with the limits of the settings and the gate of this name."""
        return cls(
            url,
            key=key,
            guarded=guarded,
            timeout=settings.MEM0_REST_API_TIMEOUT,
            extract_timeout=settings.MEM0_EXTRACT_TIMEOUT_SECONDS,
            ca_file=settings.MEM0_REST_API_CA_FILE,
            connections=settings.WEB_THREADS,
            gate=gate.of(name),
            retry_share=settings.UPSTREAM_RETRY_PERCENT / 100,
        )

    @staticmethod
    def _headers(key: str) -> dict[str, str]:
        """How the key is sent."""
        raise NotImplementedError

    def _require_known(self, deadline: Deadline) -> None:
        """OriginUnavailable, with nothing sent, for a server that memsvc cannot work with."""

    def _reply(
        self, method: str, path: str, deadline: Deadline, params: Mapping[str, str] | None, body: bytes | None
    ) -> Reply:
        return self._transport.call(method, path, deadline, params=params, body=body)

    def _read(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        compares_numbers: bool = False,
    ) -> Any:
        """A call that changes nothing: whatever went wrong on the way may be tried again."""
        deadline = deadline.at_most(self._timeout)
        encoded = _encoded(body)

        def attempt() -> Any:
            self._require_known(deadline)
            with answers.without_effect():
                reply = self._reply(method, path, deadline, params, encoded)
                return answers.body(reply, compares_numbers=compares_numbers)

        return self._retried(attempt, deadline)

    def _write(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        embeds_first: bool = False,
    ) -> Any:
        """A call that is tried again only while nothing of it can have taken effect."""
        encoded = _encoded(body)

        def attempt() -> Any:
            self._require_known(deadline)
            reply = self._reply(method, path, deadline, params, encoded)
            return answers.body(reply, embeds_first=embeds_first)

        return self._retried(attempt, deadline)

    def _retried(self, attempt: Callable[[], Any], deadline: Deadline) -> Any:
        self.budget.earn()
        for number in range(ATTEMPTS - 1):
            try:
                return attempt()
            except (OriginUnavailable, OriginRateLimited) as error:
                wait = error.retry_after
                if wait is None:
                    wait = retry.backoff(number, base=BACKOFF_SECONDS, most=BACKOFF_MAX_SECONDS)
                if error.sent or wait >= deadline.remaining() or not self.budget.spend():
                    raise
            self._pause(wait)
        return attempt()


def wanted_of(query: Query) -> dict[str, Any] | None:
    """The filters to send with a query; None where no memory can match. OriginRejected for one that Mem0 would refuse
    or fail on."""
    if not query.text.strip() or not filters.storable(query.text):
        raise OriginRejected("a query must hold text, without NUL")
    if not 1 <= query.top_k <= LIST_LIMIT or not 0 <= (query.threshold or 0) <= 1:
        raise OriginRejected("top_k must be 1 to 1000, threshold 0 to 1")
    return filters.for_search(query.scope, query.conditions())


def facts(
    scope: Scope, texts: Sequence[str], metadata: Mapping[str, Any], expiration_date: str | None
) -> dict[str, Any]:
    """The body of an add of texts as they are. OriginRejected for a date that is none."""
    messages = [{"role": "user", "content": text} for text in texts]
    body = {**forms.ids(scope), "messages": messages, "metadata": dict(metadata), "infer": False}
    if expiration_date is not None:
        body["expiration_date"] = forms.day(expiration_date)
    return body


def conversation(scope: Scope, messages: Sequence[Mapping[str, str]], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The body of an add that Mem0 is to extract facts from."""
    said = [{"role": message["role"], "content": message["content"]} for message in messages]
    return {**forms.ids(scope), "messages": said, "metadata": dict(metadata), "infer": True}


def changes(
    text: str | None, metadata: Mapping[str, Any] | None, expiration_date: str | None, *, clear: bool
) -> dict[str, Any]:
    """The body of an update. OriginRejected for one that changes nothing, or a date that is none."""
    body: dict[str, Any] = {}
    if text is not None:
        body["text"] = text
    if metadata is not None:
        body["metadata"] = dict(metadata)
    if clear:
        body["expiration_date"] = None
    elif expiration_date is not None:
        body["expiration_date"] = forms.day(expiration_date)
    if not body:
        raise OriginRejected("an update must change something")
    return body


def _encoded(body: Any) -> bytes | None:
    if body is None:
        return None
    if not filters.storable(body):
        raise OriginRejected("texts and metadata must not hold NUL or lone surrogates")
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise OriginRejected("metadata must be JSON with numbers of at most 64 bits") from error
