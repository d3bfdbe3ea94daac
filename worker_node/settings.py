"""What a node can be told, with units and defaults. One validated object per process."""

from __future__ import annotations

import os
import socket
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from bridge_protocol.frames import DEFAULT_LIMIT, LIMIT_CEILING
from bridge_protocol.topology import MAX_RUN_TIMEOUT, service_name_problem

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


def _service_name(name: str) -> str:
    if problem := service_name_problem(name):
        raise ValueError(problem)
    return name


def _program(command: tuple[str, ...]) -> tuple[str, ...]:
    if not command[0]:
        raise ValueError("the first word names the program to run and cannot be empty")
    if any("\0" in word for word in command):
        raise ValueError("a command cannot hold NUL characters")
    return command


def default_node_name() -> str:
    """A name for this process that no other on this host has: host name and process id."""
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(BaseModel):
    """Frozen, and strict about unknown keys: a misspelt setting is an error, never a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RetrySettings(Settings):
    """How often, and how soon, a request is tried again after its bridge crashed or broke the protocol."""

    max_attempts: int = Field(3, ge=1, le=100, description="tries in all, counted when they begin")
    first_delay: Seconds = Field(1.0, description="seconds before the second try; whole seconds are waited")
    factor: float = Field(5.0, ge=1, le=100, description="each further delay is this much longer")
    max_delay: Seconds = Field(600.0, description="seconds no delay exceeds")
    on_timeout: bool = Field(False, description="whether a run timeout is tried again too")


class ServiceSettings(Settings):
    """One service on a node: its bridge command and its pool."""

    name: Annotated[str, AfterValidator(_service_name)] = Field(description="the service's name, as callers use it")
    command: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_program)] = Field(
        description="the bridge's program and its arguments; no shell is involved"
    )
    bridges: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)), ge=1, le=1024, description="bridge subprocesses"
    )
    start: Literal["eager", "lazy"] = Field(
        "eager", description="eager: all bridges start with the node; lazy: a bridge starts when work waits for one"
    )
    start_timeout: Seconds = Field(30.0, description="seconds from the start of a bridge to its handshake")
    run_timeout: Annotated[float, Field(gt=0, le=MAX_RUN_TIMEOUT, allow_inf_nan=False)] = Field(
        300.0, description="seconds one request may run; its own deadline may only shorten it"
    )
    stop_timeout: Seconds = Field(5.0, description="seconds a bridge has to end by itself before it is killed")
    restart_delay: Seconds = Field(0.1, description="seconds before a failed bridge is started again; doubles")
    max_restart_delay: Seconds = Field(10.0, description="seconds the doubling stops at")
    frame_limit: int = Field(DEFAULT_LIMIT, ge=1024, le=LIMIT_CEILING, description="bytes of the largest frame")
    retry: RetrySettings = RetrySettings()
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables for the bridges; {slot} is replaced by the slot's number"
    )
    directory: str | None = Field(None, description="working directory of the bridges; default: the node's own")


class NodeSettings(Settings):
    """One node: a process that serves one or more services."""

    name: str = Field(
        default_factory=default_node_name, pattern=r"^[A-Za-z0-9_.-]{1,128}$", description="unique among the nodes"
    )
    services: tuple[ServiceSettings, ...] = Field(min_length=1)
    drain_timeout: Seconds = Field(30.0, description="seconds for requests in flight to finish after SIGTERM")
    publish_timeout: Seconds = Field(30.0, description="seconds for the broker to confirm a reply")

    @model_validator(mode="after")
    def _services_differ(self) -> Self:
        names = [service.name for service in self.services]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"service {name!r} is given twice")
        return self
