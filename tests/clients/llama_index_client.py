"""LlamaIndex's Mem0 memory, as an agent uses it, against a running service; one line of JSON for each thing it does.

usage: python llama_index_client.py URL KEY
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from typing import Any

os.environ["MEM0_TELEMETRY"] = "False"
os.environ.setdefault("MEM0_DIR", tempfile.mkdtemp())

from llama_index.core.llms import ChatMessage
from llama_index.memory.mem0 import Mem0Memory

URL, KEY = sys.argv[1:3]
CONTEXT = {"user_id": f"user-{uuid.uuid4().hex[:8]}", "run_id": "r1"}


def try_(method: str, use: Callable[[], Any]) -> Any:
    try:
        answer = use()
    except Exception as error:  # noqa: BLE001  whatever it raises is the result
        print(json.dumps({"method": method, "outcome": "broken", "detail": f"{type(error).__name__}: {error}"[:300]}))
        return None
    print(json.dumps({"method": method, "outcome": "works", "detail": ""}))
    return answer


def remembers(memory: Mem0Memory) -> None:
    """What was put is in the system's message of a later question, once it is stored."""
    end = time.monotonic() + 30
    while "jasmine" not in str(memory.get(input="Which tea do I drink?")[0].content):
        if time.monotonic() > end:
            raise AssertionError("not remembered within 30 s")
        time.sleep(0.1)


made = try_("from_client", lambda: Mem0Memory.from_client(context=CONTEXT, api_key=KEY, host=URL))
try_("put", lambda: made.put(ChatMessage(role="user", content="I drink jasmine tea")))
try_("get", lambda: remembers(made))
try_("set", lambda: made.set([*made.get_all(), ChatMessage(role="user", content="I keep a cat")]))
try_("search", lambda: made.search("pets", filters=CONTEXT)["results"][0])
try_("reset", lambda: made.reset())
