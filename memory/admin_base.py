"""What the admin pages of both apps share: pages that only show, bounded counts, and acts that ask first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from memory.errors import MemsvcError

if TYPE_CHECKING:  # these take a type only where types are checked
    ModelAdmin = admin.ModelAdmin[Any]
    RowPaginator = Paginator[Any]
else:
    ModelAdmin, RowPaginator = admin.ModelAdmin, Paginator

MOST_COUNTED = 20_000
MOST_ROWS = 500
NAMED_ROWS = 20


@dataclass(frozen=True, slots=True)
class Act:
    """Something an operator may do to a row. `run` says what came of it, or None where there was nothing to do."""

    name: str
    label: str
    question: str
    permission: str
    run: Callable[[HttpRequest, Any], str | None]
    applies: Callable[[Any], bool] = lambda row: True


class BoundedPaginator(RowPaginator):
    """Counts at most MOST_COUNTED rows: a list of millions opens at once, and is searched instead of leafed through."""

    @cached_property
    def count(self) -> int:
        """How many rows can be leafed through."""
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]
        return rows.order_by().values("pk")[:MOST_COUNTED].count()


class Shown(ModelAdmin):
    """A page that only shows, with acts: each POST only, after a question, under a permission of its own."""

    acts: tuple[Act, ...] = ()
    change_form_template = "admin/shown_change_form.html"
    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    actions_on_bottom = False

    class Media:
        css = {"all": ["memory/operator.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Rows are made by the service."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Rows are changed by the service; an operator acts."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Rows are removed by the service."""
        return False

    def get_urls(self) -> list[URLPattern]:
        """The acts' pages before Django's own."""
        own = [
            path(
                f"<path:object_id>/{act.name}/",
                self.admin_site.admin_view(partial(self._act_on_one, act=act)),
                name=self._url_name(act),
            )
            for act in self.acts
        ]
        return own + super().get_urls()

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """The acts this person may do, on the rows they tick."""
        allowed = {act.name: (partial(_act_on_many, act=act), act.name, act.label) for act in self._allowed(request)}
        return super().get_actions(request) | allowed

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """The row's page, with a button for each act that applies."""
        context["acts"] = self.buttons(request, context.get("original"))
        return super().render_change_form(request, context, *args, **kwargs)

    def buttons(self, request: HttpRequest, row: Any) -> list[dict[str, str]]:
        """[{label, url}] of the acts this person may do to the row now."""
        if row is None:
            return []
        return [
            {"label": act.label, "url": reverse(f"{self.admin_site.name}:{self._url_name(act)}", args=[row.pk])}
            for act in self._allowed(request)
            if act.applies(row)
        ]

    def context(self, request: HttpRequest, title: str, **more: Any) -> dict[str, Any]:
        """What every page of this model needs in its template."""
        return {**self.admin_site.each_context(request), "opts": self.opts, "title": title, "media": self.media, **more}

    def page_of(self, row: Any) -> str:
        """The address of a row's page."""
        return reverse(f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_change", args=[row.pk])

    def page_of_all(self) -> str:
        """The address of the list."""
        return reverse(f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_changelist")

    def perform(self, request: HttpRequest, act: Act, rows: list[Any]) -> None:
        """Do it to each row, tell the person, and note it in Django's log of who did what."""
        for row in rows:
            try:
                outcome = act.run(request, row) if act.applies(row) else None
            except MemsvcError as error:
                messages.error(request, f"{row}: {error} ({error.code})")
                continue
            if outcome is None:
                messages.warning(request, f"{row}: nothing to do.")
            else:
                self.log_change(request, row, act.label)
                messages.success(request, f"{row}: {outcome}")

    def ask(self, request: HttpRequest, act: Act, rows: list[Any], back: str, *, many: bool) -> HttpResponse:
        """The question before the act."""
        context = self.context(
            request,
            act.label,
            act=act,
            rows=rows,
            named=rows[:NAMED_ROWS],
            unnamed=max(0, len(rows) - NAMED_ROWS),
            back=back,
            checkbox=ACTION_CHECKBOX_NAME if many else "",
        )
        return TemplateResponse(request, "admin/confirm_act.html", context)

    def _act_on_one(self, request: HttpRequest, object_id: str, act: Act) -> HttpResponse:
        row = self.get_object(request, unquote(object_id))
        if row is None:
            raise Http404
        if not (self.has_view_permission(request, row) and request.user.has_perm(act.permission)):
            raise PermissionDenied
        if request.method != "POST":
            return self.ask(request, act, [row], self.page_of(row), many=False)
        self.perform(request, act, [row])
        stays = self.get_object(request, unquote(object_id)) is not None
        return HttpResponseRedirect(self.page_of(row) if stays else self.page_of_all())

    def _allowed(self, request: HttpRequest) -> list[Act]:
        return [act for act in self.acts if request.user.has_perm(act.permission)]

    def _url_name(self, act: Act) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{act.name}"


def _act_on_many(model_admin: Shown, request: HttpRequest, queryset: QuerySet[Model], act: Act) -> HttpResponse | None:
    rows = list(queryset[: MOST_ROWS + 1])
    if len(rows) > MOST_ROWS:
        messages.error(request, f"At most {MOST_ROWS} rows at once.")
        return None
    if "confirmed" not in request.POST:
        return model_admin.ask(request, act, rows, request.get_full_path(), many=True)
    model_admin.perform(request, act, rows)
    return None
