"""Broker URLs: what they mean, and what is refused before anybody connects."""

from __future__ import annotations

import re
import ssl

import pytest

from broker.address import Address, parse_address, parse_addresses


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://u:p@h/", Address(host="h", port=5672, user="u", password="p")),
        ("amqp://u:p@h", Address(host="h", port=5672, user="u", password="p", vhost="/")),
        ("AMQP://u:p@H:1234/v", Address(host="h", port=1234, user="u", password="p", vhost="v")),
        ("amqps://u:p@h/v", Address(host="h", port=5671, user="u", password="p", vhost="v", tls=True)),
        ("amqp://u:p@h/%2F", Address(host="h", port=5672, user="u", password="p", vhost="/")),
        ("amqp://u:p@h/a%2Fb%40", Address(host="h", port=5672, user="u", password="p", vhost="a/b@")),
        (
            "amqp://a%40b:p%40%2F%3A%2C%20%C3%A4@h",
            Address(host="h", port=5672, user="a@b", password="p@/:, ä"),
        ),
        ("amqp://u:p:q@h", Address(host="h", port=5672, user="u", password="p:q")),
        ("amqp://u:p@[fe80::1]:1/", Address(host="fe80::1", port=1, user="u", password="p")),
        ("amqp://u:p@h?heartbeat=60", Address(host="h", port=5672, user="u", password="p", heartbeat=60)),
        ("amqp://localhost", Address(host="localhost", port=5672, user="guest", password="guest")),
        ("amqp://guest:guest@127.0.0.1", Address(host="127.0.0.1", port=5672, user="guest", password="guest")),
        ("amqp://guest:guest@[::1]", Address(host="::1", port=5672, user="guest", password="guest")),
    ],
)
def test_a_url_is_an_address(url: str, expected: Address) -> None:
    assert parse_address(url) == expected


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"http://u:{SECRET}@h", "must be amqp or amqps, not http"),
        (f"https://u:{SECRET}@h", "must be amqp or amqps"),
        ("redis://h", "must be amqp or amqps"),
        (f"u:{SECRET}@h", "must begin with amqp://"),
        ("localhost", "must begin with amqp://"),
        (SECRET, "must begin with amqp://"),
        ("amqp://", "host is missing"),
        (f"amqp://u:{SECRET}@/v", "host is missing"),
        (f"amqp://u:{SECRET}@:5672/v", "host is missing"),
        (f"amqp://u:{SECRET}@h:port", "port of a broker URL must be a number"),
        (f"amqp://u:{SECRET}@h:65536", "port of a broker URL must be a number"),
        (f"amqp://u:{SECRET}@h:-1", "port of a broker URL must be a number"),
        (f"amqp://u:{SECRET}@h:0", "port of a broker URL must be 1"),
        (f"amqp://u:{SECRET}", "port of a broker URL must be a number"),
        (f"amqp://u:{SECRET}@{SECRET}@h", "percent-encoded"),
        (f"amqp://u:{SECRET}/{SECRET}@h", "percent-encoded"),
        (f"amqp://u:{SECRET}?{SECRET}@h", "percent-encoded"),
        (f"amqp://u:{SECRET}#{SECRET}@h", "percent-encoded"),
        (f"amqp://u:{SECRET}@h/v#x", "no #fragment"),
        (f"amqp://u:{SECRET}@h/a/b", "vhost with a / in it must be percent-encoded"),
        (f"amqp://u:{SECRET}@h/%FF", "must be UTF-8"),
        (f"amqp://%FF:{SECRET}@h/", "must be UTF-8"),
        ("amqp://u@h", "password is missing"),
        ("amqp://u:@h", "password is missing"),
        (f"amqp://:{SECRET}@h", "user is missing"),
        (f"amqp://u:{SECRET}@h?heartbeat=0", "heartbeat must be 5 … 3600 seconds"),
        (f"amqp://u:{SECRET}@h?heartbeat=4", "heartbeat must be"),
        (f"amqp://u:{SECRET}@h?heartbeat=3601", "heartbeat must be"),
        (f"amqp://u:{SECRET}@h?heartbeat=", "heartbeat must be"),
        (f"amqp://u:{SECRET}@h?heartbeat=1e1", "heartbeat must be"),
        (f"amqp://u:{SECRET}@h?ssl_options=x", "unknown parameter 'ssl_options'"),
        (f"amqp://guest:{SECRET}@broker.example", "rabbitmqctl add_user"),
        ("amqp://broker.example", "rabbitmqctl add_user"),
        ("amqp://10.0.0.1", "rabbitmqctl add_user"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_without_the_password(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        parse_address(url)
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message


def test_an_address_is_shown_without_its_password() -> None:
    address = parse_address(f"amqps://us%2Fer:{SECRET}@[::2]:99/a%2Fb")
    assert str(address) == "amqps://us%2Fer:***@[::2]:99/a%2Fb"
    assert SECRET not in repr(address)


@pytest.mark.parametrize(
    "text", ["amqp://u:p@a,amqp://u:p@b", " amqp://u:p@a  amqp://u:p@b\n", "amqp://u:p@a, amqp://u:p@b"]
)
def test_several_urls_keep_their_order(text: str) -> None:
    assert [address.host for address in parse_addresses(text)] == ["a", "b"]


@pytest.mark.parametrize("text", ["", " , "])
def test_no_url_at_all_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no broker URL given"):
        parse_addresses(text)


def test_a_comma_in_a_password_does_not_show_its_second_half() -> None:
    with pytest.raises(ValueError, match="must be a number") as caught:
        parse_addresses(f"amqp://u:x{SECRET},y{SECRET}@h")
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="must begin with") as caught:
        parse_addresses(f"amqp://u:p@h y{SECRET}@h")
    assert SECRET not in str(caught.value)


def test_amqps_is_verified_tls() -> None:
    context = parse_address("amqps://u:p@h").tls_context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert parse_address("amqp://u:p@h").tls_context() is None
