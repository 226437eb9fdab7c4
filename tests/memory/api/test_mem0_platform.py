"""Mem0's Platform API: what its clients send, what they read, and what is refused. The clients themselves are in
tests/clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client

from memory.models import Feedback, Job, Project, Snapshot
from memory.tenancy import keys

pytestmark = pytest.mark.django_db(transaction=True)

UNKNOWN = "00000000-0000-4000-8000-000000000000"


class Platform:
    """A caller as Mem0's clients are."""

    def __init__(self, secret: str | None) -> None:
        self._headers = {} if secret is None else {"Authorization": f"Token {secret}"}
        self._client = Client(raise_request_exception=False)

    def send(self, method: str, path: str, body: Any = None) -> HttpResponse:
        content = b"" if body is None else json.dumps(body).encode()
        kind = "" if body is None else "application/json"
        response = self._client.generic(method, path, content, kind, headers=self._headers)
        assert response["Content-Type"] == "application/json"
        assert response.status_code < 400 or isinstance(response.json()["detail"], str)
        return response

    def add(self, *texts: str, **more: Any) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": text} for text in texts], "infer": False, "async_mode": False}
        response = self.send("POST", "/v3/memories/add/", {"user_id": "ann", **body, **more})
        assert response.status_code == 200, response.content
        return response.json()

    def search(self, filters: Any, **more: Any) -> HttpResponse:
        return self.send("POST", "/v3/memories/search/", {"query": "tea?", "filters": filters, **more})

    def list(self, filters: Any, path: str = "/v3/memories/", **more: Any) -> HttpResponse:
        return self.send("POST", path, {"filters": filters, **more})


@pytest.fixture
def caller(api, project: Project) -> Any:
    def make(**options: Any) -> Platform:
        of = options.pop("of", project)
        return Platform(keys.create(of, name="test", scopes=options.pop("scopes", keys.SCOPES), **options)[1])

    return make


@pytest.fixture
def ann_calls(caller, worker) -> Platform:
    return caller()


def texts(response: HttpResponse) -> list[str]:
    assert response.status_code == 200, response.content
    return [row["memory"] for row in response.json()["results"]]


# -- the way in --------------------------------------------------------------------------------------------------------


def test_every_good_key_may_ping_so_that_a_client_can_be_made_with_it(project, redis):
    for scope in keys.SCOPES:
        caller = Platform(keys.create(project, name=scope, scopes=[scope])[1])
        assert caller.send("GET", "/v1/ping/").status_code == 200


def test_a_ping_tells_what_a_client_needs_and_nothing_that_it_would_send_on(caller, project):
    told = caller().send("GET", "/v1/ping/").json()
    assert told["status"] == "ok"
    assert (told["org_id"], told["project_id"]) == ("memsvc", project.slug)
    assert "@" not in told["user_email"]


@pytest.mark.parametrize("path", ["/v1/ping", "//v1/ping/"])
def test_slashes_too_many_or_too_few_are_the_same_route(project, api, path):
    secret = keys.create(project, name="test", scopes=keys.SCOPES)[1]
    assert Client().get("/", headers={"Authorization": f"Token {secret}"}, PATH_INFO=path).status_code == 200


def test_a_wrong_or_missing_key_is_401_with_a_detail(api):
    for secret in (None, "m0-wrong"):
        assert Platform(secret).send("GET", "/v1/ping/").status_code == 401


def test_both_kinds_of_key_header_open_the_same_door(project, api):
    secret = keys.create(project, name="test", scopes=keys.SCOPES)[1]
    for headers in ({"Authorization": f"Bearer {secret}"}, {"X-API-Key": secret}):
        assert Client().get("/v1/ping/", headers=headers).status_code == 200


def test_a_path_that_is_no_route_is_404_with_a_detail(caller):
    assert caller().send("GET", "/v1/nothing/").status_code == 404


# -- adding ------------------------------------------------------------------------------------------------------------


def test_an_add_is_pending_until_its_event_has_succeeded(caller, api):
    sent = {"messages": [{"role": "user", "content": "tea"}], "user_id": "ann", "infer": False}
    told = caller().send("POST", "/v3/memories/add/", sent).json()
    assert told["status"] == "PENDING"
    event = caller().send("GET", f"/v1/event/{told['event_id']}/").json()
    assert (event["status"], event["event_type"], event["results"]) == ("PENDING", "ADD", [])


