"""The cachewarm app."""

from django.apps import AppConfig


class CachewarmConfig(AppConfig):
    """When and how the layers are filled."""

    name = "cachewarm"
    verbose_name = "Warming"

    def ready(self) -> None:
        """Listen to memory: models are loaded only now."""
        from cachewarm import receivers

        receivers.connect(self)
