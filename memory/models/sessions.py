"""Short-term memory: what was said lately (DESIGN 8)."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now

from memory.models.projects import Project

TIERS = (("summary", "summary"), ("compressed", "compressed"))


class Session(models.Model):
    """A conversation with one user. Its row is the lock under which messages get their order; `version` moves with
    every change and, with the row's own number, is never used twice."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    session_id = models.CharField(max_length=512)
    user_id = models.CharField(max_length=512)
    version = models.BigIntegerField(default=0)
    turns = models.PositiveIntegerField(default=0, help_text="Messages so far; the last one's number.")
    summarised = models.PositiveIntegerField(default=0, help_text="The last turn that the tiers hold.")
    extracted = models.PositiveIntegerField(default=0, help_text="The last turn that was handed to extraction.")
    raw_tokens = models.PositiveBigIntegerField(default=0)
    busy_until = models.DateTimeField(null=True, help_text="Until then a worker compresses it, if it has not died.")
    woken_at = models.DateTimeField(null=True, help_text="When the sweeper last told a worker of it.")
    started_at = models.DateTimeField(db_default=Now())
    last_at = models.DateTimeField(db_default=Now(), db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "session_id"], name="one_session")]
        indexes = [
            models.Index(fields=["project", "user_id"], name="session_user"),
            models.Index(
                fields=["id"],
                name="session_long",
                condition=models.Q(turns__gte=models.F("summarised") + 20),
            ),
        ]

    def __str__(self) -> str:
        return self.session_id


class Message(models.Model):
    """One turn, as it was said; kept until its session has ended."""

    session = models.ForeignKey(Session, on_delete=models.CASCADE, related_name="messages")
    turn = models.PositiveIntegerField()
    message_id = models.CharField(max_length=512, null=True)
    role = models.CharField(max_length=10)
    content = models.TextField()
    metadata = models.JSONField(default=dict)
    tokens = models.PositiveIntegerField()
    job_id = models.UUIDField(null=True, help_text="The job that handed it to extraction.")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["turn"]
        constraints = [
            models.UniqueConstraint(fields=["session", "turn"], name="one_turn"),
            models.UniqueConstraint(fields=["session", "message_id"], name="one_message"),
        ]

    def __str__(self) -> str:
        return f"{self.session_id}/{self.turn}"


class Tier(models.Model):
    """What is told of older turns: `first` to `last`, made from the messages themselves."""

    session = models.ForeignKey(Session, on_delete=models.CASCADE, related_name="tiers")
    name = models.CharField(max_length=10, choices=TIERS)
    first = models.PositiveIntegerField()
    last = models.PositiveIntegerField()
    text = models.TextField()
    tokens = models.PositiveIntegerField()
    made_by = models.CharField(max_length=100, help_text="`extractive`, or the LLM's name.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["session", "name"], name="one_tier")]

    def __str__(self) -> str:
        return f"{self.session_id}/{self.name}"
