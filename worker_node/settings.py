"""What a node can be told, with units and defaults. One validated object per process."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, model_validator

from bridge_protocol.claim_check import DEFAULT_THRESHOLD
from bridge_protocol.errors import Code
from bridge_protocol.frames import DEFAULT_LIMIT, LIMIT_CEILING
from bridge_protocol.topology import MAX_RUN_TIMEOUT, service_name_problem

MOST_BRIDGES = 1024

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
SecondsOrNever = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Bytes = Annotated[ByteSize, Field(ge=1024 * 1024, le=2**50)]

_NODE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


def _service_name(name: str) -> str:
    if problem := service_name_problem(name):
        raise ValueError(problem)
    return name


def _node_name(name: str) -> str:
    if not _NODE_NAME.fullmatch(name):
        raise ValueError("should be 1 … 128 letters, digits, dots, hyphens and underscores")
    return name


def _program(command: tuple[str, ...]) -> tuple[str, ...]:
    if not command:
        raise ValueError("should name a program to run, and its arguments")
    if not command[0]:
        raise ValueError("the first word names the program to run and cannot be empty")
    if any("\0" in word for word in command):
        raise ValueError("a command cannot hold NUL characters")
    return command


@dataclass(frozen=True, slots=True)
class BridgeCount:
    """Between `least` and `most` bridges; written as a number, as "1-8", or as a table {min = 1, max = 8}."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}-{self.most}" if self.least != self.most else str(self.most)


def _bridge_count(value: object) -> BridgeCount:
    least: object = None
    most: object = None
    match value:
        case BridgeCount():
            return value
        case int() if value is not True:
            least = most = value
        case {"min": lower, "max": upper, **more} if not more:
            least, most = lower, upper
        case str() if found := _RANGE.fullmatch(value.strip()):
            least, most = int(found[1]), int(found[2] or found[1])
    if type(least) is int and type(most) is int and 1 <= least <= most <= MOST_BRIDGES:
        return BridgeCount(least, most)
    raise ValueError(f'should be 1 … {MOST_BRIDGES}, or a range such as "1-8" or {{min = 1, max = 8}}')


def _processors() -> BridgeCount:
    count = len(os.sched_getaffinity(0))
    return BridgeCount(count, count)


def default_node_name() -> str:
    """A name for this process that no other on this host has: host name and process id."""
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(BaseModel):
    """Frozen, and strict about unknown keys: a misspelt setting is an error, never a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RetryAfterSettings(Settings):
    """How soon a request is tried again after each kind of failure, where that is not `retry.first_delay`.

    Seconds before the second try; 0: a request that failed so is not tried again.
    """

    bridge_crashed: SecondsOrNever | None = Field(None, description="seconds after a crash, or 0")
    protocol_violation: SecondsOrNever | None = Field(None, description="seconds after nonsense on stdout, or 0")
    bridge_timeout: SecondsOrNever | None = Field(0.0, description="seconds after a run timeout, or 0: never")
    application_error: SecondsOrNever | None = Field(
        None, description="seconds after a failure that the bridge calls retryable without a retry_after, or 0"
    )


class RetrySettings(Settings):
    """How often, and how soon, a request is tried again that failed through no fault of its own that is known."""

    max_attempts: int = Field(3, ge=1, le=100, description="tries in all, counted when they begin")
    first_delay: Seconds = Field(1.0, description="seconds before the second try; whole seconds are waited")
    factor: float = Field(5.0, ge=1, le=100, description="each further delay is this much longer")
    max_delay: Seconds = Field(600.0, description="seconds no delay exceeds")
    after: RetryAfterSettings = RetryAfterSettings()

    @property
    def first_delays(self) -> Mapping[Code, float]:
        """Seconds before the second try, by the code of the first one's failure; 0: there is none."""
        return {Code(code): self.first_delay if delay is None else delay for code, delay in self.after}


class AnsweredSettings(Settings):
    """What a node keeps of its latest successes, to answer a request that comes again without running it again."""

    count: int = Field(1024, ge=0, le=1_000_000, description="successes kept; 0: none")
    bytes: ByteSize = Field(ByteSize(16 * 1024 * 1024), ge=0, description="bytes of the requests and results kept")
    age: Seconds = Field(300.0, description="seconds a success is kept")


