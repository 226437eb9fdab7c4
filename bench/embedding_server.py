"""An OpenAI-compatible `/v1/embeddings` that takes as long as it is told to: it stands for one that is paid for.

Vectors are made of the texts' words and cost next to nothing, as a model elsewhere costs this machine nothing; with
--local they are the local embedder's. GET answers how many texts it has embedded.

    python -m bench.embedding_server --delay 0.12
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import requests

ROOT = Path(__file__).resolve().parent.parent
DIMENSIONS = 1536
"""Of OpenAI's text-embedding-3-small, both sides' default; a request may ask for fewer, as there."""
LENGTH = b"content-length:"

Embed = Callable[[list[str], int], Any]


@cache
def _word(word: str, dimensions: int) -> Any:
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=dimensions).astype(np.float32)


def by_words(texts: Sequence[str], dimensions: int) -> Any:
    """Texts that share words lie near each other; an array of shape (len(texts), dimensions), rows of length 1."""
    rows = np.array([np.sum([_word(word, dimensions) for word in text.lower().split() or [""]], 0) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def local() -> Embed:
    """The local embedder, to which all texts are alike."""
    from memory.embedders import local as embedder

    made = embedder.make()
    return lambda texts, dimensions: made.embed(texts, "symmetric")


class Server:
    """Answers each request `delay` seconds after it has come, or as soon as it can."""

    def __init__(self, embed: Embed, delay: float) -> None:
        self._embed, self._delay = embed, delay
        self._texts = 0

    async def serve(self) -> None:
        """Listen on a free port, print it, and go on until killed."""
        server = await asyncio.start_server(self._caller, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def _caller(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                due = asyncio.get_running_loop().time() + self._delay
                length = int(head.partition(LENGTH)[2].partition(b"\r")[0] or 0)
                body = await reader.readexactly(length)
                answer = orjson.dumps(await self._answer(orjson.loads(body), due) if body else {"texts": self._texts})
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(answer), answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()  # the caller has gone

    async def _answer(self, asked: dict[str, Any], due: float) -> Any:
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        self._texts += len(texts)
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(None, partial(self._embed, texts, asked.get("dimensions", DIMENSIONS)))
        told = [_told(row, asked.get("encoding_format")) for row in np.asarray(made, dtype="<f4")]
        await asyncio.sleep(due - loop.time())
        rows = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(told)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return {"object": "list", "model": asked["model"], "data": rows, "usage": usage}


def _told(row: Any, form: str | None) -> Any:
    return base64.b64encode(row.tobytes()).decode() if form == "base64" else row.tolist()


@dataclass(frozen=True)
class Running:
    """One that runs as a process of its own."""

    url: str
    pid: int

    def texts(self) -> int:
        """How many texts it has embedded."""
        return int(requests.get(self.url, timeout=30).json()["texts"])


@contextmanager
def running(*options: str) -> Iterator[Running]:
    """One for as long as it is needed."""
    argv = [sys.executable, "-m", "bench.embedding_server", *options]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield Running(f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid)
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that an answer takes")
    parser.add_argument("--local", action="store_true", help="embed with the local embedder")
    given = parser.parse_args()
    asyncio.run(Server(local() if given.local else by_words, given.delay).serve())


if __name__ == "__main__":
    main()
