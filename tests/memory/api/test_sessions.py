"""Short-term memory over HTTP."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.django_db(transaction=True)


def say(api, content: str = "tea", session_id: str = "s", **more):
    body = {"session_id": session_id, "user_id": "ann", "role": "user", "content": content, **more}
    return api.post("/stm/add_message", body)


def test_a_message_is_kept_with_its_turn_and_the_tiers_sizes(api):
    answer = say(api, message_id="m-1")
    assert answer.status_code == 200
    assert answer.json()["turn"] == 1
    assert answer.json()["tiers"] == {"full": 1, "summary": 0, "compressed": 0}
    assert say(api, message_id="m-1").json()["turn"] == 1


def test_several_messages_are_kept_in_their_order(api):
    messages = [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "Yes."}]
    answer = api.post("/stm/add_message", {"session_id": "s", "user_id": "ann", "messages": messages})
    assert answer.json()["turns"] == [1, 2]
    full = api.get("/stm/s/context").json()["tiers"]["full"]
    assert [(one["turn"], one["role"], one["content"]) for one in full] == [
        (1, "user", "tea?"),
        (2, "assistant", "Yes."),
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": "user", "content": "x"}, "session_id"),
        ({"session_id": "s", "content": "x"}, "role"),
        ({"session_id": "s", "role": "user"}, "content"),
        (
            {"session_id": "s", "role": "user", "content": "x", "messages": [{"role": "user", "content": "y"}]},
            "messages",
        ),
        ({"session_id": "s", "messages": [{"role": "pope", "content": "y"}]}, "messages[0].role"),
    ],
)
def test_bad_messages_are_refused_by_field(api, body, field):
    response = api.post("/stm/add_message", {"user_id": "ann", **body})
    assert response.status_code == 400
    assert field in {error["field"] for error in response.json()["errors"]}


def test_a_session_begins_with_a_user_and_stays_theirs(api):
    first = api.post("/stm/add_message", {"session_id": "s", "role": "user", "content": "tea"})
    assert (first.status_code, first.json()["code"]) == (400, "user_needed")
    say(api)
    other = say(api, user_id="ben")
    assert (other.status_code, other.json()["code"]) == (409, "session_of_another_user")


def test_the_context_holds_what_is_on_its_way_to_mem0(api):
    say(api)
    api.add("Ann has a dog", wait="none")
    told = api.get("/stm/s/context").json()
    assert [one["memory"] for one in told["pending"]] == ["Ann has a dog"]
    chat = api.get("/stm/s/context?format=openai&max_tokens=1000").json()["messages"]
    assert [one["role"] for one in chat] == ["system", "user"]
    assert "Ann has a dog" in chat[0]["content"]


def test_an_ended_session_is_gone(api):
    say(api)
    assert api.delete("/stm/s").json() == {"session_id": "s", "user_id": "ann", "ended": True}
    assert api.get("/stm/s/context").status_code == api.delete("/stm/s").status_code == 404
    assert say(api).json()["turn"] == 1


def test_g1_no_other_project_and_no_other_users_key_reaches_a_session(api, other, make_key):
    say(api, session_id="a/b", content="secret")
    bens = make_key("read", "write", user_id="ben")
    for stranger in (other, bens):
        assert stranger.get("/stm/a%2Fb/context").status_code == 404
        assert stranger.delete("/stm/a%2Fb").status_code == 404
    assert say(bens, user_id="ann").status_code == 403
    assert say(other, session_id="a/b").json()["turn"] == 1
    anns = make_key("read", "write", user_id="ann")
    assert anns.get("/stm/a%2Fb/context").json()["tiers"]["full"][0]["content"] == "secret"
