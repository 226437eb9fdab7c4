"""Every error memsvc raises on purpose, and whether trying again can help.

MemsvcError
├ LayerError            a cache layer could not answer: counted, then treated as a miss
│ ├ LayerUnavailable
│ └ LayerCorrupt        the entry is dropped
├ OriginError           Mem0 (L4) could not answer; nothing stands behind it
│ ├ OriginUnavailable   retryable; nothing was sent, or the answer says nothing was done
│ ├ OriginTimeout       retryable; the outcome of a write is unknown
│ ├ OriginRateLimited   retryable after `retry_after`
│ ├ OriginBusy          retryable; we ask Mem0 as often as we may: nothing was sent
│ ├ OriginNotFound      Mem0 knows no such memory
│ └ OriginRejected      Mem0 refused the request itself: retrying it cannot help
├ EmbedderError         no vector could be made
├ DatabaseUnavailable   PostgreSQL did not answer
└ Overloaded            the bulkhead or a backlog limit is full
"""

from __future__ import annotations


class MemsvcError(Exception):
    """Root of the tree. `code` is stable and safe to show; the message never holds a memory's text."""

    code = "error"
    retryable = False


class LayerError(MemsvcError):
    """A cache layer failed; the read goes on as if it had missed."""

    code = "layer_error"

    def __init__(self, layer: str, detail: str = "") -> None:
        super().__init__(f"{layer}: {detail}" if detail else layer)
        self.layer = layer


class LayerUnavailable(LayerError):
    """The store behind a layer did not answer."""

    code = "layer_unavailable"
    retryable = True


class LayerCorrupt(LayerError):
    """A stored entry could not be read; whoever finds it drops it."""

    code = "layer_corrupt"


class OriginError(MemsvcError):
    """Mem0 could not answer.

    `sent` is True when a write may have taken effect (PROTOCOL A5: outcome unknown), False when it certainly has not.
    """

    code = "origin_error"

    def __init__(self, detail: str = "", *, sent: bool = False, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.sent = sent
        self.retry_after = retry_after


class OriginUnavailable(OriginError):
    """Mem0 cannot be reached, or says that something behind it is away."""

    code = "origin_unavailable"
    retryable = True


class OriginTimeout(OriginError):
    """No answer within the deadline; Mem0 may still be at work."""

    code = "origin_timeout"
    retryable = True


class OriginRateLimited(OriginError):
    """Mem0 asks for a pause; `retry_after` is in seconds where it said so."""

    code = "origin_rate_limited"
    retryable = True


class OriginBusy(OriginError):
    """Our own limits on calls to Mem0 leave no room for this one before its deadline; nothing was sent."""

    code = "origin_busy"
    retryable = True


class OriginRejected(OriginError):
    """Mem0 refused this request; the same one will be refused again. `status` is its HTTP status where it has one."""

    code = "origin_rejected"

    def __init__(self, detail: str = "", *, status: int | None = None, sent: bool = False) -> None:
        super().__init__(detail, sent=sent)
        self.status = status


class OriginNotFound(OriginRejected):
    """Mem0 knows no memory with that id."""

    code = "not_found"


class EmbedderError(MemsvcError):
    """No vector could be made for a text."""

    code = "embedder_unavailable"
    retryable = True


class DatabaseUnavailable(MemsvcError):
    """PostgreSQL did not answer."""

    code = "database_unavailable"
    retryable = True


class Overloaded(MemsvcError):
    """A bounded resource is full; `retry_after` is in seconds."""

    code = "overloaded"
    retryable = True

    def __init__(self, detail: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
