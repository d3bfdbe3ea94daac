"""Direct reply addresses: those RabbitMQ gave are let through, those that would end its connections are not."""

from __future__ import annotations

from base64 import b64encode

import pytest

from broker.reply_address import PREFIX, readable, reads_any_address


def address(term: bytes, key: str = "16ZZ8RLlb4D7w0lccnmgyw==") -> str:
    return f"{PREFIX}{b64encode(term).decode()}.{key}"


def pid(tag: int = 88, atom: int = 118, name: bytes = b"reply@12345678", rest: int = 12) -> bytes:
    size = len(name).to_bytes(2 if atom in (100, 118) else 1, "big")
    return bytes((131, tag, atom)) + size + name + bytes(rest)


@pytest.mark.parametrize(
    "given",
    [
        # By 4.3.6 and by 4.0.5.
        f"{PREFIX}g1h2AA5yZXBseUA0ODI4MzExMwAABBkAAAAAawUm1Q==.TCNUHKQzx+mqX8mjVyCbeQ==",
        f"{PREFIX}g1h2AA9yZXBseUAxMjYyNzA0NTYAAAL9AAAAAGsFJtQ=.16ZZ8RLlb4D7w0lccnmgyw==",
        # As older Erlangs write it, and with names of every kind.
        address(pid(103, 100, rest=9)),
        address(pid(88, 119)),
        address(pid(88, 115)),
        address(pid(name=b"")),
        # What RabbitMQ 4.0 was seen to put up with.
        address(pid() + b"more"),
        address(pid(), key="!!"),
        f"{PREFIX}nonsense",
        f"{PREFIX}{'x' * 230}",
    ],
)
def test_what_rabbitmq_can_read(given: str) -> None:
    assert readable(given)


@pytest.mark.parametrize(
    "forged",
    [
        f"{PREFIX}x.y",
        f"{PREFIX}!!!!.!!!!",
        f"{PREFIX}.",
        f"{PREFIX}é.y",
        f"{PREFIX}g1h2AA5yZXBseUA.x",
        address(b""),
        address(b"\x83a\x07"),
        address(b"\x83w\x02ok"),
        address(bytes(40)),
        *(address(pid()[:size]) for size in range(len(pid()))),
        address(pid(tag=104)),
        address(pid(atom=107)),
    ],
)
def test_what_would_end_the_connection(forged: str) -> None:
    assert not readable(forged)


@pytest.mark.parametrize(
    ("server", "any_address"),
    [
        ("RabbitMQ 3.10.8", False),
        ("RabbitMQ 4.0.5", False),
        ("RabbitMQ 4.2.1", False),
        ("RabbitMQ 4.3.0", True),
        ("RabbitMQ 4.10.0", True),
        ("RabbitMQ 5.0.0", True),
        ("AMQP broker", True),
    ],
)
def test_by_version(server: str, any_address: bool) -> None:
    assert reads_any_address(server) is any_address
