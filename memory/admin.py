"""The operator's pages of projects, keys and jobs."""

from __future__ import annotations

import json
import uuid
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import BooleanField, ExpressionWrapper, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import formats
from django.utils.html import format_html
from django.utils.safestring import SafeString

from memory import erase, status, write
from memory.admin_base import PAYLOAD_PERMISSION, Act, ModelAdmin, Shown
from memory.admin_login import ThrottledLogin
from memory.admin_sessions import SessionAdmin
from memory.api.fields import Ident, Wrong
from memory.models import ApiKey, Attempt, Erasure, Job, Project
from memory.models.projects import LOCAL_RANKING
from memory.tenancy import keys, projects, upstreams

__all__ = ["ApiKeyAdmin", "JobAdmin", "ProjectAdmin", "SessionAdmin"]

admin.site.site_header = admin.site.site_title = "memsvc"
admin.site.index_title = "Operation"
admin.site.login_form = ThrottledLogin
admin.site.site_url = "/api/docs/"
admin.site.enable_nav_sidebar = False  # its width is the tables'


class ProjectForm(forms.ModelForm):  # type: ignore[type-arg]
    """A project; its upstream's key is written and never shown."""

    upstream_key = forms.CharField(
        required=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text="Of the upstream above. Never shown again; left empty it stays, and without an upstream it goes.",
    )
    local_ranking = forms.ChoiceField(required=False, choices=LOCAL_RANKING)

    def clean_upstream_url(self) -> str:
        """An address that a project may have."""
        url: str = self.cleaned_data["upstream_url"]
        if url:
            try:
                upstreams.check(url)
            except ValueError as error:
                raise forms.ValidationError(str(error)) from None
        return url

    def clean(self) -> dict[str, Any]:
        """A key that was not given is the one there was, for the same server alone."""
        sent = super().clean() or self.cleaned_data
        url, key = sent.get("upstream_url"), sent.get("upstream_key")
        if not key and url and url == self.initial.get("upstream_url"):
            sent["upstream_key"] = self.initial["upstream_key"]
        elif not url:
            sent["upstream_key"] = ""
        return sent


@admin.register(Project)
class ProjectAdmin(ModelAdmin):
    """Tenants. None is deleted here: its memories would stay in Mem0, belonging to nobody."""

    form = ProjectForm
    list_display = ("name", "slug", "upstream_url", "local_search", "on_unknown", "generation", "created_at")
    readonly_fields = ("namespace", "generation", "created_at")
    prepopulated_fields = {"slug": ("name",)}

    def get_prepopulated_fields(self, request: HttpRequest, obj: Any = None) -> dict[str, Any]:
        """Only a new project's slug follows its name."""
        return {} if obj else dict(self.prepopulated_fields)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never here."""
        return False

    def save_model(self, request: HttpRequest, obj: Project, form: Any, change: bool) -> None:
        """Keep it, moving its generation if a policy changed."""
        projects.save(obj)


class NewKey(forms.ModelForm):  # type: ignore[type-arg]
    """What a person decides of a new key; its secret is made."""

    scopes = forms.MultipleChoiceField(
        choices=[(scope, scope) for scope in keys.SCOPES],
        initial=["read", "write"],
        widget=forms.CheckboxSelectMultiple,
    )

    class Meta:
        model = ApiKey
        fields = ("project", "name", "scopes", "user_id", "requests_per_minute", "expires_at")

    def clean_user_id(self) -> str:
        """An id as the API takes it, or none."""
        given: str = self.cleaned_data["user_id"]
        try:
            return Ident().check(given) if given else ""
        except Wrong as wrong:
            raise forms.ValidationError(str(wrong)) from None


def _revoke(request: HttpRequest, key: ApiKey) -> str | None:
    if not ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=Now()):
        return None
    return f"revoked; refused everywhere within {keys.FRESH_SECONDS:.0f} s."


@admin.register(ApiKey)
class ApiKeyAdmin(Shown):
    """Keys. A secret is shown once, when it is made; nobody can see it again."""

    list_display = ("name", "prefix", "project", "scopes", "user_id", "last_used_at", "expires_at", "revoked_at")
    list_filter = ("project", ("revoked_at", admin.EmptyFieldListFilter))
    list_select_related = ("project",)
    search_fields = ("name", "prefix", "user_id")
    fields = (*list_display, "requests_per_minute", "created_at")
    form = NewKey
    acts = (
        Act(
            name="revoke",
            label="Revoke",
            question="Requests with this key will be refused. This cannot be undone.",
            permission="memory.change_apikey",
            run=_revoke,
            applies=lambda key: key.revoked_at is None,
        ),
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Whoever may add keys."""
        return ModelAdmin.has_add_permission(self, request)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """What is asked of a new key; what is shown of others."""
        return self.fields if obj else NewKey.Meta.fields

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """One way to save: every other would leave the page with the secret out."""
        one_way = {"show_save_and_continue": False, "show_save_and_add_another": False}
        return super().add_view(request, form_url, {**(extra_context or {}), **one_way})

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Make the key; `obj` becomes it, with its secret for the one answer that shows it."""
        asked = form.cleaned_data
        made, secret = keys.create(**{name: asked[name] for name in NewKey.Meta.fields})
        vars(obj).update(vars(made), secret=secret)

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """The page with the secret: not a redirect, which would have to keep it somewhere meanwhile."""
        context = self.context(request, "The new key", key=obj, secret=vars(obj)["secret"])
        return TemplateResponse(request, "admin/key_made.html", context)


class Attempts(admin.TabularInline):  # type: ignore[type-arg]
    """Each call to Mem0 that the job made."""

    model = Attempt
    fields = readonly_fields = ("number", "started_at", "ended_at", "outcome", "indexes", "fence", "process")
    extra = 0
    can_delete = False
    show_change_link = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Attempts are made by workers."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Who sees a job sees its attempts: they hold no text."""
        return True


