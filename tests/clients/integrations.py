"""Packages around Mem0's client as published: given an address by their own settings, and used as they are meant.

usage: python -m tests.clients.integrations PACKAGE URL KEY [COMMAND]
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import uuid
from typing import Any

os.environ["MEM0_TELEMETRY"] = "false"
os.environ["HOME"] = os.environ["MEM0_DIR"] = tempfile.mkdtemp()

from tests.clients.script import eventually, require, works

PACKAGE, URL, KEY, *COMMAND = sys.argv[1:]
USER = f"user-{uuid.uuid4().hex[:8]}"


def strands() -> None:
    """Mem0MemoryStore(host=…), the memory of a Strands agent."""
    from mem0_strands import Mem0MemoryStore

    store = Mem0MemoryStore(user_id=USER, api_key=KEY, host=URL, metadata={"mood": "calm"})

    def found(query: str) -> list[Any]:
        return asyncio.run(store.search(query, {"max_search_results": 3}))

    def adding() -> None:
        asyncio.run(store.add("I drink tea", {"time": "morning"}))
        entry = eventually(lambda: [one for one in found("what do I drink?") if one.content == "I drink tea"])[0]
        require(entry.metadata["mood"] == "calm" and entry.metadata["time"] == "morning", entry)

    def adding_messages() -> None:
        asyncio.run(store.add_messages([{"role": "user", "content": [{"text": "I live in Huế"}]}]))
        eventually(lambda: "Huế" in "".join(one.content for one in found("where do I live?")))

    works("add", adding)
    works("add_messages", adding_messages)
    works("search", lambda: require(len(found("tea")) <= 3))


def agent_framework() -> None:
    """Mem0ContextProvider over AsyncMemoryClient(host=…), the memory of a Microsoft Agent Framework agent."""
    from agent_framework import AgentResponse, AgentSession, Message, SessionContext
    from agent_framework_mem0 import Mem0ContextProvider
    from mem0 import AsyncMemoryClient

    loop = asyncio.new_event_loop()
    client = AsyncMemoryClient(api_key=KEY, host=URL)
    provider = Mem0ContextProvider(mem0_client=client, user_id=USER, agent_id="cook", search_user_id=USER)
    session = AgentSession()

    def turn(text: str) -> SessionContext:
        context = SessionContext(input_messages=[Message("user", [text])])
        loop.run_until_complete(provider.before_run(agent=None, session=session, context=context, state={}))
        return context

    def after() -> None:
        context = turn("I drink tea in the morning")
        context._response = AgentResponse(messages=[Message("assistant", ["Noted."])])
        loop.run_until_complete(provider.after_run(agent=None, session=session, context=context, state={}))

    def before() -> None:
        def told() -> str:
            return "".join(one.text for one in turn("what do I drink?").get_messages())

        require("I drink tea" in eventually(lambda: "tea" in (said := told()) and said))

    works("after_run", after)
    works("before_run", before)


def llama_index() -> None:
    """Mem0Memory over MemoryClient(host=…). Its `from_client` gives that client arguments that it does not take."""
    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.core.memory import Memory
    from llama_index.memory.mem0 import Mem0Memory
    from mem0 import MemoryClient

    memory = Mem0Memory(
        primary_memory=Memory.from_defaults(),
        client=MemoryClient(api_key=KEY, host=URL),
        context={"user_id": USER},
    )

    def getting() -> None:
        eventually(lambda: "I drink tea" in (memory.get(input="what do I drink?")[0].content or ""))

    works("put", lambda: memory.put(ChatMessage(role="user", content="I drink tea")))
    works("get", getting)
    works("set", lambda: memory.set([*memory.get_all(), ChatMessage(role="user", content="I keep a cat")]))
    works("get_all", lambda: require(len(memory.get_all()) == 2))
    works("reset", lambda: memory.reset())


class CommandLine:
    """`mem0`, in Python or JavaScript, with MEM0_BASE_URL."""

    def run(self, *words: str) -> str:
        """What a command prints."""
        said, variables = [*COMMAND, *words], {**os.environ, "MEM0_BASE_URL": URL, "MEM0_API_KEY": KEY}
        done = subprocess.run(said, env=variables, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        require(done.returncode == 0, done.stdout + done.stderr)
        return done.stdout

    def json(self, *words: str) -> Any:
        """Its answer."""
        return json.loads(self.run(*words, "--output", "json"))

    def rows(self) -> list[dict[str, Any]]:
        """The user's memories."""
        return self.json("list", "--user-id", USER)["data"]

    def id(self) -> str:
        """The first one's id."""
        return self.rows()[0]["id"]

    def add(self) -> None:
        self.run("add", "I drink tea", "--user-id", USER, "--no-infer")
        eventually(lambda: [one["memory"] for one in self.rows()] == ["I drink tea"])

    def search(self) -> None:
        told = self.json("search", "what do I drink?", "--user-id", USER, "--threshold", "0.1")
        require("I drink tea" in json.dumps(told), told)

    def update(self) -> None:
        self.run("update", self.id(), "I drink coffee")
        require(self.rows()[0]["memory"] == "I drink coffee")

    def delete(self) -> None:
        self.run("delete", self.id(), "--force")
        require(self.rows() == [])

    def delete_all(self) -> None:
        self.add()
        self.run("delete", "--all", "--user-id", USER, "--force")
        require(self.rows() == [])

    def bring_in(self) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump([{"memory": "I read books", "user_id": USER}], file)
            file.flush()
            self.run("import", file.name)
        eventually(lambda: "I read books" in json.dumps(self.rows()))

    def events(self) -> None:
        told = self.json("event", "list")
        found = told["data"] if isinstance(told, dict) else told
        require(found[0]["id"] in self.run("event", "status", found[0]["id"]), told)

    def delete_user(self) -> None:
        self.run("entity", "delete", "--user-id", USER, "--force")
        require(self.rows() == [])


def command_line() -> None:
    """Its commands."""
    mem0 = CommandLine()
    works("mem0 status", lambda: require("onnected" in json.dumps(mem0.json("status"))))
    works("mem0 add", mem0.add)
    works("mem0 list", lambda: require(len(mem0.rows()) == 1))
    works("mem0 search", mem0.search)
    works("mem0 get", lambda: require("tea" in json.dumps(mem0.json("get", mem0.id()))))
    works("mem0 entity list", lambda: require(USER in json.dumps(mem0.json("entity", "list", "users"))))
    works("mem0 update", mem0.update)
    works("mem0 delete", mem0.delete)
    works("mem0 delete --all", mem0.delete_all)
    works("mem0 import", mem0.bring_in)
    works("mem0 event list, status", mem0.events)
    works("mem0 entity delete", mem0.delete_user)


USES = {
    "mem0-strands": strands,
    "agent-framework-mem0": agent_framework,
    "llama-index-memory-mem0": llama_index,
    "mem0-cli": command_line,
    "@mem0/cli": command_line,
}
USES[PACKAGE]()
