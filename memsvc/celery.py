"""The Celery app. It imports no task: models are not loaded yet when it is imported.

Whatever sends or runs tasks imports this module first: wsgi.py, manage.py, the workers.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from celery import Celery
from celery.apps.beat import Beat
from celery.signals import worker_ready
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "memsvc.settings")


class UnwindingBeat(Beat):
    """Celery's own, ended by an exception: it saves its schedule on the way out.

    Celery's handlers save it themselves, and a signal may come while the connection waits for a statement
    (`memsvc.postgres.waiting`): a second statement of the same thread would wait for the first one, for ever.
    """

    def install_sync_handler(self, service: object) -> None:
        """Called before the first statement."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit())


app = Celery("memsvc")
app.Beat = app.subclass_with_self(UnwindingBeat)  # type: ignore[misc]  # settable, whatever the stubs say
app.set_default()  # for every thread: an app is current only in the thread that made it
app.config_from_object(settings.CELERY)
app.autodiscover_tasks()


@worker_ready.connect(weak=False)
def _start_upkeep(sender: Any, **_: Any) -> None:
    """A worker consumes from now on: say so, and take part in the periodic duties."""
    from memory import upkeep  # models are loaded only now

    upkeep.start(frozenset(queue.name for queue in sender.task_consumer.queues))
