"""What goes on beside the work in every process: counts saved, workers seen, and the sweeper when beat is late."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from memory import db, delivery, identity, metrics, outbox, signals, write
from memory.models import Attempt, CounterTotal, Heartbeat, IdempotencyRecord, Job, Lane
from memory.stm import lifecycle

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
TELL_EVERY_TICKS = 4
SEEN_EVERY_TICKS = 8
MOST_WOKEN = 500
"""Lanes woken that nobody has come to yet. Beyond them the workers are behind: more messages would make them later."""
PURGE_ROWS = 5000

_started: set[int] = set()
_lock = threading.Lock()


def start(queues: frozenset[str] = frozenset()) -> None:
    """Begin the upkeep of this process, once; `queues` are those it works on, none for a web process."""
    with _lock:
        if os.getpid() in _started:
            return
        _started.add(os.getpid())
    threading.Thread(target=_run, args=(queues,), name="upkeep", daemon=True).start()


def seen(queue: str) -> None:
    """Note that a worker of the queue is alive."""
    _beat(f"worker:{queue}:{identity.process()}")


def workers(younger_than: float = 10.0) -> set[str]:
    """The queues that a worker was seen on within so many seconds, and is not known to have ended since."""
    seen_lately = Heartbeat.objects.filter(name__startswith="worker:", at__gt=Now() - timedelta(seconds=younger_than))
    names = (name.split(":", 2) for name in seen_lately.values_list("name", flat=True))
    return {queue for _, queue, worker in names if not identity.gone(worker)}


def flush_counts() -> None:
    """Add what this process has counted to the totals in PostgreSQL."""
    counts = metrics.drain()
    if not counts:
        return
    rows = [(*key, n) for key, n in sorted(counts.items())]
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO memory_countertotal AS c (project_id, name, labels, total) "
                "SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::bigint[]) "
                "ON CONFLICT (project_id, name, labels) DO UPDATE SET total = c.total + excluded.total",
                tuple(list(column) for column in zip(*rows, strict=True)),
            )
    except DatabaseError:
        metrics.restore(counts)
        raise


def totals(project_id: int) -> dict[str, dict[str, int]]:
    """{metric: {labels: total}} of a project over all processes."""
    found: dict[str, dict[str, int]] = {}
    for name, labels, total in CounterTotal.objects.filter(project_id=project_id).values_list(
        "name", "labels", "total"
    ):
        found.setdefault(name, {})[labels] = total
    return found


def sweep() -> int:
    """Hand over what is due and nobody works on; how many lanes were woken. One process at a time, at most every
    SWEEP_SECONDS, whoever comes first: beat's task or a worker's own upkeep."""
    if not _claim_duty("sweep", settings.SWEEP_SECONDS):
        return 0
    _apart(_free_lanes_of_the_dead)
    _apart(delivery.complete_unconfirmed)
    _apart(delivery.complete_overdue)
    _apart(delivery.complete_erasures)
    woken = _apart(_wake_due_lanes)
    _apart(lifecycle.sweep)
    signals.swept.send_robust(sender=None)
    if _claim_duty("purge", 3600):
        _apart(purge)
    return woken or 0


def _apart(step: Callable[[], int | None]) -> int | None:
    """One step of the sweep. What is wrong with it keeps the others from nothing, unless PostgreSQL is away."""
    try:
        return step()
    except (OperationalError, InterfaceError):
        raise
    except Exception:
        log.exception("step of the sweep failed", extra={"step": step.__name__})
        return None


def purge() -> None:
    """Forget what has been kept long enough: idempotency records, payloads, old jobs, workers no longer seen."""
    hours = timedelta(hours=settings.IDEMPOTENCY_HOURS)
    _delete_some(IdempotencyRecord, Q(created_at__lt=Now() - hours))
    kept = Q(kind="extract", completed_at__gt=Now() - timedelta(days=settings.EXTRACT_KEEP_DAYS))
    done = Job.objects.filter(state="completed", payload__isnull=False, reconcile_at__isnull=True).exclude(kept)
    done.filter(completed_at__lt=Now() - hours).update(payload=None)
    ended = Q(state="completed") | Q(reason=write.ERASED)
    _delete_some(Job, ended & Q(completed_at__lt=Now() - timedelta(days=settings.JOB_KEEP_DAYS)))
    Heartbeat.objects.filter(name__startswith="worker:", at__lt=Now() - timedelta(hours=1)).delete()


def _run(queues: frozenset[str]) -> None:
    ticks = 0
    while True:
        try:
            flush_counts()
            if ticks % TELL_EVERY_TICKS == 0:
                signals.ticked.send_robust(sender=None)
            if ticks % SEEN_EVERY_TICKS == 0:
                for queue in queues:
                    seen(queue)
            if "deliver" in queues and ticks % max(1, int(settings.SWEEP_SECONDS / TICK_SECONDS)) == 0:
                sweep()
        except DatabaseError as error:
            log.warning("upkeep waits for PostgreSQL", extra={"reason": type(error).__name__})
        except Exception:  # the border of a thread that nobody starts again
            log.exception("upkeep failed")
        finally:
            db.release()
        ticks += 1
        time.sleep(TICK_SECONDS)


def _beat(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO memory_heartbeat (name, at) VALUES (%s, clock_timestamp()) "
            "ON CONFLICT (name) DO UPDATE SET at = clock_timestamp()",
            [name],
        )


_CLAIM_DUTY = """
INSERT INTO memory_heartbeat AS h (name, at) VALUES (%s, clock_timestamp())
ON CONFLICT (name) DO UPDATE SET at = clock_timestamp() WHERE h.at < clock_timestamp() - %s * interval '1 second'
RETURNING 1
"""


def _claim_duty(name: str, every: float) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM_DUTY, [f"duty:{name}", every * 0.9])
        return cursor.fetchone() is not None


def _free_lanes_of_the_dead() -> None:
    """A lane whose holder's process is gone need not wait for its lease (PROTOCOL A5)."""
    held = Lane.objects.filter(lease_until__gt=Now()).exclude(holder="")
    for holder in held.values_list("holder", flat=True).distinct():
        if identity.gone(holder):
            held.filter(holder=holder).update(lease_until=None, woken_at=None)


def _wake_due_lanes() -> int:
    due = delivery.with_work().filter(Q(lease_until__isnull=True) | Q(lease_until__lt=Now()))
    lately = Q(woken_at__gte=Now() - timedelta(seconds=settings.RESEND_SECONDS))
    room = MOST_WOKEN - due.filter(lately).count()
    if room <= 0:
        return 0
    from memory.tasks import deliver  # tasks stand above this module

    with transaction.atomic():
        idle = due.exclude(lately).select_for_update(skip_locked=True, of=("self",))
        lanes = list(idle.order_by(F("woken_at").asc(nulls_first=True)).values_list("pk", flat=True)[:room])
        Lane.objects.filter(pk__in=lanes).update(woken_at=Now())
    for lane in lanes:
        outbox.send(deliver.si(lane))
    return len(lanes)


def _delete_some(model: type[IdempotencyRecord] | type[Job] | type[Attempt], where: Q) -> None:
    """Delete in bounded batches, so that no transaction grows with the backlog of a long pause."""
    while ids := list(model.objects.filter(where).values_list("pk", flat=True)[:PURGE_ROWS]):
        model.objects.filter(pk__in=ids).delete()