def test_the_event_of_a_delivered_add_names_what_is_stored(ann_calls):
    told = ann_calls.add("tea")
    event = ann_calls.send("GET", f"/v1/event/{told['event_id']}/").json()
    assert event["status"] == "SUCCEEDED"
    assert [(one["event"], one["data"]["memory"]) for one in event["results"]] == [("ADD", "tea")]
    assert ann_calls.send("GET", "/v1/events/").json()["count"] == 1


def test_an_add_that_waits_answers_with_the_memories(ann_calls):
    told = ann_calls.add("tea", "milk")
    assert [(one["memory"], one["event"]) for one in told["results"]] == [("tea", "ADD"), ("milk", "ADD")]


@pytest.mark.parametrize(
    "messages",
    [
        "tea",
        {"role": "user", "content": "tea"},
        [{"content": "tea"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "tea"}]}],
        [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "user", "content": "tea"}],
    ],
)
def test_messages_come_in_every_form_that_clients_send(ann_calls, mem0, messages):
    ann_calls.send(
        "POST", "/v1/memories/", {"messages": messages, "user_id": "ann", "infer": False, "async_mode": False}
    )
    assert mem0.texts() == ["tea"]


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": None},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "pope", "content": "tea"}]},
        {"timestamp": 1},
        {"custom_instructions": "only food"},
        {"infer": True, "expiration_date": "2030-01-01"},
        {"metadata": {"user_id": "ben"}},
        {"user_id": "*"},
        {"filters": {"user_id": "ann", "mood": "calm"}},
        {"messages": [{"role": "system", "content": "Be brief."}]},
    ],
)
def test_what_cannot_be_done_as_asked_is_refused_and_not_kept(caller, change):
    sent = {"messages": [{"role": "user", "content": "tea"}], "user_id": "ann", "infer": False} | change
    assert caller().send("POST", "/v3/memories/add/", sent).status_code == 400
    assert not Job.objects.exists()


def test_ids_of_an_add_may_come_as_filters_and_unknown_parameters_do_no_harm(ann_calls, mem0):
    ann_calls.add(
        "tea", user_id=None, filters={"user_id": "ben"}, output_format="v1.1", version="v2", enable_graph=True
    )
    assert mem0.texts("ben") == ["tea"]


def test_an_app_is_kept_and_found_again(ann_calls, mem0):
    ann_calls.add("tea", app_id="shop", metadata={"mood": "calm"})
    mem0.store(_scope(), "milk", {})
    (row,) = ann_calls.list({"AND": [{"user_id": "ann"}, {"app_id": "shop"}]}).json()["results"]
    assert (row["memory"], row["app_id"], row["metadata"]) == ("tea", "shop", {"mood": "calm"})


# -- finding -----------------------------------------------------------------------------------------------------------


def test_a_search_answers_in_the_platforms_words(ann_calls):
    ann_calls.add("tea", metadata={"a_b": 1})
    (row,) = ann_calls.search({"user_id": "ann"}, top_k=3, rerank=True).json()["results"]
    assert row.keys() == {
        *("id", "memory", "user_id", "agent_id", "app_id", "run_id", "score", "metadata", "categories"),
        *("created_at", "updated_at", "expiration_date"),
    }
    assert (row["memory"], row["user_id"], row["metadata"]) == ("tea", "ann", {"a_b": 1})


def test_the_second_search_is_a_hit_of_the_cache_that_the_native_api_fills(ann_calls, api, mem0):
    ann_calls.add("tea")
    api.search("tea?", top_k=10)
    mem0.calls.clear()
    found = ann_calls.search({"AND": [{"user_id": "ann"}]})
    assert texts(found) == ["tea"]
    assert found.json()["meta"]["layer"] == "L0"
    assert mem0.calls == []


def test_a_hit_is_gone_with_a_write(ann_calls):
    ann_calls.add("tea")
    assert texts(ann_calls.search({"user_id": "ann"})) == ["tea"]
    ann_calls.add("milk")
    assert texts(ann_calls.search({"user_id": "ann"})) == ["tea", "milk"]


