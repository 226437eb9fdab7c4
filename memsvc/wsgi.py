"""The WSGI application that granian serves."""

import gc

from django.core.wsgi import get_wsgi_application

import memsvc.celery  # noqa: F401 - names the settings; views send tasks

django = get_wsgi_application()

from memory import upkeep  # noqa: E402 - models are loaded only now
from memory.api.hot import Hot  # noqa: E402

application = Hot(django)
# What stands now stays: looking through it for garbage again and again cost a third of a cached answer.
gc.collect()
gc.freeze()
upkeep.start()
