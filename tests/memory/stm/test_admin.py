"""The operator's page of sessions."""

from __future__ import annotations

import pytest

from memory.models import Job, Session
from memory.stm import tiers
from tests.operators import operator, told

pytestmark = pytest.mark.django_db(transaction=True)

SESSIONS = "/admin/memory/session/"
VIEW = "memory.view_session"


@pytest.fixture
def page(say) -> str:
    session = say(*[f"<b>On day {n}</b> I bought {n} kilos of apples." for n in range(30)]).session
    tiers.compress(session.pk)
    return f"{SESSIONS}{session.pk}/change/"


def test_a_session_is_listed_and_found_by_its_user_and_never_with_its_text(page):
    staff = operator(VIEW)
    for query in ({}, {"q": "ann"}):
        shown = told(staff.get(SESSIONS, query))
        assert page in shown
        assert "apples" not in shown
    assert page not in told(staff.get(SESSIONS, {"q": "ben"}))


def test_its_page_tells_its_tiers_and_tokens_and_changes_nothing(page):
    shown = told(operator(VIEW, "memory.change_session").get(page))
    assert "summary: turns 1 to 20" in shown
    assert "full 1" in shown
    assert "apples" not in shown
    assert 'name="_save"' not in shown


def test_what_was_said_is_seen_only_with_the_permission_for_it(page):
    shown = told(operator(VIEW, "memory.view_payload").get(page))
    assert "user: &lt;b&gt;On day 29&lt;/b&gt;" in shown


def test_a_session_is_ended_after_a_question_and_its_messages_go_to_extraction(page, extract_on):
    extract_on("end")
    staff = operator(VIEW, "memory.delete_session")
    end = page.replace("/change/", "/end/")
    assert end in told(staff.get(page))
    assert "cannot be undone" in told(staff.get(end))
    assert Session.objects.count() == 1
    assert "ended." in told(staff.post(end, follow=True))
    assert (Session.objects.count(), Job.objects.count()) == (0, 1)


def test_who_may_only_look_ends_nothing_and_who_may_not_sees_nothing(page):
    end = page.replace("/change/", "/end/")
    assert operator(VIEW).post(end).status_code == 403
    assert operator("memory.view_job").get(page).status_code == 403
    assert end not in told(operator(VIEW).get(page))
    assert Session.objects.count() == 1
