"""The Celery app. It imports no task: models are not loaded yet when it is imported.

Whatever sends or runs tasks imports this module first: wsgi.py, manage.py, the workers.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "memsvc.settings")

app = Celery("memsvc")
app.set_default()  # for every thread: an app is current only in the thread that made it
app.config_from_object(settings.CELERY)
app.autodiscover_tasks()


@worker_ready.connect(weak=False)
def _start_upkeep(sender: Any, **_: Any) -> None:
    """A worker consumes from now on: say so, and take part in the periodic duties."""
    from memory import upkeep  # models are loaded only now

    upkeep.start(frozenset(queue.name for queue in sender.task_consumer.queues))
