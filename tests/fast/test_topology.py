"""The topology as data, and a message's way through its delay queues, simulated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge_protocol import topology
from bridge_protocol.topology import (
    CONTROL,
    DELAY,
    DELAY_LEVELS,
    EXCHANGE,
    MAX_DELAY,
    RESERVED_NAMES,
    UNDELIVERABLE,
    UNLIMITED,
    Binding,
    Exchange,
    Queue,
    Resource,
    dead_letter_key,
    dead_letter_queue,
    delay_route,
    request_queue,
    service_name_problem,
    service_topology,
    shared_topology,
)

# Prefixes and suffixes of one another, digits, and the words that other keys are made of.
SERVICES = ["a", "aa", "a0", "a1", "a-a", "a_0", "b", "ab", "ba", "dead", "session", "delays", "x" * 64]


class FakeBroker:
    """Topic exchanges and queues without contents: it says where a message goes."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self.exchanges: set[str] = set()
        self.queues: dict[str, Queue] = {}
        self.bindings: dict[str, set[Binding]] = defaultdict(set)
        for resource in resources:
            match resource:
                case Exchange(name=name):
                    self.exchanges.add(name)
                case Queue(name=name):
                    assert self.queues.setdefault(name, resource) == resource, "declared twice, differently: a 406"
                case Binding():
                    known = self.exchanges if resource.to_exchange else self.queues
                    assert resource.source in self.exchanges, f"{resource} before its source"
                    assert resource.destination in known, f"{resource} before its destination"
                    self.bindings[resource.source].add(resource)

    def publish(self, exchange: str, key: str) -> set[str]:
        """The queues that `key` reaches from `exchange`: once each, as RabbitMQ does it."""
        reached: set[str] = set()
        seen, waiting = {exchange}, [exchange]
        while waiting:
            for binding in self.bindings[waiting.pop()]:
                if not matches(binding.key.split("."), key.split(".")):
                    continue
                if not binding.to_exchange:
                    reached.add(binding.destination)
                elif binding.destination not in seen:
                    seen.add(binding.destination)
                    waiting.append(binding.destination)
        return reached

    def follow(self, exchange: str, key: str) -> tuple[list[str], int]:
        """The queues a message passes, the last of which keeps it, and the milliseconds that takes."""
        passed: list[str] = []
        waited = 0
        while True:
            reached = self.publish(exchange, key)
            assert len(reached) == 1, f"{key} from {exchange} reaches {reached}, after {passed}"
            queue = reached.pop()
            # RabbitMQ drops a message that expires into a queue it expired from before.
            assert queue not in passed
            passed.append(queue)
            arguments = self.queues[queue].arguments
            if "x-message-ttl" not in arguments:
                return passed, waited
            waited += arguments["x-message-ttl"]
            exchange = arguments["x-dead-letter-exchange"]
            key = arguments.get("x-dead-letter-routing-key", key)


