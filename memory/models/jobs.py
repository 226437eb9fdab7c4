"""Accepted writes: the job's row is the queue (PROTOCOL A)."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from memory.models.projects import Project

KINDS = ("add", "extract", "update", "delete", "delete_all", "erase")
UNFINISHED = ("pending", "processing", "stored")
OPEN = Q(state__in=UNFINISHED) | Q(state="failed", dismissed_at__isnull=True)
"""What a pin's pending set is made of (C1)."""


class Lane(models.Model):
    """One user's writes (else one agent's, else one run's), delivered one at a time by whoever holds the lease (A2)."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    kind = models.CharField(max_length=5)
    pin_id = models.CharField(max_length=512)
    fence = models.BigIntegerField(default=0)
    holder = models.CharField(max_length=200, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    woken_at = models.DateTimeField(null=True, blank=True, help_text="When the sweeper last told a worker of it.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "kind", "pin_id"], name="one_lane")]

    def __str__(self) -> str:
        return f"{self.kind}:{self.pin_id}"


class Job(models.Model):
    """One accepted write. Numbers follow commits for each id (A1), a retried job takes a new one at its lane's tail;
    `job_id` is what clients and Mem0's marks carry."""

    number = models.BigIntegerField()
    job_id = models.UUIDField(unique=True)
    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    lane = models.ForeignKey(Lane, on_delete=models.CASCADE, related_name="jobs")
    kind = models.CharField(max_length=10, choices=[(k, k) for k in KINDS])
    state = models.CharField(
        max_length=10,
        default="pending",
        choices=[(s, s) for s in (*UNFINISHED, "completed", "failed")],
    )
    user_id = models.CharField(max_length=512, null=True, blank=True)
    agent_id = models.CharField(max_length=512, null=True, blank=True)
    run_id = models.CharField(max_length=512, null=True, blank=True)
    memory_id = models.CharField(max_length=512, null=True, blank=True)
    payload = models.JSONField(null=True, help_text="What to write; removed when kept long enough.")
    payload_bytes = models.PositiveIntegerField(default=0)
    results = models.JSONField(default=list, help_text="[{index, id, memory, event}] of what Mem0 has stored.")
    failed = models.JSONField(default=list, help_text="[{index, error}] of what it has refused.")
    attempts = models.PositiveIntegerField(default=0)
    error = models.CharField(max_length=300, blank=True)
    reason = models.CharField(max_length=40, blank=True, help_text="Stable code of why it failed or waits.")
    version = models.BigIntegerField(null=True, help_text="Its pin's version after it was stored.")
    next_attempt_at = models.DateTimeField(db_default=Now())
    accepted_at = models.DateTimeField(db_default=Now())
    stored_at = models.DateTimeField(null=True, blank=True)
    completed_at = models.DateTimeField(null=True, blank=True)
    warmed_at = models.DateTimeField(null=True, blank=True)
    reconcile_at = models.DateTimeField(null=True, blank=True, help_text="When to look for second copies (A7).")
    removing = models.BooleanField(default=False, db_default=False, help_text="Second copies are being removed.")
    dismissed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-number"]
        permissions = [("view_payload", "Can see what a job writes")]
        indexes = [
            models.Index(fields=["lane", "number"], name="job_queue", condition=Q(state__in=UNFINISHED)),
            models.Index(fields=["next_attempt_at"], name="job_due", condition=Q(state__in=UNFINISHED)),
            models.Index(fields=["reconcile_at"], name="job_reconcile", condition=Q(reconcile_at__isnull=False)),
            models.Index(fields=["project", "user_id", "-number"], name="job_user"),
            models.Index(fields=["project", "user_id", "number"], name="job_open_user", condition=OPEN),
            models.Index(fields=["project", "agent_id", "number"], name="job_open_agent", condition=OPEN),
            models.Index(fields=["project", "run_id", "number"], name="job_open_run", condition=OPEN),
            models.Index(
                fields=["project", "number"],
                name="job_delete_all",
                condition=Q(kind="delete_all", state__in=UNFINISHED),
            ),
            models.Index(fields=["project", "state", "-number"], name="job_state"),
            models.Index(
                fields=["project", "memory_id", "number"], name="job_memory", condition=Q(memory_id__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return str(self.job_id)


class Attempt(models.Model):
    """One call to Mem0, recorded before it is sent (A4). `outcome` empty: still running, or its process died."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="tries")
    number = models.PositiveIntegerField()
    indexes = models.JSONField(default=list, help_text="Which of the job's facts it carries.")
    fence = models.BigIntegerField()
    process = models.CharField(max_length=200, blank=True, help_text="Set when the attempt ends with its process.")
    started_at = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(
        max_length=12,
        blank=True,
        choices=[(o, o) for o in ("stored", "rejected", "unavailable", "unknown", "settled")],
    )

    class Meta:
        ordering = ["number"]
        constraints = [models.UniqueConstraint(fields=["job", "number"], name="one_attempt")]

    def __str__(self) -> str:
        return f"{self.job_id}/{self.number}"


class IdempotencyRecord(models.Model):
    """An Idempotency-Key, the body it came with and the job it made; kept IDEMPOTENCY_HOURS."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    key_digest = models.CharField(max_length=64)
    body_digest = models.CharField(max_length=64)
    job = models.ForeignKey(Job, on_delete=models.CASCADE)
    created_at = models.DateTimeField(db_default=Now(), db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "key_digest"], name="one_idempotency_key")]

    def __str__(self) -> str:
        return self.key_digest[:8]
