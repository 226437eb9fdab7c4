"""The memory app."""

from django.apps import AppConfig


class MemoryConfig(AppConfig):
    """What can be read and written."""

    name = "memory"
    verbose_name = "Memory"

    def ready(self) -> None:
        """Register the system checks: models are loaded only now."""
        from memory import checks  # noqa: F401