@pytest.mark.parametrize(
    "filters",
    [
        {"OR": [{"user_id": "ann"}, {"user_id": "ben"}]},
        {"user_id": {"in": ["ann", "ben"]}},
        {"AND": [{"OR": [{"user_id": "ann"}, {"user_id": {"eq": "ben"}}]}]},
    ],
)
def test_alternatives_of_ids_are_each_asked_for(ann_calls, filters):
    ann_calls.add("tea")
    ann_calls.add("milk", user_id="ben")
    ann_calls.add("beer", user_id="cy")
    assert sorted(texts(ann_calls.search(filters))) == ["milk", "tea"]
    assert sorted(texts(ann_calls.list(filters))) == ["milk", "tea"]


def test_a_filter_that_contradicts_itself_finds_nothing(ann_calls, mem0):
    ann_calls.add("tea")
    for filters in ({"AND": [{"user_id": "ann"}, {"user_id": "ben"}]}, {"user_id": "ann", "AND": [{"user_id": "ben"}]}):
        assert texts(ann_calls.search(filters)) == []
        assert texts(ann_calls.list(filters)) == []


def test_conditions_on_metadata_hold_in_listings(ann_calls):
    ann_calls.add("tea", metadata={"mood": "calm"})
    ann_calls.add("coffee", metadata={"mood": "keen"}, agent_id="cook")
    mood = {"AND": [{"user_id": "ann"}, {"OR": [{"mood": "calm"}, {"mood": "dull"}]}]}
    assert texts(ann_calls.list(mood)) == ["tea"]
    assert texts(ann_calls.list({"user_id": "ann", "metadata": {"mood": "keen"}})) == ["coffee"]
    assert texts(ann_calls.list({"AND": [{"user_id": "ann"}, {"agent_id": "*"}]})) == ["coffee"]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        None,
        "user_id",
        {"mood": "calm"},
        {"user_id": "*"},
        {"NOT": [{"user_id": "ann"}]},
        {"user_id": {"ne": "ann"}},
        {"user_id": "ann", "OR": [{"user_id": "ben"}, {"mood": "calm"}], "AND": "x"},
        {"OR": [{"user_id": "ann"}, {"mood": "calm"}]},
        {"user_id": "ann", "categories": {"in": ["food"]}},
        {"user_id": {"in": [f"u{n}" for n in range(21)]}},
        {"user_id": "ann", "mood": {"like": "c"}},
    ],
)
def test_a_filter_that_pins_nobody_or_cannot_be_kept_to_is_refused(caller, filters, mem0):
    assert caller().search(filters).status_code == 400
    assert caller().list(filters).status_code == 400
    assert mem0.calls == []


def either(place: int) -> dict[str, object]:
    return {"OR": [{"user_id": "ann", f"a{place}": 1}, {"user_id": "ann", f"a{place}": 2}]}


@pytest.mark.parametrize(
    "filters",
    [
        {"AND": [either(place) for place in range(40)]},
        {"AND": [{"AND": [either(place) for place in range(start, start + 4)]} for start in range(0, 40, 4)]},
        {"OR": [{"AND": [either(place) for place in range(40)]}]},
        {"user_id": "ann", "NOT": [{"AND": [either(place) for place in range(40)]}]},
    ],
    ids=["in one AND", "in ANDs of an AND", "in an OR", "in a NOT"],
)
def test_alternatives_that_multiply_are_refused_as_soon_as_they_are_too_many(caller, filters):
    assert caller().search(filters).status_code == 400


def test_conditions_are_refused_as_soon_as_they_are_too_many(caller):
    """What comes after them is not even read: each is kept beside all before it."""
    response = caller().search({"AND": [{"user_id": "ann"}, *([{"a": 1}] * 51), {"categories": "food"}]})
    assert response.status_code == 400
    assert "at most 50 conditions" in response.content.decode()


def test_alternatives_that_contradict_each_other_do_not_count(ann_calls):
    ann_calls.add("tea")
    named = [{"OR": [{"user_id": name} for name in ("ann", f"ben{n}", f"cy{n}")]} for n in range(10)]
    assert texts(ann_calls.search({"AND": named})) == ["tea"]


def test_a_listing_has_pages_newest_first(ann_calls):
    ann_calls.add("one", "two", "three")
    first = ann_calls.send("POST", "/v3/memories/?page=1&page_size=2", {"filters": {"user_id": "ann"}})
    assert texts(first) == ["three", "two"]
    assert (first.json()["count"], first.json()["previous"]) == (3, None)
    assert texts(ann_calls.list({"user_id": "ann"}, first.json()["next"].removeprefix("http://testserver"))) == ["one"]


