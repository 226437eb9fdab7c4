"""Erased users: how far each erase is, and its receipt (PROTOCOL D)."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models.functions import Now

from memory.models.jobs import Job
from memory.models.projects import Project


class Erasure(models.Model):
    """The erase of one user, and in the end its receipt. It holds no text of anybody; its job does the work."""

    erasure_id = models.UUIDField(unique=True, default=uuid.uuid4, editable=False)
    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    user_id = models.CharField(max_length=512)
    job = models.OneToOneField(Job, on_delete=models.SET_NULL, null=True, related_name="erasure")
    accepted_at = models.DateTimeField(db_default=Now())
    emptied_at = models.DateTimeField(null=True, help_text="When Mem0 listed nothing any more and the floor had risen.")
    dropped_at = models.DateTimeField(null=True, help_text="When Redis had confirmed that nothing is cached.")
    due_at = models.DateTimeField(null=True, help_text="Before this moment a reader may go by what it knew before.")
    completed_at = models.DateTimeField(null=True, db_index=True)
    looked_again_at = models.DateTimeField(null=True)
    removed = models.JSONField(default=dict, help_text="{what: how many}")
    remains = models.JSONField(default=list, help_text="What nobody could remove, in words.")
    vector_keys = models.JSONField(default=list, help_text="Keys in L1, until they are dropped: digests, no text.")

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["project", "user_id", "-id"], name="erasure_user")]

    def __str__(self) -> str:
        return str(self.erasure_id)