def matches(pattern: list[str], words: list[str]) -> bool:
    """Whether a topic pattern matches: `*` is one word, `#` any number of words."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(matches(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and matches(pattern[1:], words[1:])


def broker(services: Iterable[str]) -> FakeBroker:
    resources = list(shared_topology())
    for service in services:
        resources += service_topology(service)
    return FakeBroker(resources)


BROKER = broker(SERVICES)


def check_delay(network: FakeBroker, service: str, seconds: int) -> None:
    passed, waited = network.follow(*delay_route(service, seconds))
    assert waited == seconds * 1000
    assert passed[-1] == request_queue(service)
    powers = [2 ** int(queue.removeprefix(DELAY + ".")) for queue in passed[:-1]]
    assert sum(powers) == seconds
    assert powers == sorted(powers, reverse=True)


@pytest.mark.parametrize(
    ("pattern", "key", "matched"),
    [
        ("#.a", "a", True),
        ("#.a", "1.0.a", True),
        ("#.a", "1.a.0", False),
        ("#.a", "1.aa", False),
        ("*.1.#", "0.1", True),
        ("*.1.#", "1.1.0.1", True),
        ("*.1.#", "1", False),
        ("1.#", "1", True),
        ("1.#", "11", False),
        ("#", "", True),
        ("#.#", "a.b", True),
    ],
)
def test_the_fake_matches_topics_as_rabbitmq_does(pattern: str, key: str, matched: bool) -> None:
    assert matches(pattern.split("."), key.split(".") if key else []) == matched


@pytest.mark.parametrize("seconds", [1, 2, 3, 4, 5, 2**16 - 1, 2**16, 2**16 + 1, 0b10101010101010101, MAX_DELAY])
@pytest.mark.parametrize("service", SERVICES)
def test_a_delay_passes_the_queues_that_add_up_to_it(service: str, seconds: int) -> None:
    check_delay(BROKER, service, seconds)


SERVICE = st.from_regex(topology._SERVICE, fullmatch=True).filter(lambda name: service_name_problem(name) is None)


@given(st.sampled_from(SERVICES), st.integers(1, MAX_DELAY))
def test_any_delay_ends_in_the_services_own_queue(service: str, seconds: int) -> None:
    check_delay(BROKER, service, seconds)


@given(
    st.lists(st.one_of(SERVICE, st.text("ab01_-", max_size=2).map("a".__add__)), min_size=1, max_size=5, unique=True),
    st.integers(1, MAX_DELAY),
)
@example(["a", "a0", "a-", "a1"], 0b11)
def test_services_of_any_names_never_get_each_others_messages(services: list[str], seconds: int) -> None:
    network = broker(services)
    for service in services:
        check_delay(network, service, seconds)
        assert network.publish(EXCHANGE, service) == {request_queue(service)}
        assert network.publish(EXCHANGE, dead_letter_key(service)) == {dead_letter_queue(service)}


def test_delays_reach_36_hours() -> None:
    assert MAX_DELAY == 2**DELAY_LEVELS - 1 == 131_071
    assert MAX_DELAY >= 36 * 3600


@pytest.mark.parametrize("seconds", [0, -1, MAX_DELAY + 1])
def test_a_delay_that_no_queues_add_up_to_is_refused(seconds: int) -> None:
    with pytest.raises(ValueError, match="a delay must be 1 … 131071 seconds"):
        delay_route("a", seconds)


def test_a_delay_begins_at_its_highest_digit() -> None:
    assert delay_route("a", 1) == ("quaybridge.delay.0", "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.a")
    assert delay_route("a", 2) == ("quaybridge.delay.1", "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.a")
    assert delay_route("a", MAX_DELAY) == ("quaybridge.delay.16", "1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.a")


@pytest.mark.parametrize("name", [*SERVICES, "analyse", "a" + "-" * 63])
def test_a_name_of_a_service(name: str) -> None:
    assert service_name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "0",
        "1",
        "0a",
        "-a",
        "_a",
        "a.b",
        "a b",
        "a*",
        "#",
        "*",
        "a\n",
        "\na",
        "é",
        "aé",
        "a/b",
        "x" * 65,
        "a\0",
        "a:b",
    ],
)
def test_no_name_of_a_service(name: str) -> None:
    problem = service_name_problem(name)
    assert problem is not None
    assert "no service name" in problem
    assert len(problem) < 200


@pytest.mark.parametrize("name", ["control", "delay", "reply", "undeliverable"])
def test_names_of_our_own_are_reserved(name: str) -> None:
    assert name in RESERVED_NAMES
    assert "reserved" in (service_name_problem(name) or "")


@given(SERVICE)
def test_what_a_service_declares_collides_with_nothing_shared(service: str) -> None:
    """No dot in a service's name: a key's last word is the whole name, and a queue's third word is ours."""
    assert not {".", "*", "#"} & set(service)
    shared = {resource.name for resource in shared_topology() if not isinstance(resource, Binding)}
    own = {resource.name for resource in service_topology(service) if not isinstance(resource, Binding)}
    assert own == {request_queue(service), dead_letter_queue(service)}
    assert not shared & own
    assert not any(name.startswith(topology.REPLY_PREFIX) for name in own)
    assert all(len(name.encode()) <= 255 for name in shared | own)


def test_all_keys_and_names_fit_short_strings() -> None:
    _, key = delay_route("x" * 64, MAX_DELAY)
    assert len(key.encode()) <= 255


def test_undeliverable_replies_and_dead_letters_are_kept_however_often_they_are_looked_at() -> None:
    assert BROKER.publish(EXCHANGE, "undeliverable") == {UNDELIVERABLE}
    for name in (UNDELIVERABLE, dead_letter_queue("a")):
        assert BROKER.queues[name].arguments == {"x-queue-type": "quorum", "x-delivery-limit": UNLIMITED}


def test_a_request_queue_loses_nothing() -> None:
    arguments = BROKER.queues[request_queue("a")].arguments
    assert arguments == {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "quaybridge",
        "x-dead-letter-routing-key": "a.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 20,
        "x-consumer-timeout": 24 * 3600 * 1000,
    }
    key = arguments["x-dead-letter-routing-key"]
    assert BROKER.publish(arguments["x-dead-letter-exchange"], key) == {dead_letter_queue("a")}
    assert topology.MAX_RUN_TIMEOUT * 2 <= topology.CONSUMER_TIMEOUT


def test_a_delay_queue_loses_nothing() -> None:
    levels = [queue for queue in BROKER.queues.values() if queue.name.startswith(DELAY + ".")]
    assert len(levels) == 17
    for level, queue in enumerate(sorted(levels, key=lambda queue: int(queue.name.rsplit(".")[-1]))):
        assert queue == Queue(
            f"quaybridge.delay.{level}",
            {
                "x-queue-type": "quorum",
                "x-dead-letter-exchange": f"quaybridge.delay.{level - 1}" if level else "quaybridge.delay",
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-message-ttl": 2**level * 1000,
            },
        )


def test_the_exchanges() -> None:
    levels = {f"quaybridge.delay.{level}" for level in range(17)}
    assert BROKER.exchanges == {EXCHANGE, CONTROL, DELAY} | levels
    assert not BROKER.bindings[CONTROL]  # its queues belong to nodes
    assert {binding.key for binding in BROKER.bindings[DELAY]} == {f"#.{service}" for service in SERVICES}
