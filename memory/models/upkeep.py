"""What the processes tell each other through PostgreSQL."""

from __future__ import annotations

from django.db import models


class Heartbeat(models.Model):
    """When a worker of a queue, or a periodic duty, was last seen (`worker:deliver:IDENTITY`, `duty:sweep`)."""

    name = models.CharField(max_length=200, unique=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class CounterTotal(models.Model):
    """A metric of a project over all processes since it began to count."""

    project_id = models.BigIntegerField()
    name = models.CharField(max_length=60)
    labels = models.CharField(max_length=200, blank=True)
    total = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project_id", "name", "labels"], name="one_counter")]

    def __str__(self) -> str:
        return f"{self.name}{{{self.labels}}}"
