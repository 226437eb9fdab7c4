"""What callers of the Mem0 surface said of single memories."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now

from memory.models.projects import Project


class Feedback(models.Model):
    """The last word on one memory: POSITIVE, NEGATIVE or VERY_NEGATIVE."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    memory_id = models.CharField(max_length=36)
    user_id = models.CharField(max_length=512, null=True, blank=True)
    feedback = models.CharField(max_length=20)
    reason = models.TextField(blank=True)
    at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "memory_id"], name="one_feedback")]
        indexes = [models.Index(fields=["project", "user_id"], name="feedback_user")]

    def __str__(self) -> str:
        return f"{self.memory_id}: {self.feedback}"
