"""The memory app."""

from django.apps import AppConfig


class MemoryConfig(AppConfig):
    """What can be read and written."""

    name = "memory"
    verbose_name = "Memory"
