"""Where a broker is: AMQP URLs, checked when they are read, and never shown with their password."""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlsplit

DEFAULT_USER = "guest"
# A silent broker is noticed after one or two looks, each this and 5 s apart (pika/heartbeat.py): within 30 s.
DEFAULT_HEARTBEAT = 10  # seconds
MIN_HEARTBEAT = 5  # seconds; rabbitmq.com/docs/heartbeats: lower values are likely to cause false positives
MAX_HEARTBEAT = 3600  # seconds
PORTS = {"amqp": 5672, "amqps": 5671}

_ESCAPE = "characters such as @ / : ? # , and spaces in a user or password must be percent-encoded (@ is %40, / is %2F)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One broker. As text it is its URL with the password masked; `heartbeat` in seconds."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str = "/"
    tls: bool = False
    heartbeat: int = DEFAULT_HEARTBEAT

    def __str__(self) -> str:
        scheme = "amqps" if self.tls else "amqp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{quote(self.user, safe='')}:***@{host}:{self.port}/{quote(self.vhost, safe='')}"

    def tls_context(self) -> ssl.SSLContext | None:
        """For amqps: verified against the system's authorities (or SSL_CERT_FILE), TLS 1.2 or later."""
        if not self.tls:
            return None
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def parse_addresses(text: str) -> tuple[Address, ...]:
    """One or more URLs, separated by commas or white space, to be tried in turn. Raises ValueError."""
    addresses = tuple(parse_address(url) for url in re.split(r"[\s,]+", text) if url)
    if not addresses:
        raise ValueError("no broker URL given: write amqp://user:password@host/vhost")
    return addresses


def parse_address(url: str) -> Address:
    """The address `amqp[s]://[user:password@]host[:port][/vhost][?heartbeat=seconds]` means.

    Without a vhost it is `/`; without a user it is guest, who exists for this machine only. Raises ValueError
    with one line that shows the URL without what may be its password, and says what to write instead.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        # It may be the second half of a password with a comma in it: so it is not shown.
        raise ValueError(f"a broker URL must begin with amqp:// or amqps://; {_ESCAPE}")
    scheme = scheme.lower()
    shown = f"{scheme}://{'***@' if '@' in rest else ''}{rest.rpartition('@')[2]}"
    if scheme not in PORTS:
        raise ValueError(f"{shown}: the scheme of a broker URL must be amqp or amqps, not {scheme}")
    if rest.count("@") > 1 or "@" in re.sub(r"^[^/?#]*", "", rest):
        raise ValueError(f"{shown}: {_ESCAPE}")
    parts = urlsplit(f"{scheme}://{rest}")
    try:
        port = PORTS[scheme] if parts.port is None else parts.port
        host = parts.hostname
    except ValueError:
        # What stands where the port should be may be a password whose host is missing.
        raise ValueError(f"{scheme}://***: the port of a broker URL must be a number, 1 … 65535; {_ESCAPE}") from None
    if not host:
        raise ValueError(f"{shown}: the host is missing: write amqp://user:password@host/vhost")
    if port == 0:
        raise ValueError(f"{shown}: the port of a broker URL must be 1 … 65535")
    if parts.fragment:
        raise ValueError(f"{shown}: a broker URL has no #fragment; {_ESCAPE}")
    if "/" in parts.path[1:]:
        raise ValueError(f"{shown}: a vhost with a / in it must be percent-encoded (/ is %2F)")
    user, password = _credentials(parts.username, parts.password, host, shown)
    return Address(
        host=host,
        port=port,
        user=user,
        password=password,
        vhost=_unquoted(parts.path[1:], shown) or "/",
        tls=scheme == "amqps",
        heartbeat=_heartbeat(parts.query, shown),
    )


def _credentials(user: str | None, password: str | None, host: str, shown: str) -> tuple[str, str]:
    name = DEFAULT_USER if user is None else _unquoted(user, shown)
    if name == DEFAULT_USER and not _is_loopback(host):
        raise ValueError(
            f"{shown}: user guest is for this machine only: create a user of your own "
            "(rabbitmqctl add_user NAME PASSWORD; rabbitmqctl set_permissions NAME '.*' '.*' '.*') "
            "and write amqp://NAME:PASSWORD@host/"
        )
    if user is None:
        return name, DEFAULT_USER
    if not name or not password:
        raise ValueError(f"{shown}: the {'password' if name else 'user'} is missing: write amqp://user:password@host")
    return name, _unquoted(password, shown)


def _heartbeat(query: str, shown: str) -> int:
    seconds = DEFAULT_HEARTBEAT
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name != "heartbeat":
            raise ValueError(f"{shown}: unknown parameter {name!r}: a broker URL takes only heartbeat")
        if not re.fullmatch(r"[0-9]{1,6}", value) or not MIN_HEARTBEAT <= int(value) <= MAX_HEARTBEAT:
            raise ValueError(
                f"{shown}: heartbeat must be {MIN_HEARTBEAT} … {MAX_HEARTBEAT} seconds: "
                "without one a dead connection is not noticed"
            )
        seconds = int(value)
    return seconds


def _unquoted(text: str, shown: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"{shown}: percent-encoded text must be UTF-8") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
