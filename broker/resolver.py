"""From a host's name to its addresses."""

from __future__ import annotations

import socket

from broker.thread import in_thread


async def resolve(host: str) -> list[str]:
    """The addresses of `host`, as text, in the order in which to try them. Raises OSError, as getaddrinfo does."""
    try:
        found = await in_thread(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
    except UnicodeError:  # a name that cannot be one
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
    return list(dict.fromkeys(str(place[0]) for *_, place in found))
