"""What the native API answers with: bytes around stored bytes, and the shapes of writes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import orjson
from django.http import HttpRequest
from django.urls import reverse
from rest_framework import status
from rest_framework.response import Response

from memory import clock, erase, logs, metrics, write
from memory.api import problems
from memory.api.encoding import OPTIONS
from memory.layers.base import public
from memory.models import Erasure, Job, Snapshot
from memory.recall import Recalled
from memory.types import Answer, Memory, Ranking, Version
from memory.waits import Outcome

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def search(found: Recalled, began: float) -> tuple[bytes, dict[str, str]]:
    """A search's answer and its headers: what was found, as it is stored, with its meta spliced after it."""
    answer, entry = found.answer, found.answer.entry
    version = str(answer.version) if answer.version else None
    jobs = answer.pending.jobs if answer.pending else None
    logs.note(layer=answer.layer, version=version, reason=answer.reason)
    before, after = _meta(
        *(answer.layer, entry.ranking, version, entry.as_of, answer.stale, answer.degraded, answer.reason, jobs),
        *(answer.upstream_calls, answer.partial, found.stm),
    )
    body = b'{"results":%b,"meta":%b%d%b}' % (found.results, before, answer.age_ms, after)
    seconds = clock.now() - began
    metrics.observe("search_seconds", seconds, layer=answer.layer)
    return body, {
        "Content-Type": "application/json",
        "Cache-Status": cache_status(answer),
        "Server-Timing": f'search;dur={seconds * 1000:.2f};desc="{answer.layer}"',
    }


def memory(shown: Memory) -> dict[str, Any]:
    """A memory as lists and reads by id show it: as a search does, but nothing was scored."""
    found = public(shown)
    del found["score"]
    return found


def accepted(request: HttpRequest, job: Job, state: str) -> Response:
    """202: the write is kept, and where to ask about it."""
    url = request.build_absolute_uri(reverse("job-status", kwargs={"job_id": job.job_id}))
    body = {"job_id": str(job.job_id), "status": state, "status_url": url}
    return Response(body, status=status.HTTP_202_ACCEPTED, headers={"Location": url})


def erased(request: HttpRequest, erasure: Erasure) -> Response:
    """200 with the receipt, or 202 and where to ask for it."""
    receipt = erase.receipt(erasure)
    if erasure.completed_at is not None:
        return Response(receipt)
    url = request.build_absolute_uri(reverse("erasure", kwargs={"erasure_id": erasure.erasure_id}))
    return Response(receipt | {"status_url": url}, status=status.HTTP_202_ACCEPTED, headers={"Location": url})


def waited(request: HttpRequest, outcome: Outcome) -> Response:
    """What a wait came to: 200 completed, 502 failed, 202 where the deadline passed first."""
    job, report = outcome.job, write.report(outcome.job)
    if job.state == "failed":
        told = {key: report[key] for key in ("job_id", "results", "failed")}
        body = problems.describe(request, "job_failed", job.error or job.reason or None, **told)
        return Response(body, status=status.HTTP_502_BAD_GATEWAY, content_type=problems.MEDIA_TYPE)
    if outcome.late or job.state != "completed":
        return accepted(request, job, job.state)
    done = {key: report[key] for key in ("job_id", "status", "version", "results")}
    return Response(done | ({"warm": outcome.warm} if outcome.warm else {}))


def summary(user_id: str, found: Snapshot | None, current: Version) -> dict[str, Any]:
    """What L3 holds for a user; empty and stale where nothing was built yet of what was written."""
    if found is None:
        number, built_at = current.number, None
        held: dict[str, Any] = {"topics": {}, "user_favorite_summary": {}, "recent": [], "counts": {}}
    else:
        number, built_at = found.summary_version, found.built_at
        held = {name: getattr(found, name) for name in ("topics", "user_favorite_summary", "recent", "counts")}
    return {
        "user_id": user_id,
        "version": f"{current.pin.kind}:{number}",
        "built_at": built_at,
        "stale": number < current.number or (found is None and current.number > 0),
        "complete": found is None or found.complete,
        **held,
    }


@lru_cache(maxsize=4096)
def _meta(
    layer: str,
    ranking: Ranking,
    version: str | None,
    as_of: int,
    stale: bool,
    degraded: bool,
    reason: str | None,
    pending_jobs: int | None,
    upstream_calls: int,
    partial: bool,
    stm_layer: str | None,
) -> tuple[bytes, bytes]:
    """What an answer says of itself, as JSON cut where its age belongs: all else of it is the same at every hit."""
    moment = _EPOCH + timedelta(microseconds=as_of)
    before = {"layer": layer, "ranking": ranking, "version": version, "as_of": moment, "age_ms": 0}
    after: dict[str, Any] = {"stale": stale, "degraded": degraded, "reason": reason, "pending_jobs": pending_jobs}
    after["upstream_calls"] = upstream_calls
    if partial:
        after["partial"] = True
    if stm_layer:
        after["stm_layer"] = stm_layer
    return orjson.dumps(before, option=OPTIONS).removesuffix(b"0}"), b"," + orjson.dumps(after).removeprefix(b"{")


def cache_status(answer: Answer) -> str:
    """RFC 9211, the layer as detail. L3 computes: it forwards to nobody, but it did not have the answer either."""
    if answer.layer in ("L0", "L2"):
        return f"memsvc; hit; detail={answer.layer}" + ("; fwd=stale" if answer.stale else "")
    return f"memsvc; fwd={'stale' if answer.degraded else 'miss'}; detail={answer.layer}"
