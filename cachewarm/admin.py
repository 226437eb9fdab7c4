"""The operator's pages of users, warming and topics: what the layers hold, why that was slow, warm it now."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, ExpressionWrapper, OuterRef, QuerySet, Subquery
from django.db.models.fields import FloatField
from django.db.models.functions import Coalesce, Extract, JSONObject, Now
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import formats
from django.utils.html import format_html
from django.utils.safestring import SafeString

from cachewarm import chains, rebuild, warmset
from cachewarm.models import RebuildRun, Topic, WarmRun
from memory import erase, inspect
from memory.admin_base import Act, ModelAdmin, Shown
from memory.clock import Deadline
from memory.errors import OriginError, Overloaded
from memory.inspect import Difference
from memory.invalidate import invalidate
from memory.models import Job, MemoryUser, PinVersion, SnapshotMemory
from memory.templatetags.operator_pages import span
from memory.tenancy.projects import policy
from memory.text import nfc
from memory.types import Pin, Query, Scope

COMPARE_SECONDS = 15.0
SHOWN_ROWS = 20
SHOWN_RUNS = 10
MOST_QUESTIONS = 8
QUESTION_CHARACTERS = 500
MOST_SHOWN = 100


def chip(word: str, tone: str) -> SafeString:
    """A word on a coloured ground; `tone` is hit, miss, off or down."""
    return format_html('<span class="chip {}">{}</span>', tone, word)


# -- users ------------------------------------------------------------------------------------------------------------


def _warm(request: HttpRequest, user: MemoryUser) -> str | None:
    run = chains.warm(user.project_id, user.user_id, "manual")
    return f"warm {run} is due."


def _invalidate(request: HttpRequest, user: MemoryUser) -> str | None:
    version = invalidate(Scope(user.project_id, user.user_id), policy(user.project_id))
    return f"nothing older than {version} is served."


def _erase(request: HttpRequest, user: MemoryUser) -> str | None:
    begun = erase.accept(Pin(user.project_id, "user", user.user_id), policy(user.project_id))
    return f"erase {begun} has begun; its receipt is among the erasures."


class Ask(forms.Form):
    """A question to inspect."""

    question = forms.CharField(max_length=2000, widget=forms.TextInput(attrs={"autocomplete": "off"}))
    top_k = forms.IntegerField(min_value=1, max_value=1000, initial=10, label="top_k")


@admin.register(MemoryUser)
class MemoryUserAdmin(Shown):
    """Users, and for each what every layer holds and why it would hit or miss."""

    list_display = ("user_id", "project", "version", "memories", "warmth", "last_run")
    list_filter = ("project",)
    list_select_related = ("project",)
    ordering = ("-id",)
    sortable_by = ()
    search_fields = ("user_id",)
    search_help_text = "Part of a user's id."
    acts = (
        Act(
            name="warm",
            label="Warm now",
            question="Mem0 is asked for the user's memories, and L3, L2 and L1 are filled.",
            permission="memory.warm_memoryuser",
            run=_warm,
        ),
        Act(
            name="invalidate",
            label="Invalidate",
            question="Nothing cached of the user before now is served any more, not even while Mem0 is away.",
            permission="memory.invalidate_memoryuser",
            run=_invalidate,
        ),
        Act(
            name="erase",
            label="Erase",
            question="Memories, sessions, pending writes and everything cached are removed, here and in Mem0. "
            "This cannot be undone.",
            permission="memory.erase_memoryuser",
            run=_erase,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """One statement for a page of the list: what stands beside each user comes by index."""
        mine = {"project_id": OuterRef("project_id")}
        pins = PinVersion.objects.filter(**mine, kind="user", pin_id=OuterRef("user_id"))
        rows = SnapshotMemory.objects.filter(
            snapshot__project_id=OuterRef("project_id"), snapshot__user_id=OuterRef("user_id")
        )
        runs = WarmRun.objects.filter(**mine, user_id=OuterRef("user_id")).order_by("-id")
        at = Coalesce("ended_at", "started_at", "created_at")
        age = ExpressionWrapper(Extract(Now() - at, "epoch"), FloatField())
        users: QuerySet[Any] = super().get_queryset(request)
        beside: dict[str, Any] = {
            "moved": Subquery(pins.values("version")),
            "rows": Subquery(rows.order_by().values("snapshot").annotate(n=Count("pk")).values("n")),
            "run": Subquery(runs.values_list(JSONObject(state="state", at=at, age=age, error="error"))[:1]),
        }
        annotated: QuerySet[Any] = users.annotate(**beside)
        return annotated

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """One user's page. A question and the comparison with Mem0 come by POST: neither belongs in an address."""
        user: MemoryUser | None = self.get_object(request, object_id)
        if user is None:
            raise Http404
        if not self.has_view_permission(request, user):
            raise PermissionDenied
        scope = Scope(user.project_id, user.user_id)
        asking = "question" in request.POST
        form = Ask(request.POST if asking else None)
        asked = None
        if asking and form.is_valid():
            text = nfc(form.cleaned_data["question"]).strip()
            asked = Query(scope, text, top_k=form.cleaned_data["top_k"])
        context = self.context(
            request,
            f"User {user.user_id}",
            user_row=user,
            warmth=self.warmth(user),
            project=user.project,
            policy=policy(user.project_id),
            acts=self.buttons(request, user),
            form=form,
            **_look(scope, asked),
            **(_compare(scope) if "compare" in request.POST else {}),
            runs=WarmRun.objects.filter(project=user.project_id, user_id=user.user_id)[:SHOWN_RUNS],
            jobs=Job.objects.filter(project=user.project_id, user_id=user.user_id)
            .order_by("-number")
            .defer("payload", "results", "failed")[:SHOWN_RUNS],
        )
        return TemplateResponse(request, "admin/user.html", context)

    @admin.display(description="version")
    def version(self, user: Any) -> int | str:
        """As PostgreSQL has it."""
        return user.moved or "–"

    @admin.display(description="memories in L3")
    def memories(self, user: Any) -> int | str:
        """Rows of L3."""
        return user.rows or "–"

    @admin.display(description="state")
    def warmth(self, user: Any) -> SafeString:
        """Whether the last warm stands at the current version."""
        if user.warm_failed_version > user.warmed_version:
            return chip("failed", "down")
        if user.warmed_at is None:
            return chip("never warmed", "off")
        return chip("warm", "hit") if user.warmed_version >= (user.moved or 0) else chip("behind", "miss")

    @admin.display(description="last warm")
    def last_run(self, user: Any) -> str | SafeString:
        """How the last run ended or where it is, when, and how long ago that is."""
        if not user.run:
            return "–"
        told = f"{user.run['state']} {user.run['error']}".strip()
        at = formats.date_format(datetime.fromisoformat(user.run["at"]), "DATETIME_FORMAT")
        return format_html("{}, {} ago<br><small>{}</small>", told, span(user.run["age"]), at)


