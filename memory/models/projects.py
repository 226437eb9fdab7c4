"""Tenants and their keys."""

from __future__ import annotations

from django.core.validators import MinValueValidator
from django.db import models

LOCAL_SEARCH = (("", "as the service"), ("off", "off"), ("degraded", "while Mem0 is away"), ("on", "on"))
LOCAL_RANKING = (("", "as the service"), ("like_upstream", "as Mem0 does"), ("hybrid", "by vectors and words"))
ON_UNKNOWN = (("hold", "hold: end failed, keep the payload"), ("retry", "retry: a second copy is possible"))


EXTRACT_ON = (("never", "never"), ("end", "when a session ends"), ("turns", "every so many turns, and at the end"))


class Project(models.Model):
    """A tenant: its users, keys and policies. Saving a change of policy moves its generation (PROTOCOL B5)."""

    name = models.CharField(max_length=200)
    slug = models.SlugField(max_length=64, unique=True)
    namespace = models.CharField(
        max_length=32,
        blank=True,
        editable=False,
        help_text="Prefix of this project's ids in Mem0; empty for the first project, whose ids are Mem0's own.",
    )
    generation = models.BigIntegerField(default=1, editable=False)
    origin = models.CharField(
        max_length=64, blank=True, editable=False, help_text="Digest of its upstream and embedder."
    )
    upstream_url = models.CharField(
        "upstream", max_length=500, blank=True, help_text="A Mem0 server of its own; empty: the service's."
    )
    upstream_key = models.CharField(max_length=500, blank=True, help_text="That server's key. Never shown again.")
    local_search = models.CharField(max_length=10, choices=LOCAL_SEARCH, default="", blank=True)
    local_ranking = models.CharField(max_length=20, default="", blank=True)
    on_unknown = models.CharField(max_length=10, choices=ON_UNKNOWN, default="hold")
    extract_on = models.CharField(
        max_length=10,
        choices=EXTRACT_ON,
        default="never",
        help_text="When what is said in a session is handed to Mem0 to extract facts from.",
    )
    extract_every_turns = models.PositiveIntegerField(default=10, validators=[MinValueValidator(1)])
    backlog_max_jobs = models.PositiveIntegerField(null=True, blank=True, help_text="Empty: BACKLOG_MAX_JOBS.")
    backlog_max_bytes = models.BigIntegerField(null=True, blank=True, help_text="Empty: BACKLOG_MAX_BYTES.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]
        constraints = [models.UniqueConstraint(fields=["namespace"], name="one_namespace")]

    def __str__(self) -> str:
        return self.name


class ApiKey(models.Model):
    """A project's key. Only its SHA-256 is kept; the secret is shown once."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="keys")
    name = models.CharField(max_length=200)
    prefix = models.CharField(max_length=16, db_index=True, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    scopes = models.CharField(max_length=64, default="read,write", help_text="Of read, write, admin, with commas.")
    user_id = models.CharField(max_length=512, blank=True, help_text="If set, the key serves this user alone.")
    requests_per_minute = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Without, there is no limit."
    )
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"
