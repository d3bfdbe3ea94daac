"""A TCP relay between a client and a broker, to be stalled and cut, as networks are."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Relay:
    """Listens on `port`, passes on to one target. `received` holds the size of each piece that came from clients."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.received: list[int] = []
        self.port = 0

    def stall(self) -> None:
        """Let nothing through from now on, in either direction; connections stay open."""
        self._flowing.clear()

    def flow(self) -> None:
        """Let everything through again."""
        self._flowing.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        self._writers += (writer, there_writer)
        self._tasks.append(asyncio.create_task(self._pass_on(reader, there_writer, self.received)))
        self._tasks.append(asyncio.create_task(self._pass_on(there_reader, writer, [])))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sizes: list[int]) -> None:
        try:
            while data := await reader.read(2**20):
                sizes.append(len(data))
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def stop(self) -> None:
        """Close everything."""
        self.flow()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def relay(host: str, port: int, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Relay]:
    """A relay to that target, with `tls` towards its clients."""
    running = Relay(host, port)
    server = await asyncio.start_server(running.accept, "127.0.0.1", 0, ssl=tls)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
        await running.stop()
