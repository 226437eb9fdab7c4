"""The end users a project's memories are about."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now

from memory.models.projects import Project


class MemoryUser(models.Model):
    """A user memsvc has written for or read of, and how warm it is. `warmed_version` is the version at which every
    step of a warm last ended; a failed warm leaves its version and reason until one succeeds."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE)
    user_id = models.CharField(max_length=512)
    first_seen_at = models.DateTimeField(db_default=Now())
    active_at = models.DateTimeField(db_default=Now(), help_text="Last write, search or read, to within an hour.")
    warmed_version = models.BigIntegerField(default=0)
    warmed_at = models.DateTimeField(null=True, blank=True)
    warm_superseded_version = models.BigIntegerField(default=0, help_text="Newest one whose warm was overtaken.")
    warm_failed_version = models.BigIntegerField(default=0)
    warm_failure = models.CharField(max_length=200, blank=True)
    answers = models.CharField(max_length=32, blank=True, db_default="", help_text="Which answers a warm left in L2.")
    answers_until = models.DateTimeField(null=True, blank=True, help_text="They all live until then, unless evicted.")
    rebuilt = models.BigIntegerField(db_default=0, help_text="The last rebuild that reached this user.")

    class Meta:
        ordering = ["id"]
        permissions = [
            ("warm_memoryuser", "Can warm a user now"),
            ("invalidate_memoryuser", "Can invalidate what is cached of a user"),
            ("erase_memoryuser", "Can erase a user"),
        ]
        constraints = [models.UniqueConstraint(fields=["project", "user_id"], name="one_user")]
        indexes = [
            models.Index(fields=["project", "-active_at"], name="user_activity"),
            models.Index(fields=["-active_at", "-id"], name="rebuild_order"),
        ]

    def __str__(self) -> str:
        return self.user_id
