"""From a host's name to its addresses, in a thread that nobody ever waits for.

asyncio asks in a thread of its executor, and waits for that at the end of the loop, as the interpreter does at its
own: with a name server that does not answer, a process that has nothing more to do would stay for half a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading


async def resolve(host: str) -> list[str]:
    """The addresses of `host`, as text, in the order in which to try them. Raises OSError, as getaddrinfo does."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def end(addresses: list[str], error: OSError | None) -> None:
        if answer.done():  # nobody waits any more
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(addresses)

    def ask() -> None:
        addresses: list[str] = []
        failure: OSError | None = None
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
        except OSError as error:
            failure = error
        except UnicodeError:  # a name that cannot be one
            failure = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end, addresses, failure)

    threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    return await answer