def test_expired_memories_are_listed_only_where_asked_for(ann_calls, mem0):
    mem0.store(_scope(), "old", {}, "2020-01-01")
    assert texts(ann_calls.list({"user_id": "ann"})) == []
    assert texts(ann_calls.list({"user_id": "ann"}, show_expired=True)) == ["old"]


def test_only_the_fields_asked_for_come(ann_calls):
    ann_calls.add("tea")
    (row,) = ann_calls.search({"user_id": "ann"}, fields=["memory"]).json()["results"]
    assert row.keys() == {"id", "memory"}


def test_older_clients_find_their_paths_and_ids_beside_the_query(ann_calls):
    ann_calls.add("tea")
    assert texts(ann_calls.send("POST", "/v1/memories/search/", {"query": "tea?", "user_id": "ann"})) == ["tea"]
    assert texts(ann_calls.send("POST", "/v2/memories/search/", {"query": "tea?", "filters": {"user_id": "ann"}})) == [
        "tea"
    ]
    assert texts(ann_calls.send("POST", "/v2/memories/", {"filters": {"user_id": "ann"}})) == ["tea"]


# -- by id -------------------------------------------------------------------------------------------------------------


def test_a_memory_is_read_changed_and_deleted_by_its_id(ann_calls, mem0):
    (one,) = ann_calls.add("tea")["results"]
    path = f"/v1/memories/{one['id']}/"
    assert ann_calls.send("GET", path).json()["memory"] == "tea"
    assert ann_calls.send("PUT", path, {"text": "green tea", "metadata": {"q": 1}}).json()["memory"] == "green tea"
    assert ann_calls.send("GET", f"{path}history/").json() == []
    assert ann_calls.send("DELETE", path).json()["message"]
    assert mem0.texts() == []
    for method in ("GET", "PUT", "DELETE"):
        assert ann_calls.send(method, path, {"text": "x"} if method == "PUT" else None).status_code == 404


def test_what_is_no_id_is_an_unknown_memory(caller):
    for path in (f"/v1/memories/{UNKNOWN}/", "/v1/memories/m1/", "/v1/memories/x/history/", "/v1/event/e/"):
        assert caller().send("GET", path).status_code == 404


def test_a_batch_changes_all_or_nothing_where_one_is_unknown(ann_calls, mem0):
    one, two = ann_calls.add("tea", "milk")["results"]
    changes = [{"memory_id": one["id"], "text": "green tea"}, {"memory_id": UNKNOWN, "text": "x"}]
    assert ann_calls.send("PUT", "/v1/batch/", {"memories": changes}).status_code == 404
    assert mem0.texts() == ["tea", "milk"]
    changes[1]["memory_id"] = two["id"]
    assert "2" in ann_calls.send("PUT", "/v1/batch/", {"memories": changes}).json()["message"]
    assert mem0.texts() == ["green tea", "x"]
    gone = [{"memory_id": one["id"]}, {"memory_id": two["id"]}]
    assert ann_calls.send("DELETE", "/v1/batch/", {"memories": gone}).status_code == 200
    assert mem0.texts() == []


def test_feedback_is_kept_last_word_first_and_can_be_taken_back(ann_calls):
    (one,) = ann_calls.add("tea")["results"]
    for said in ("POSITIVE", "NEGATIVE"):
        sent = {"memory_id": one["id"], "feedback": said, "feedback_reason": None}
        assert ann_calls.send("POST", "/v1/feedback/", sent).status_code == 200
    assert Feedback.objects.get().feedback == "NEGATIVE"
    ann_calls.send("POST", "/v1/feedback/", {"memory_id": one["id"], "feedback": None})
    assert not Feedback.objects.exists()
    assert ann_calls.send("POST", "/v1/feedback/", {"memory_id": UNKNOWN, "feedback": "POSITIVE"}).status_code == 404


