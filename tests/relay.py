"""A TCP relay between a client and a broker, to be slowed, stalled and cut, as networks are."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Relay:
    """Listens on `port`, passes on to one target. `received` holds the size of each piece that came from clients.

    What is on its way is cut into `piece` bytes, if that is set, passes `rate` bytes a second, and comes `delay`
    seconds later, give or take a half.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.piece: int | None = None
        self.rate = float("inf")
        self.delay = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._answering = asyncio.Event()  # what the target says is passed on
        self._answering.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.received: list[int] = []
        self.port = 0

    def stall(self) -> None:
        """Let nothing through from now on, in either direction; connections stay open."""
        self._flowing.clear()

    def hush(self) -> None:
        """Let nothing through to clients from now on; what they say is passed on."""
        self._answering.clear()

    def flow(self) -> None:
        """Let everything through again, unhindered."""
        self.piece, self.rate, self.delay = None, float("inf"), 0.0
        self._flowing.set()
        self._answering.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            connection: socket.socket = writer.get_extra_info("socket")
            if connection.fileno() >= 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._writers.clear()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        try:
            there_reader, there_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        self._writers += (writer, there_writer)
        here_to_there = self._pass_on(reader, there_writer, self.received, self._flowing)
        there_to_here = self._pass_on(there_reader, writer, [], self._answering)
        self._tasks += (asyncio.create_task(here_to_there), asyncio.create_task(there_to_here))

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sizes: list[int], open_way: asyncio.Event
    ) -> None:
        try:
            while data := await reader.read(2**20):
                sizes.append(len(data))
                await asyncio.sleep(self.delay * random.uniform(0.5, 1.5))
                start = 0
                while start < len(data):
                    piece = data[start : start + min(self.piece or 2**20, int(min(self.rate / 20, 2**20)))]
                    start += len(piece)
                    await asyncio.sleep(len(piece) / self.rate)
                    await self._flowing.wait()
                    await open_way.wait()
                    writer.write(piece)
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