class SessionSettings(Settings):
    """Whether requests of one session meet the same live bridge, and how long that is kept for them."""

    enabled: bool = Field(False, description="whether the service has sessions; costs a node 32 more subscriptions")
    max: int = Field(10_000, ge=1, le=10_000_000, description="live sessions on a node; of more, the idlest ends")
    idle: Seconds = Field(3600.0, description="seconds without a request after which a session ends")
    age: Seconds = Field(86_400.0, description="seconds after which a session ends in any case, between two requests")
    share: float = Field(
        0.5, ge=0.05, le=0.95, description="the part of a bridge's turns that sessions get while other requests wait"
    )
    quiet: Seconds = Field(10.0, description="seconds without a request of its sessions before a bridge is recycled")
    patience: Seconds = Field(300.0, description="seconds that is waited for; then its sessions end")


class StreamSettings(Settings):
    """How the chunks of a running request go to its reader."""

    delay: float = Field(
        0.005, ge=0, le=1, allow_inf_nan=False, description="seconds a chunk may wait to travel with those after it"
    )
    reader_timeout: Seconds = Field(
        30.0,
        description="seconds without credit from a reader who has none left, until the work ends",
    )


class RecycleSettings(Settings):
    """When a bridge is replaced by a new one, between two requests. Each is off unless set.

    A bridge that reached its limit serves on until its replacement is ready (see `prewarm`), one of a pool at a time.
    Of every limit but `memory_hard` a bridge gets up to `jitter` less, so that a pool never recycles at once.
    Memory is the bridge's own and that of every process below it: what they share is counted once.
    """

    requests: int | None = Field(None, ge=1, le=2**53, description="requests served")
    age: Seconds | None = Field(None, description="seconds after its start")
    idle: Seconds | None = Field(None, description="seconds without a request, of a bridge that served some")
    memory: Bytes | None = Field(None, description="bytes; looked at every memory_interval, acted on between requests")
    memory_hard: Bytes | None = Field(None, description="bytes over which it is killed, even with a request on it")
    memory_interval: Seconds = Field(1.0, description="seconds between two looks at the memory")
    jitter: float = Field(0.15, ge=0, le=0.9, description="the part of a limit that a bridge may get less")

    @model_validator(mode="after")
    def _hard_is_more(self) -> Self:
        if self.memory is not None and self.memory_hard is not None and self.memory_hard <= self.memory:
            raise ValueError("memory_hard must be more than memory: the one kills, the other replaces before that")
        return self


class BreakerSettings(Settings):
    """When a service whose bridges cannot be started counts as unavailable: its node then takes no requests for it."""

    failures: int = Field(5, ge=1, le=1000, description="starts that failed one after the other")
    window: Seconds = Field(60.0, description="seconds within which they did; or for which all have failed")


class DebugSettings(Settings):
    """What is written down of the frames of a service's bridges, to find out what they say. Nothing by default."""

    directory: str | None = Field(
        None, min_length=1, description="where to write the frames, one line each, secrets left out; default: nowhere"
    )
    max_bytes: ByteSize = Field(
        ByteSize(10 * 1024 * 1024), ge=4096, description="bytes of one file; then the next is begun"
    )
    files: int = Field(3, ge=1, le=100, description="files that are kept: so many times max_bytes are used at most")
    args: bool = Field(False, description="whether arguments and results are written too")
    arg_bytes: int = Field(2048, ge=1, le=65_536, description="bytes of them that are written of one frame")


class LimitSettings(Settings):
    """What one bridge process may use; not set: what the node itself may. It never leaves a core dump.

    What a bridge meets at its limit is the system's own answer, and what becomes of that is up to the bridge.
    """

    memory: ByteSize | None = Field(
        None, ge=16 * 1024**2, le=2**60, description="bytes of address space; more are refused: in Python a MemoryError"
    )
    open_files: int | None = Field(
        None, ge=16, le=2**20, description="open files at once; more are refused: too many open files (EMFILE)"
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=2**22,
        description="processes and threads of the bridges' user, on the whole host, above which none can be started: "
        "resource temporarily unavailable (EAGAIN); for root it does not count",
    )
    cpu_time: int | None = Field(
        None, ge=1, le=2**31, description="seconds of CPU time in a bridge's life; then it is ended by SIGXCPU"
    )
    nice: int = Field(0, ge=0, le=19, description="how far the bridge stands back for other processes")