# -- deleting all ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "user_id=ann",
        "filters=%7B%27user_id%27%3A+%27ann%27%7D",  # {'user_id': 'ann'}, as the Python client writes it
        "filters=%7B%22AND%22%3A%5B%7B%22user_id%22%3A%22ann%22%7D%5D%7D",
        "user_id=ann&filters=%7B%27user_id%27%3A+%27ann%27%7D&org_id=memsvc&project_id=test",
    ],
)
def test_everything_of_a_user_is_deleted(ann_calls, mem0, query):
    ann_calls.add("tea")
    ann_calls.add("milk", user_id="ben")
    assert ann_calls.send("DELETE", f"/v1/memories/?{query}").status_code == 200
    assert mem0.texts() == ["milk"]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "org_id=memsvc",
        "user_id=",
        "user_id=*",
        "app_id=shop",
        "metadata=x",
        "filters=",
        "filters={}",
        "filters=__import__('os').getcwd()",
        "filters={'user_id':'ann','mood':'calm'}",
        "filters={'user_id':'*'}",
        "filters={'mood':'calm'}",
        "filters={'OR':[{'user_id':'ann'},{'mood':'calm'}]}",
        "user_id=ann&filters={'user_id':'ben'}",
        "filters=" + "(" * 4000,
        "filters=" + "x" * 5000,
    ],
)
def test_a_delete_that_does_not_say_whose_or_says_more_than_ids_is_refused(caller, query):
    assert caller().send("DELETE", f"/v1/memories/?{query}").status_code == 400
    assert not Job.objects.exists()


def test_entities_are_listed_and_deleted(ann_calls, mem0):
    ann_calls.add("tea", agent_id="a/b")
    rows = ann_calls.send("GET", "/v1/entities/").json()
    assert {(row["type"], row["name"]) for row in rows["results"]} == {("user", "ann"), ("agent", "a/b")}
    assert ann_calls.send("GET", "/v1/entities/?page=1&page_size=1").json()["next"]
    assert ann_calls.send("DELETE", "/v2/entities/agent/a%20b/").status_code == 400  # no white space in ids
    assert ann_calls.send("DELETE", "/v2/entities/agent/a%2Fb/").status_code == 200
    assert mem0.texts() == []
    ann_calls.add("tea")
    assert ann_calls.send("DELETE", "/v2/entities/user/ann/").status_code == 200
    assert mem0.texts() == []
    assert ann_calls.send("DELETE", "/v2/entities/app/shop/").status_code == 501


def test_the_slash_after_an_entity_is_the_routes_and_no_id_is_shortened_to_anothers(ann_calls, mem0):
    ann_calls.add("tea", user_id="a")
    ann_calls.add("milk", user_id="a/")
    assert ann_calls.send("DELETE", "/v2/entities/user/a").status_code == 404
    assert ann_calls.send("GET", "/v2/entities/user/a%2F/profile/").json()["entity_id"] == "a/"
    assert mem0.texts() == ["tea", "milk"]
    assert ann_calls.send("DELETE", "/v2/entities/user/a%2F/").status_code == 200
    assert mem0.texts() == ["tea"]


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_an_export_gives_the_memories_by_its_id_or_by_ids(ann_calls):
    ann_calls.add("tea")
    made = ann_calls.send("POST", "/v1/exports/", {"schema": "{}", "user_id": "ann"})
    assert made.status_code == 201
    for asked in ({"memory_export_id": made.json()["id"]}, {"user_id": "ann"}, {"filters": {"user_id": "ann"}}):
        told = ann_calls.send("POST", "/v1/exports/get/", asked).json()
        assert [row["memory"] for row in told["memories"]] == ["tea"]
    assert ann_calls.send("POST", "/v1/exports/get/", {"memory_export_id": "x"}).status_code == 404


def summarised(project) -> None:
    topics = {"food": [{"memory": "tea"}]}
    Snapshot.objects.create(project=project, user_id="ann", version=0, complete=True, summary_version=0, topics=topics)


def test_a_profile_is_what_l3_holds(caller, project):
    told = caller().send("GET", "/v2/entities/user/ann/profile/").json()
    assert (told["status"], told["profile"]) == ("insufficient_data", {})
    summarised(project)
    told = caller().send("GET", "/v2/entities/user/ann/profile/").json()
    assert (told["status"], told["profile"]) == ("succeeded", {"food": ["tea"]})


def test_b9_a_profile_below_the_floor_is_not_served(caller, project, api):
    summarised(project)
    api.post("/users/ann/invalidate")
    assert api.get("/users/ann/summary").json()["topics"] == {}
    told = caller().send("GET", "/v2/entities/user/ann/profile/").json()
    assert (told["status"], told["profile"], told["updated_at"]) == ("pending", {}, None)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/summary/"),
        ("GET", "/api/v1/orgs/organizations/memsvc/projects/test/?fields=custom_instructions"),
        ("PATCH", "/api/v1/orgs/organizations/memsvc/projects/test/"),
        ("GET", "/api/v1/webhooks/projects/test/"),
        ("DELETE", "/api/v1/webhooks/7/"),
        ("POST", "/v2/profiles/jobs/"),
        ("GET", "/v2/profiles/settings/"),
    ],
)
def test_what_belongs_to_the_platform_alone_says_so(caller, method, path):
    assert caller().send(method, path).status_code == 501


