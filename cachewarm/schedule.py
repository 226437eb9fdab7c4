"""Beat's schedule, created once after migrating; what an operator edits in the admin is never overwritten."""

from __future__ import annotations

from django.conf import settings
from django_celery_beat.models import IntervalSchedule, PeriodicTask

REBUILD = "Rebuild every user's caches"


def ensure() -> None:
    """Create what is missing."""
    if PeriodicTask.objects.filter(name=REBUILD).exists():
        return
    every, _ = IntervalSchedule.objects.get_or_create(
        every=settings.REBUILD_PERIOD_SECONDS,
        period=IntervalSchedule.SECONDS,
    )
    PeriodicTask.objects.get_or_create(
        name=REBUILD,
        defaults={
            "task": "cachewarm.run_proactive_caching_job",
            "interval": every,
            "description": "Repairs what warming after writes has missed, and sees what others wrote to Mem0.",
        },
    )
