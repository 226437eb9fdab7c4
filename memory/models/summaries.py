"""L3's rows: what memsvc knows of a user without asking Mem0."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now

from memory.models.projects import Project


class Snapshot(models.Model):
    """One user's summaries, and the version at which they and the user's rows below were read."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    user_id = models.CharField(max_length=512)
    version = models.BigIntegerField()
    complete = models.BooleanField(help_text="False: Mem0 listed only some of the user's memories (C2).")
    summary_version = models.BigIntegerField(help_text="The version of the listing that the summaries were built from.")
    fingerprint = models.CharField(
        max_length=64,
        help_text="Of the listing: ids, texts, times, expiry, metadata; empty where a job has moved rows since.",
    )
    embedder = models.CharField(max_length=100, blank=True, help_text="Model and dimensions of the rows' vectors.")
    topics_digest = models.CharField(max_length=64, blank=True, help_text="Of the topics the summaries answer.")
    topics = models.JSONField(default=dict, help_text="{topic: [{id, memory, score}]}")
    user_favorite_summary = models.JSONField(default=dict, help_text="The favourites of `topics`.")
    recent = models.JSONField(default=list, help_text="[{id, memory, created_at}], newest first.")
    counts = models.JSONField(default=dict)
    built_at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "user_id"], name="one_snapshot")]

    def __str__(self) -> str:
        return self.user_id


class SnapshotMemory(models.Model):
    """One memory of a user as Mem0 listed it, with its vector in float16."""

    snapshot = models.ForeignKey(Snapshot, on_delete=models.CASCADE, related_name="memories")
    memory_id = models.CharField(max_length=100)
    text = models.TextField()
    text_hash = models.BinaryField(max_length=16)
    agent_id = models.CharField(max_length=512, null=True)
    run_id = models.CharField(max_length=512, null=True)
    metadata = models.JSONField(default=dict, help_text="Marks included.")
    digest = models.BinaryField(
        max_length=16, help_text="Of all but the times, as listed; empty if a job wrote the row."
    )
    created_at = models.CharField(max_length=40, null=True)
    updated_at = models.CharField(max_length=40, null=True)
    expiration_date = models.CharField(max_length=10, null=True)
    vector = models.BinaryField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["snapshot", "memory_id"], name="one_snapshot_memory")]
        indexes = [models.Index(fields=["memory_id"], name="snapshot_memory_id")]

    def __str__(self) -> str:
        return self.memory_id