# -- whose is what -----------------------------------------------------------------------------------------------------


def test_another_project_sees_and_changes_nothing(ann_calls, caller, mem0):
    (one,) = ann_calls.add("tea")["results"]
    made = ann_calls.send("POST", "/v1/exports/", {"schema": "{}", "user_id": "ann"}).json()["id"]
    event = Job.objects.get().job_id
    other = caller(of=Project.objects.create(name="Other", slug="other", namespace="other"))
    assert texts(other.search({"user_id": "ann"})) == []
    assert texts(other.list({"user_id": "ann"})) == []
    assert other.send("GET", "/v1/entities/").json()["count"] == 0
    assert other.send("GET", "/v1/events/").json()["count"] == 0
    for method, path, body in (
        ("GET", f"/v1/memories/{one['id']}/", None),
        ("GET", f"/v1/memories/{one['id']}/history/", None),
        ("PUT", f"/v1/memories/{one['id']}/", {"text": "mine"}),
        ("DELETE", f"/v1/memories/{one['id']}/", None),
        ("PUT", "/v1/batch/", {"memories": [{"memory_id": one["id"], "text": "mine"}]}),
        ("DELETE", "/v1/batch/", {"memories": [{"memory_id": one["id"]}]}),
        ("POST", "/v1/feedback/", {"memory_id": one["id"], "feedback": "POSITIVE"}),
        ("GET", f"/v1/event/{event}/", None),
        ("POST", "/v1/exports/get/", {"memory_export_id": made}),
    ):
        assert other.send(method, path, body).status_code == 404, path
    assert other.send("DELETE", "/v1/memories/?user_id=ann&source=CLI").status_code == 200
    assert mem0.texts() == ["tea"]


def test_a_key_bound_to_a_user_reaches_nobody_else(ann_calls, caller, mem0):
    (bens,) = ann_calls.add("milk", user_id="ben", agent_id="cook")["results"]
    bound = caller(user_id="ann")
    for filters in (
        {"user_id": "ben"},
        {"agent_id": "cook"},
        {"OR": [{"user_id": "ann"}, {"user_id": "ben"}]},
        {"OR": [{"user_id": "ann"}, {"agent_id": "cook"}]},
    ):
        assert bound.search(filters).status_code == 403
        assert bound.list(filters).status_code == 403
        assert bound.send("POST", "/v1/exports/", {"schema": "{}", "filters": filters}).status_code == 403
    assert bound.send("DELETE", "/v1/memories/?user_id=ben").status_code == 403
    assert bound.send("DELETE", "/v1/memories/?agent_id=cook").status_code == 403
    assert bound.send("DELETE", "/v2/entities/user/ben/").status_code == 403
    assert bound.send("GET", f"/v1/memories/{bens['id']}/").status_code == 404
    assert bound.send("GET", "/v2/entities/user/ben/profile/").status_code == 403
    assert bound.send("GET", "/v1/entities/").json()["results"] == []
    assert bound.send("GET", "/v1/events/").json()["count"] == 0
    assert mem0.texts() == ["milk"]


def test_a_key_for_reading_changes_nothing(ann_calls, caller):
    ann_calls.add("tea")
    reader = caller(scopes=["read"])
    assert texts(reader.search({"user_id": "ann"})) == ["tea"]
    assert texts(reader.list({"user_id": "ann"})) == ["tea"]
    for method, path in (("POST", "/v3/memories/add/"), ("DELETE", "/v1/memories/?user_id=ann"), ("PUT", "/v1/batch/")):
        assert reader.send(method, path, {}).status_code == 403


# -- when something is away --------------------------------------------------------------------------------------------


def test_an_outage_of_mem0_is_a_503_to_a_search_and_nothing_to_an_add(caller, mem0):
    mem0.down = True
    assert caller().search({"user_id": "ann"}).status_code == 503
    sent = {"messages": "tea", "user_id": "ann"}
    assert caller().send("POST", "/v3/memories/add/", sent).json()["status"] == "PENDING"


def _scope() -> Any:
    from memory.types import Scope

    return Scope(Project.objects.get().pk, "ann")