class Dismissed(admin.SimpleListFilter):
    """Failed jobs that an operator has dismissed are out of the way until asked for."""

    title = "dismissed"
    parameter_name = "dismissed"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """What may be chosen beside hiding them."""
        return [("only", "Only dismissed"), ("also", "Also dismissed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows of the choice."""
        if self.value() == "also":
            return queryset
        return queryset.filter(dismissed_at__isnull=self.value() is None)

    def choices(self, changelist: Any) -> Any:
        """Django's "All" hides them here, and says so."""
        first, *others = super().choices(changelist)
        return [{**first, "display": "Hidden"}, *others]


def _retry(request: HttpRequest, job: Job) -> str | None:
    return "at its lane's tail again." if write.retry(job) else None


def _dismiss(request: HttpRequest, job: Job) -> str | None:
    return "dismissed." if write.dismiss(job) else None


@admin.register(Job)
class JobAdmin(Shown):
    """Accepted writes. What was to be written is seen only by those who may see payloads."""

    list_display = ("job_id", "state", "kind", "user_id", "project", "attempts", "why", "times")
    list_filter = ("state", "kind", "project", Dismissed)
    list_select_related = ("project",)
    ordering = ("-id",)
    sortable_by = ()
    search_fields = ("user_id",)
    search_help_text = "A job's id, or part of a user's."
    inlines = (Attempts,)
    change_list_template = "admin/jobs.html"
    fieldsets = (
        (None, {"fields": ("job_id", "state", "reason", "error", "kind", "project", "attempts", "version")}),
        ("About", {"fields": ("user_id", "agent_id", "run_id", "memory_id", "lane", "number")}),
        (
            "Times",
            {
                "fields": (
                    "accepted_at",
                    "next_attempt_at",
                    "stored_at",
                    "completed_at",
                    "warmed_at",
                    "reconcile_at",
                    "dismissed_at",
                )
            },
        ),
        ("What", {"fields": ("payload_bytes", "stored", "refused", "content")}),
    )
    acts = (
        Act(
            name="retry",
            label="Retry",
            question="What is not stored yet is sent again, after everything that waits in the same lane.",
            permission="memory.change_job",
            run=_retry,
            applies=lambda job: job.state == "failed" and job.kept,
        ),
        Act(
            name="dismiss",
            label="Dismiss",
            question="The job leaves the list of failed ones. Its payload is kept as long as any other's.",
            permission="memory.change_job",
            run=_dismiss,
            applies=lambda job: job.state == "failed" and job.dismissed_at is None,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """The list needs no text; a page of one job fetches its own."""
        kept = ExpressionWrapper(Q(payload__isnull=False), BooleanField())
        jobs: QuerySet[Any] = super().get_queryset(request).defer("payload", "results", "failed")
        annotated: QuerySet[Any] = jobs.annotate(kept=kept)
        return annotated

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """What was written is left out for those who may not see payloads."""
        if request.user.has_perm(PAYLOAD_PERMISSION):
            return self.fieldsets
        return (*self.fieldsets[:-1], ("What", {"fields": ("payload_bytes", "ids", "refused")}))

    def get_search_results(
        self,
        request: HttpRequest,
        queryset: QuerySet[Any],
        search_term: str,
    ) -> tuple[QuerySet[Any], bool]:
        """A job's whole id finds it among millions."""
        try:
            return queryset.filter(job_id=uuid.UUID(search_term)), False
        except ValueError:
            return super().get_search_results(request, queryset, search_term)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, under what waits now."""
        return super().changelist_view(request, {**(extra_context or {}), "backlog": status.backlog()})

    @admin.display(description="reason and error")
    def why(self, job: Job) -> str:
        """Why it waits or has failed."""
        return job.reason if job.reason == job.error else f"{job.reason} {job.error}".strip() or "–"

    @admin.display(description="accepted")
    def times(self, job: Job) -> SafeString:
        """When it was accepted, and how long after that it was stored and warm."""
        accepted = formats.date_format(job.accepted_at, "DATETIME_FORMAT")
        stored, warm = (_between(job.accepted_at, later) for later in (job.stored_at, job.warmed_at))
        return format_html("{}<br><small>stored after {}, warm after {}</small>", accepted, stored, warm)

    @admin.display(description="payload")
    def content(self, job: Job) -> str | SafeString:
        """What was to be written."""
        return "removed" if job.payload is None else _json(job.payload)

    @admin.display(description="results")
    def stored(self, job: Job) -> SafeString:
        """What Mem0 has stored."""
        return _json(job.results)

    @admin.display(description="results, without their texts")
    def ids(self, job: Job) -> SafeString:
        """What Mem0 has stored, by id."""
        return _json([{key: one[key] for key in ("index", "id", "event")} for one in job.results])

    @admin.display(description="refused")
    def refused(self, job: Job) -> SafeString:
        """What Mem0 has refused, and why."""
        return _json(job.failed)


@admin.register(Erasure)
class ErasureAdmin(Shown):
    """Erased users and the receipts: what was removed, and what nobody could."""

    list_display = ("erasure_id", "user_id", "project", "state", "accepted_at", "completed_at", "looked_again_at")
    list_select_related = ("project", "job")
    list_filter = ("project", ("completed_at", admin.EmptyFieldListFilter))
    search_fields = ("user_id",)
    fields = (*list_display[:-2], "emptied_at", "completed_at", "looked_again_at", "counts", "left")

    @admin.display(description="state")
    def state(self, erasure: Erasure) -> str:
        """How far it is, and why it waits."""
        shown = erase.receipt(erasure)
        return f"{shown['status']} {shown['reason'] or ''}".strip()

    @admin.display(description="removed")
    def counts(self, erasure: Erasure) -> SafeString:
        """How many of what."""
        return _json(erasure.removed)

    @admin.display(description="remains")
    def left(self, erasure: Erasure) -> SafeString:
        """What nobody could remove."""
        return _json(erasure.remains)


def _between(first: Any, last: Any) -> str:
    return f"{(last - first).total_seconds():.2f} s" if first and last else "–"


def _json(value: Any) -> SafeString:
    return format_html('<pre class="json">{}</pre>', json.dumps(value, ensure_ascii=False, indent=2))