class ServiceSettings(Settings):
    """One service on a node: its bridge command and its pool."""

    name: Annotated[str, AfterValidator(_service_name)] = Field(description="the service's name, as callers use it")
    command: Annotated[tuple[str, ...], AfterValidator(_program)] = Field(
        description="the bridge's program and its arguments; no shell is involved"
    )
    bridges: Annotated[BridgeCount, BeforeValidator(_bridge_count)] = Field(
        default_factory=_processors, description="bridge subprocesses"
    )
    start: Literal["eager", "lazy"] = Field(
        "eager", description="eager: all bridges start with the node; lazy: a bridge starts when work waits for one"
    )
    grow_after: Seconds = Field(0.1, description="seconds a request waits before one more bridge is started for it")
    shrink_after: Seconds = Field(60.0, description="seconds a bridge is idle before it is one too many")
    spare: int = Field(0, ge=0, le=MOST_BRIDGES, description="bridges kept idle for what may come, as bridges allows")
    prewarm: bool = Field(
        True, description="whether a bridge's replacement starts before it stops; false if two do not fit, as on a GPU"
    )
    pipelining: bool = Field(
        True, description="whether short requests wait in the pipe of a busy bridge that gives them back when asked to"
    )
    recycle: RecycleSettings = RecycleSettings()
    breaker: BreakerSettings = BreakerSettings()
    start_timeout: Seconds = Field(30.0, description="seconds from the start of a bridge to its handshake")
    run_timeout: Annotated[float, Field(gt=0, le=MAX_RUN_TIMEOUT, allow_inf_nan=False)] = Field(
        300.0, description="seconds one request may run; its own deadline may only shorten it"
    )
    write_timeout: Seconds = Field(30.0, description="seconds a bridge may leave unread what waits for it")
    frame_timeout: Seconds = Field(30.0, description="seconds a bridge has to write a frame, from its first byte on")
    stop_timeout: Seconds = Field(5.0, description="seconds a bridge has to end by itself before it is killed")
    restart_delay: Seconds = Field(0.1, description="seconds before a failed bridge is started again; doubles")
    max_restart_delay: Seconds = Field(10.0, description="seconds the doubling stops at")
    frame_limit: ByteSize = Field(
        ByteSize(DEFAULT_LIMIT), ge=1024, le=LIMIT_CEILING, description="bytes of the largest frame"
    )
    protocol_fd: bool = Field(
        False,
        description="frames on two descriptors told by QUAYBRIDGE_PROTOCOL_FDS, and stdout logged as stderr is: "
        "for programs that print",
    )
    tombstones: int = Field(
        65_536, ge=1, le=16_777_216, description="cancelled requests that are known by their ids, should they come yet"
    )
    retry: RetrySettings = RetrySettings()
    answered: AnsweredSettings = AnsweredSettings()
    limits: LimitSettings = LimitSettings()
    sessions: SessionSettings = SessionSettings()
    stream: StreamSettings = StreamSettings()
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables for the bridges; {slot} is replaced by the slot's number"
    )
    directory: str | None = Field(None, description="working directory of the bridges; default: the node's own")
    debug: DebugSettings = DebugSettings()


class NodeSettings(Settings):
    """One node: a process that serves one or more services."""

    name: Annotated[str, AfterValidator(_node_name)] = Field(
        default_factory=default_node_name, description="unique among the nodes"
    )
    services: tuple[ServiceSettings, ...] = Field(min_length=1)
    connect_timeout: Seconds = Field(30.0, description="seconds for the first connection to the broker")
    drain_timeout: Seconds = Field(30.0, description="seconds for requests in flight to finish after SIGTERM")
    publish_timeout: Seconds = Field(30.0, description="seconds for the broker to confirm a reply")
    stall_timeout: Seconds = Field(
        15.0, description="seconds the broker takes no reply, though there are some, until no more requests are taken"
    )
    watch_interval: Seconds = Field(
        10.0, description="seconds between two looks at the request queues, for a consumer the broker has forgotten"
    )
    claim_threshold: int = Field(
        DEFAULT_THRESHOLD, ge=1024, le=2**40, description="bytes above which a reply goes to the store, if one is set"
    )
    claim_age: Annotated[float, Field(ge=60, le=315_360_000, allow_inf_nan=False)] = Field(
        604_800.0, description="seconds after its last use until what is in the store is swept"
    )

    @model_validator(mode="after")
    def _services_differ(self) -> Self:
        names = [service.name for service in self.services]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"service {name!r} is given twice")
        return self
