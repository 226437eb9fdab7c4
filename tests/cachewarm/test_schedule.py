"""Beat's schedule is created once and is the operator's from then on; each entry names a task that exists."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django_celery_beat.models import PeriodicTask

from cachewarm import schedule
from memsvc.celery import app

pytestmark = pytest.mark.django_db(transaction=True)


def test_migrating_creates_the_rebuilds_schedule(settings):
    PeriodicTask.objects.all().delete()
    call_command("migrate", verbosity=0)
    entry = PeriodicTask.objects.get(name=schedule.REBUILD)
    assert entry.task == "cachewarm.run_proactive_caching_job"
    assert (entry.interval.every, entry.interval.period) == (settings.REBUILD_PERIOD_SECONDS, "seconds")


def test_an_operators_edit_survives_the_next_start():
    schedule.ensure()
    entry = PeriodicTask.objects.get(name=schedule.REBUILD)
    entry.interval.every = 7
    entry.interval.save()
    entry.enabled = False
    entry.save()
    call_command("migrate", verbosity=0)
    entry = PeriodicTask.objects.get(name=schedule.REBUILD)
    assert (entry.interval.every, entry.enabled) == (7, False)


def test_every_entry_names_a_registered_task():
    schedule.ensure()
    app.loader.import_default_modules()
    assert {entry.task for entry in PeriodicTask.objects.exclude(name="celery.backend_cleanup")} <= set(app.tasks)


def test_each_task_of_warming_has_a_queue_of_its_own(settings):
    app.loader.import_default_modules()
    queues = {
        name: app.amqp.router.route({}, name)["queue"].name for name in app.tasks if name.startswith("cachewarm.")
    }
    assert queues == {
        "cachewarm.warm_summaries": "warm",
        "cachewarm.warm_results": "warm",
        "cachewarm.warm_vectors": "warm",
        "cachewarm.warm_record": "warm",
        "cachewarm.run_proactive_caching_job": "rebuild",
        "cachewarm.rebuild_batch": "rebuild",
    }
