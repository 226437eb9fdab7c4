"""Every method of Mem0's Python client against a running service, one line of JSON each.

It imports nothing of memsvc: the interpreter that runs it has the client, 1.x or 2.x, and perhaps nothing else.

usage: python -m tests.clients.python_client sync|async URL KEY
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

os.environ["MEM0_TELEMETRY"] = "False"
os.environ.setdefault("MEM0_DIR", tempfile.mkdtemp())

import mem0
from mem0 import AsyncMemoryClient, MemoryClient

from tests.clients.script import UNKNOWN, eventually, refused, require, tell, works

MODE, URL, KEY = sys.argv[1:4]
USER = f"user-{uuid.uuid4().hex[:8]}"
MADE_BEFORE_2 = mem0.__version__.startswith("1.")

loop = asyncio.new_event_loop()
client: Any = MemoryClient(api_key=KEY, host=URL) if MODE == "sync" else AsyncMemoryClient(api_key=KEY, host=URL)


def call(name: str, /, *words: Any, of: Any = None, **options: Any) -> Any:
    """A method's answer, awaited where it has to be."""
    answer = getattr(client if of is None else of, name)(*words, **options)
    return loop.run_until_complete(answer) if asyncio.iscoroutine(answer) else answer


def raises(method: str, name: str, use: Callable[[], Any]) -> None:
    """A mistake that the client tells by an exception of this name (1.x: HTTP's own)."""
    try:
        use()
    except Exception as error:  # noqa: BLE001
        known = {type(error).__name__, type(error.__cause__).__name__}
        right = name in known or (MADE_BEFORE_2 and known & {"APIError", "HTTPStatusError"})
        tell(method, "works" if right else "broken", "" if right else f"{known} is not {name}")
    else:
        tell(method, "broken", "nothing was raised")


def texts(answer: Any) -> list[str]:
    return [row["memory"] for row in answer["results"]]


def event(event_id: str) -> Any:
    """Polling, as the platform's documents say; the client has no method for it."""
    answer = client.client.get(f"/v1/event/{event_id}/") if MODE == "sync" else None
    if answer is None:
        answer = loop.run_until_complete(client.async_client.get(f"/v1/event/{event_id}/"))
    answer.raise_for_status()
    return answer.json()


def adding() -> None:
    told = call(
        "add", [{"role": "user", "content": "I drink tea"}], user_id=USER, metadata={"mood": "calm"}, infer=False
    )
    require(told["status"] == "PENDING", told)
    done = eventually(lambda: (one := event(told["event_id"]))["status"] == "SUCCEEDED" and one)
    require([one["data"]["memory"] for one in done["results"]] == ["I drink tea"], done)


def adding_and_waiting() -> list[str]:
    told = call("add", "I keep a cat", user_id=USER, infer=False, async_mode=False)
    require(texts(told) == ["I keep a cat"], told)
    return [one["id"] for one in told["results"]]


def extracting() -> None:
    told = call("add", [{"role": "user", "content": "I live in Huế"}], user_id=USER, agent_id="cook", async_mode=False)
    require(told["results"], told)


def searching() -> None:
    found = call("search", "what do I drink?", filters={"user_id": USER}, top_k=3, threshold=0.1, rerank=True)
    require(texts(found)[0] == "I drink tea", found)
    require(found["results"][0]["metadata"] == {"mood": "calm"}, found)


def searching_nested() -> None:
    wanted = {"AND": [{"user_id": USER}, {"OR": [{"mood": "calm"}, {"mood": "keen"}]}]}
    require(texts(call("search", "drink", filters=wanted)) == ["I drink tea"])
    several = {"OR": [{"user_id": USER}, {"user_id": f"{USER}-else"}]}
    require("I drink tea" in texts(call("search", "drink", filters=several)))


def listing() -> None:
    found = call("get_all", filters={"AND": [{"user_id": USER}]})
    require(set(texts(found)) >= {"I drink tea", "I keep a cat"}, found)


def paging() -> None:
    first = call("get_all", filters={"user_id": USER}, page=1, page_size=1)
    second = call("get_all", filters={"user_id": USER}, page=2, page_size=1)
    require(len(texts(first)) == len(texts(second)) == 1 and texts(first) != texts(second))
    require(first["count"] >= 2 and first["next"], first)


def changing(memory_id: str) -> None:
    call("update", memory_id, text="I keep two cats", metadata={"pets": 2})
    now = call("get", memory_id)
    require(now["memory"] == "I keep two cats" and now["metadata"]["pets"] == 2, now)


def telling_history(memory_id: str) -> None:
    require([one["event"] for one in call("history", memory_id)] == ["ADD", "UPDATE"], call("history", memory_id))


