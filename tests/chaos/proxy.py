"""A TCP proxy that misbehaves on demand: what stands between memsvc and each of its servers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from dataclasses import dataclass
from typing import Literal

Kind = Literal["latency", "reset", "black_hole", "cut"]
CHUNK = 65_536


@dataclass(frozen=True)
class Trouble:
    """What happens to a share of the connections: bytes come late, the connection is reset, they vanish, or half of a
    message is let through before the end."""

    kind: Kind
    share: float = 1.0
    seconds: float = 0.3


class Proxy:
    """Listens on a free port of the loopback and passes everything on to `target`: a path of a socket, or a port."""

    def __init__(self, target: str | int) -> None:
        self._target = target
        self._trouble: Trouble | None = None
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listening.getsockname()[1]
        self._pairs: set[_Pair] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self, trouble: Trouble) -> None:
        """From now on; connections that are open are met as new ones are."""
        self._loop.call_soon_threadsafe(self._set, trouble)

    def heal(self) -> None:
        """Pass everything on again. What a black hole has swallowed stays swallowed: such connections end."""
        self._loop.call_soon_threadsafe(self._set, None)

    def close(self) -> None:
        """Listen no more, and drop what is open."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=self._listening))
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _set(self, trouble: Trouble | None) -> None:
        self._trouble = trouble
        self._changed.set()
        self._changed = asyncio.Event()
        for pair in list(self._pairs):
            if pair.swallowed or (trouble and trouble.kind == "reset" and pair.unlucky(trouble)):
                pair.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer)
        self._pairs.add(pair)
        try:
            await self._meet(pair, b"", writer)
            there_reader, there = await self._connect()
            pair.there = there
            await asyncio.gather(self._pump(pair, reader, there), self._pump(pair, there_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass  # either side's end is the other's
        finally:
            pair.abort()
            self._pairs.discard(pair)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, int):
            return await asyncio.open_connection("127.0.0.1", self._target)
        return await asyncio.open_unix_connection(self._target)

    async def _pump(self, pair: _Pair, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK):
            sink.write(await self._meet(pair, data, sink))
            await sink.drain()
        pair.abort()

    async def _meet(self, pair: _Pair, data: bytes, sink: asyncio.StreamWriter) -> bytes:
        """What becomes of these bytes; ConnectionError where the connection does not survive them."""
        while (trouble := self._trouble) and pair.unlucky(trouble):
            match trouble.kind:
                case "latency":
                    await asyncio.sleep(trouble.seconds)
                    return data
                case "reset":
                    raise ConnectionResetError
                case "cut":
                    sink.write(data[: len(data) // 2])
                    await sink.drain()
                    raise ConnectionResetError
                case "black_hole":
                    pair.swallowed = True
                    await self._changed.wait()
        if pair.swallowed:
            raise ConnectionResetError
        return data


class _Pair:
    """One connection and its other half."""

    def __init__(self, here: asyncio.StreamWriter) -> None:
        self.here, self.there = here, here
        self.swallowed = False
        self._luck = random.random()

    def unlucky(self, trouble: Trouble) -> bool:
        return self._luck < trouble.share

    def abort(self) -> None:
        for writer in (self.here, self.there):
            with contextlib.suppress(OSError):
                writer.transport.abort()