def _look(scope: Scope, asked: Query | None) -> dict[str, Any]:
    found = inspect.user(scope, policy(scope.project), warmset.of(scope), asked)
    held = found.rows.memories if found.rows else ()
    newest = sorted(held, key=lambda memory: (memory.created_at or "", memory.id), reverse=True)
    questions = found.questions
    return {
        "found": found,
        "asked": questions[0] if asked else None,
        "warm_set": questions[1:] if asked else questions,
        "newest": newest[:SHOWN_ROWS],
    }


def _compare(scope: Scope) -> dict[str, Difference | str]:
    try:
        return {"difference": inspect.difference(scope, policy(scope.project), Deadline.after(COMPARE_SECONDS))}
    except (OriginError, Overloaded) as error:
        return {"upstream_error": f"Mem0 cannot be asked: {error.code}"}


# -- warming ----------------------------------------------------------------------------------------------------------

_TONES = {"completed": "hit", "unchanged": "hit", "failed": "down", "superseded": "off", "stopped": "off"}


@admin.register(WarmRun)
class WarmRunAdmin(Shown):
    """Warms of single users."""

    list_display = ("run_id", "user_id", "project", "reason", "outcome", "attempts", "created_at", "ms")
    list_filter = ("state", "reason", "project")
    list_select_related = ("project",)
    sortable_by = ()
    search_fields = ("user_id",)
    search_help_text = "Part of a user's id."

    @admin.display(description="state")
    def outcome(self, run: WarmRun) -> SafeString:
        """Where it is, after which step, and what went wrong."""
        step = f"after {run.step}" if run.step and run.state != "completed" else ""
        told = f"{step} {run.error}".strip()
        return format_html("{}<br><small>{}</small>", chip(run.state, _TONES.get(run.state, "miss")), told)

    @admin.display(description="ms")
    def ms(self, run: WarmRun) -> int | str:
        """How long it took."""
        return "–" if run.milliseconds is None else run.milliseconds


def _stop(request: HttpRequest, run: RebuildRun) -> str | None:
    return "stops after the user it is at." if rebuild.request_stop(run.pk) else None


def _resume(request: HttpRequest, run: RebuildRun) -> str | None:
    return "goes on where it stopped." if rebuild.resume(run.pk) else None