def naming_users() -> None:
    names = {(row["type"], row["name"]) for row in call("users")["results"]}
    require({("user", USER), ("agent", "cook")} <= names, names)


def changing_many() -> None:
    ids = [one["id"] for one in call("get_all", filters={"user_id": USER})["results"]][:2]
    call("batch_update", [{"memory_id": one, "text": f"Changed {n}"} for n, one in enumerate(ids)])
    require({call("get", one)["memory"] for one in ids} == {"Changed 0", "Changed 1"})


def deleting_many() -> None:
    ids = [one["id"] for one in call("get_all", filters={"user_id": USER})["results"]][:2]
    call("batch_delete", [{"memory_id": one} for one in ids])
    left = {one["id"] for one in call("get_all", filters={"user_id": USER})["results"]}
    require(not left & set(ids))


def exporting() -> None:
    require(call("create_memory_export", "{}", user_id=USER)["id"])


def reading_export() -> None:
    require(call("get_memory_export", user_id=USER)["memories"])


def rating(memory_id: str) -> None:
    call("feedback", memory_id, feedback="POSITIVE")


def deleting(memory_id: str) -> None:
    call("delete", memory_id)
    raises("get of an unknown id", "MemoryNotFoundError", lambda: call("get", memory_id))


def deleting_all(**options: Any) -> None:
    call("add", "I read books", user_id=USER, infer=False, async_mode=False)
    call("delete_all", **options)
    require(texts(call("get_all", filters={"user_id": USER})) == [])


def deleting_users(**options: Any) -> None:
    call("add", "I read books", user_id=USER, infer=False, async_mode=False)
    call("delete_users", **options)
    require(texts(call("get_all", filters={"user_id": USER})) == [])


def resetting() -> None:
    call("add", "I read books", user_id=USER, infer=False, async_mode=False)
    call("reset")
    require(call("users")["results"] == [])


def of_the_platform() -> None:
    """What belongs to Mem0's company, and memsvc answers 501."""
    refused("get_summary", lambda: call("get_summary", {"user_id": USER}))
    refused("get_project", lambda: call("get_project", fields=["custom_instructions"]))
    refused("update_project", lambda: call("update_project", custom_instructions="x"))
    refused("get_webhooks", lambda: call("get_webhooks", project_id="p"))
    refused("create_webhook", lambda: call("create_webhook", "http://x", "n", "p", ["memory_add"]))
    refused("update_webhook", lambda: call("update_webhook", 1, name="n"))
    refused("delete_webhook", lambda: call("delete_webhook", 1))
    project = client.project
    refused("project.get", lambda: call("get", of=project))
    refused("project.create", lambda: call("create", of=project, name="n"))
    refused("project.update", lambda: call("update", of=project, custom_instructions="x"))
    refused("project.delete", lambda: call("delete", of=project))
    refused("project.get_members", lambda: call("get_members", of=project))
    if hasattr(client, "get_profile_settings"):
        refused("generate_profile", lambda: call("generate_profile", USER))
        refused("get_profile_settings", lambda: call("get_profile_settings"))
        refused("update_profile_settings", lambda: call("update_profile_settings", enabled=True))
        refused("sample_profiles", lambda: call("sample_profiles"))
        refused("get_profile_job", lambda: call("get_profile_job", UNKNOWN))


def main() -> None:
    works("(construction: ping)", lambda: require(client.org_id and client.project_id))
    works("add", adding)
    ids = works("add, async_mode=false", adding_and_waiting) or [UNKNOWN]
    works("add, infer", extracting)
    works("search", searching)
    works("search, nested filters", searching_nested)
    works("get_all", listing)
    works("get_all, paged", paging)
    works("get", lambda: require(call("get", ids[0])["memory"] == "I keep a cat"))
    works("update", lambda: changing(ids[0]))
    works("history", lambda: telling_history(ids[0]))
    works("users", naming_users)
    works("feedback", lambda: rating(ids[0]))
    works("create_memory_export", exporting)
    works("get_memory_export", reading_export)
    if hasattr(client, "get_profile"):
        works("get_profile", lambda: require("status" in call("get_profile", USER)))
    works("delete", lambda: deleting(ids[0]))
    works("batch_update", changing_many)
    works("batch_delete", deleting_many)
    works("delete_all, user_id", lambda: deleting_all(user_id=USER))
    works("delete_all, filters", lambda: deleting_all(filters={"user_id": USER}))
    works("delete_users", lambda: deleting_users(user_id=USER))
    works("reset", resetting)
    raises("search without ids", "ValidationError", lambda: call("search", "tea", filters={"mood": "calm"}))
    raises("delete_all without ids", "ValidationError", lambda: call("delete_all"))
    of_the_platform()


main()
