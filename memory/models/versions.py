"""Versions of users, agents and runs (PROTOCOL B1)."""

from __future__ import annotations

from django.db import models


class PinVersion(models.Model):
    """The version of one id: `greatest(old + 1, microseconds of PostgreSQL's clock)`, never used twice. No row: 0."""

    project_id = models.BigIntegerField()
    kind = models.CharField(max_length=5)
    pin_id = models.CharField(max_length=512)
    version = models.BigIntegerField(default=0)
    floor = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project_id", "kind", "pin_id"], name="one_version")]

    def __str__(self) -> str:
        return f"{self.kind}:{self.version}"