@admin.register(RebuildRun)
class RebuildRunAdmin(Shown):
    """Passes over every user."""

    list_display = (
        "__str__",
        "reason",
        "outcome",
        "progress",
        "unchanged",
        "failed",
        "full",
        "started_at",
        "ended_at",
    )
    list_filter = ("state", "reason")
    sortable_by = ()
    change_list_template = "admin/rebuilds.html"
    exclude = ("totals", "cursor")
    acts = (
        Act(
            name="stop",
            label="Stop",
            question="The rebuild ends after the user it is at. It can go on later.",
            permission="cachewarm.change_rebuildrun",
            run=_stop,
            applies=lambda run: run.state == "running" and not run.stop_requested,
        ),
        Act(
            name="resume",
            label="Resume",
            question="The rebuild goes on where it stopped.",
            permission="cachewarm.change_rebuildrun",
            run=_resume,
            applies=lambda run: run.state == "stopped",
        ),
    )
    begin = Act(
        name="begin",
        label="Rebuild now",
        question="Every user's caches are looked at, and filled again where Mem0 tells otherwise.",
        permission="cachewarm.add_rebuildrun",
        run=lambda request, run: None,
    )

    def get_urls(self) -> list[URLPattern]:
        """The page that begins one, too."""
        view = self.admin_site.admin_view(self.begin_view)
        return [path("begin/", view, name="cachewarm_rebuildrun_begin"), *super().get_urls()]

    def begin_view(self, request: HttpRequest) -> HttpResponse:
        """Ask, then begin a rebuild or point to the one that runs."""
        if not request.user.has_perm(self.begin.permission):
            raise PermissionDenied
        if request.method != "POST":
            back = reverse(f"{self.admin_site.name}:cachewarm_rebuildrun_changelist")
            return self.ask(request, self.begin, [], back, many=False)
        run, made = rebuild.start("manual")
        if made:
            self.log_change(request, run, self.begin.label)
            messages.success(request, f"{run} has begun.")
        else:
            messages.warning(request, f"{run} is still running.")
        return HttpResponseRedirect(self.page_of(run))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, with the button that begins one for those who may."""
        may_begin = request.user.has_perm(self.begin.permission)
        return super().changelist_view(request, {**(extra_context or {}), "may_begin": may_begin})

    @admin.display(description="state")
    def outcome(self, run: RebuildRun) -> SafeString:
        """Where it is."""
        word = "stopping" if run.state == "running" and run.stop_requested else run.state
        return chip(word, _TONES.get(run.state, "miss"))

    @admin.display(description="progress")
    def progress(self, run: RebuildRun) -> SafeString:
        """How far it is."""
        return format_html('<progress max="{1}" value="{0}"></progress> {0} of {1}', run.done, run.total)


# -- topics -----------------------------------------------------------------------------------------------------------


class TopicForm(forms.ModelForm):  # type: ignore[type-arg]
    """A topic needs something to ask."""

    class Meta:
        model = Topic
        fields = ("name", "title", "group", "project", "questions", "limit", "position", "enabled")
        widgets = {"questions": forms.Textarea(attrs={"rows": 4, "cols": 80})}

    def clean_questions(self) -> str:
        """One question a line: at least one, none too long to embed whole."""
        lines = [nfc(line).strip() for line in self.cleaned_data["questions"].splitlines()]
        asked = [line for line in lines if line]
        if not asked:
            raise forms.ValidationError("Write at least one question.")
        if len(asked) > MOST_QUESTIONS:
            raise forms.ValidationError(f"At most {MOST_QUESTIONS} questions: each is kept warm for every user.")
        if any(len(line) > QUESTION_CHARACTERS for line in asked):
            raise forms.ValidationError(f"A question may have at most {QUESTION_CHARACTERS} characters.")
        return "\n".join(asked)

    def clean_limit(self) -> int:
        """Summaries stay short enough to read."""
        limit: int = self.cleaned_data["limit"]
        if limit > MOST_SHOWN:
            raise forms.ValidationError(f"A summary shows at most {MOST_SHOWN} memories of a topic.")
        return limit


@admin.register(Topic)
class TopicAdmin(ModelAdmin):
    """What every user's summary tells. A change reaches each user with the next warm."""

    form = TopicForm
    list_display = ("name", "title", "group", "project", "first_question", "limit", "position", "enabled")
    list_filter = ("enabled", "group", "project")
    list_select_related = ("project",)
    search_fields = ("name", "title", "questions")
    show_full_result_count = False

    @admin.display(description="asks")
    def first_question(self, topic: Topic) -> str:
        """Its first question."""
        return next(iter(topic.asked()), "")
