"""What is warmed, and how each warm went."""

from __future__ import annotations

import uuid
from functools import cached_property

from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from memory.models import Project
from memory.types import Scope

REASONS = ("write", "manual", "api", "rebuild")
RUN_STATES = ("due", "running", "completed", "unchanged", "superseded", "failed")
REBUILD_STATES = ("running", "completed", "stopped")


class Topic(models.Model):
    """A question every user's summary answers. Those without a project serve all; a project's own of that name wins."""

    project = models.ForeignKey(
        Project, on_delete=models.CASCADE, null=True, blank=True, help_text="Empty: for all projects."
    )
    name = models.SlugField(max_length=64)
    title = models.CharField(max_length=200, blank=True)
    group = models.SlugField(max_length=32, blank=True, help_text="“favorite”: also part of user_favorite_summary.")
    questions = models.TextField(help_text="One a line, in each language the facts may be in.")
    limit = models.PositiveSmallIntegerField(default=10, validators=[MinValueValidator(1)])
    enabled = models.BooleanField(default=True)
    position = models.PositiveSmallIntegerField(default=100)

    class Meta:
        ordering = ["position", "name"]
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="one_topic", nulls_distinct=False),
        ]

    def __str__(self) -> str:
        return self.title or self.name

    def asked(self) -> list[str]:
        """Its questions, blank lines left out."""
        return [line.strip() for line in self.questions.splitlines() if line.strip()]


class LearnedQuery(models.Model):
    """A search a user really makes, and how much it is worth keeping warm: asked often, asked lately."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    user_id = models.CharField(max_length=512)
    fingerprint = models.CharField(max_length=32)
    query = models.JSONField(help_text="{text, top_k, threshold, filters, show_expired, agent_id, run_id}")
    weight = models.FloatField(
        help_text="log2 of the sum of 2^(weeks since 1970) over its uses: a week halves their worth."
    )

    class Meta:
        verbose_name_plural = "learned queries"
        constraints = [models.UniqueConstraint(fields=["project", "user_id", "fingerprint"], name="one_learned_query")]
        indexes = [models.Index(fields=["project", "user_id", "-weight"], name="learned_by_weight")]

    def __str__(self) -> str:
        return self.fingerprint


class RebuildRun(models.Model):
    """One pass over every user. While its lease stands a process works on it; afterwards another may go on."""

    run_id = models.UUIDField(unique=True, default=uuid.uuid4, editable=False)
    reason = models.CharField(max_length=10, choices=[(r, r) for r in ("beat", "manual", "api")])
    state = models.CharField(max_length=10, default="running", choices=[(s, s) for s in REBUILD_STATES])
    full = models.BooleanField(default=True, help_text="Lists every user in Mem0, whatever its totals say (C5).")
    totals = models.JSONField(null=True, help_text="{project: {user: memories}} as Mem0 counted; null: not trusted.")
    cursor = models.JSONField(null=True, help_text="[active_at, id] of the last user of the last whole batch.")
    total = models.PositiveIntegerField(default=0)
    done = models.PositiveIntegerField(default=0)
    unchanged = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    stop_requested = models.BooleanField(default=False)
    fence = models.BigIntegerField(default=0)
    lease_until = models.DateTimeField(null=True, blank=True)
    holder = models.CharField(max_length=200, blank=True)
    started_at = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["state"], condition=Q(state="running"), name="one_rebuild_at_a_time"),
        ]

    def __str__(self) -> str:
        return f"rebuild {self.pk}"


class WarmRun(models.Model):
    """One warm of one user: due, worked on under a lease, ended. Writes that come while it is due join it."""

    run_id = models.UUIDField(unique=True, default=uuid.uuid4, editable=False)
    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    user_id = models.CharField(max_length=512)
    reason = models.CharField(max_length=10, choices=[(r, r) for r in REASONS])
    state = models.CharField(max_length=10, default="due", choices=[(s, s) for s in RUN_STATES])
    rebuild = models.ForeignKey(RebuildRun, on_delete=models.CASCADE, null=True, blank=True, related_name="warms")
    wanted_version = models.BigIntegerField(default=0, help_text="The newest version it was asked to reach.")
    version = models.BigIntegerField(null=True, blank=True, help_text="The version it warmed.")
    due_at = models.DateTimeField(db_default=Now())
    sent_at = models.DateTimeField(null=True, blank=True, help_text="When its chain was last handed to the broker.")
    lease_until = models.DateTimeField(null=True, blank=True)
    holder = models.CharField(max_length=200, blank=True, db_default="")
    attempts = models.PositiveSmallIntegerField(default=0)
    step = models.CharField(max_length=10, blank=True, help_text="The last step that ended: L3, L2, L1, record.")
    error = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    milliseconds = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["project", "user_id"], condition=Q(state="due"), name="one_due_warm"),
            models.UniqueConstraint(fields=["rebuild", "project", "user_id"], name="one_warm_a_rebuild"),
        ]
        indexes = [
            models.Index(fields=["due_at"], name="warm_due", condition=Q(state="due")),
            models.Index(fields=["lease_until"], name="warm_running", condition=Q(state="running")),
            models.Index(fields=["project", "user_id", "-id"], name="warm_user"),
            models.Index(fields=["ended_at"], name="warm_ended", condition=Q(ended_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return str(self.run_id)

    @cached_property
    def scope(self) -> Scope:
        """Whom it warms."""
        return Scope(self.project_id, self.user_id)
