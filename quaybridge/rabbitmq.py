"""A RabbitMQ for the demo, the benchmarks and the tests: in a container, or a private node on this machine.

    with ContainerRabbitMQ(image) as rabbitmq:      # or PrivateRabbitMQ()
        AmqpBroker(parse_addresses(rabbitmq.url))

Both have a user of their own with a random password, listen on free ports, and are gone, with all their data,
when the block ends, however it ends.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from base64 import b64encode
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psutil

from broker.address import parse_addresses
from broker.amqp import AmqpBroker
from broker.contract import BrokerError, ConnectionRefused
from worker_node.environment import RUN
from worker_node.reaper import spawn_reaper
from worker_node.run_id import own_run_id

DEFAULT_IMAGE = "rabbitmq:4-management"
START_TIMEOUT = 120.0  # seconds; a cold machine with two cores needs 10 to 20
STOP_TIMEOUT = 10.0  # seconds
USER = "quaybridge"

_AMQP_PORT, _MANAGEMENT_PORT = 5672, 15672
_GREETING = b"AMQP\x00\x00\x09\x01"
# Debian's /usr/sbin/rabbitmq-server runs as user rabbitmq or not at all; what it wraps runs as anybody.
_UNWRAPPED = Path("/usr/lib/rabbitmq/bin")


class RabbitMQError(BrokerError):
    """Raised when a RabbitMQ cannot be started here; the message says why."""


class RabbitMQ(ABC):
    """A RabbitMQ that was started here. A context manager; the properties are valid inside the block."""

    host = "127.0.0.1"
    port = 0
    management_port: int | None = None

    def __init__(self) -> None:
        self.password = secrets.token_hex(16)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # What was begun is undone if the rest fails, or is interrupted.
        with ExitStack() as stack:
            self._start(stack)
            self._wait_until_it_answers()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Its URL, with the password; vhost /."""
        return self.url_of("/")

    def url_of(self, vhost: str) -> str:
        """Its URL with that vhost."""
        return f"amqp://{USER}:{self.password}@{self.host}:{self.port}/{quote(vhost, safe='')}"

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process that all of its processes descend from, where they can be seen from here."""

    @abstractmethod
    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl with `arguments`; its output. Raises RabbitMQError if it fails."""

    def add_vhost(self, name: str) -> str:
        """Make a vhost; its URL. Takes 20 ms where the management plugin is, a second or two where it is not."""
        if self.management_port is None:
            self.control("add_vhost", name)
            self.control("set_permissions", "-p", name, USER, ".*", ".*", ".*")
        else:
            path = quote(name, safe="")
            self.manage("PUT", f"/api/vhosts/{path}")
            self.manage("PUT", f"/api/permissions/{path}/{USER}", {"configure": ".*", "write": ".*", "read": ".*"})
        return self.url_of(name)

    def delete_vhost(self, name: str) -> None:
        """Remove a vhost with all its queues."""
        if self.management_port is None:
            self.control("delete_vhost", name)
        else:
            self.manage("DELETE", f"/api/vhosts/{quote(name, safe='')}")

    def manage(self, method: str, path: str, body: object = None) -> Any:
        """Ask the management plugin's HTTP API; its answer, decoded. Raises RabbitMQError if it refuses."""
        if self.management_port is None:
            raise RabbitMQError(f"{self!r} has no management plugin")
        credentials = b64encode(f"{USER}:{self.password}".encode()).decode()
        with closing(HTTPConnection(self.host, self.management_port, timeout=30)) as connection:
            headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body or {}) if method != "GET" else None, headers)
            response = connection.getresponse()
            answer = response.read()
        if response.status >= 300:
            raise RabbitMQError(f"{method} {path}: {response.status} {answer.decode(errors='replace')}")
        return json.loads(answer) if answer else None

    @abstractmethod
    def _start(self, stack: ExitStack) -> None:
        """Start it, and put on `stack` whatever undoes that."""

    @abstractmethod
    def _problem(self) -> str | None:
        """Why it will never answer, or None as long as it may."""

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if problem := self._problem():
                raise RabbitMQError(problem)
            if time.monotonic() > deadline:
                raise RabbitMQError(f"RabbitMQ does not answer on port {self.port} after {START_TIMEOUT:.0f} s")
            time.sleep(0.1)

    def _answers(self) -> bool:
        # Docker's proxy accepts connections before anybody listens behind it: so a greeting first, in silence.
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as connection:
                connection.sendall(_GREETING)
                if not connection.recv(1):
                    return False
        except OSError:
            return False
        try:
            asyncio.run(self._log_in())
        except ConnectionRefused:
            return False
        return True

    async def _log_in(self) -> None:
        broker = AmqpBroker(parse_addresses(self.url))
        channel = await broker.open("quaybridge start", on_closed=lambda _: None)
        await channel.close()


class ContainerRabbitMQ(RabbitMQ):
    """RabbitMQ in a container of its own, through testcontainers. `image` must be one that takes RABBITMQ_DEFAULT_*."""

    def __init__(self, image: str = DEFAULT_IMAGE) -> None:
        super().__init__()
        self.image = image
        self._container: Any = None

    def __repr__(self) -> str:
        return f"<ContainerRabbitMQ {self.image} port {self.port}>"

    @property
    def pid(self) -> int:
        return int(self._attributes()["State"]["Pid"])

    @property
    def inner_url(self) -> str:
        """Its URL on Docker's own network: without Docker's port forwarding, which is a process that copies bytes."""
        networks = self._attributes()["NetworkSettings"]["Networks"].values()
        address = next(network["IPAddress"] for network in networks)
        return f"amqp://{USER}:{self.password}@{address}:{_AMQP_PORT}/"

    def control(self, *arguments: str) -> str:
        status, output = self._container.exec(["rabbitmqctl", "--quiet", *arguments])
        text: str = output.decode(errors="replace")
        if status:
            raise RabbitMQError(f"rabbitmqctl {' '.join(arguments)}: {text.strip()}")
        return text

    def kill(self) -> None:
        """End it with all that it had not written yet, as a power cut does. Its data stay, until the block ends."""
        self._container.get_wrapped_container().kill()

    def restart(self) -> None:
        """Start what was killed again; returns when it answers. Its ports are others then."""
        self._container.get_wrapped_container().start()
        self._find_ports()
        self._wait_until_it_answers()

    def pause(self) -> None:
        """Freeze it: connections stay, and nobody answers."""
        self._container.get_wrapped_container().pause()

    def unpause(self) -> None:
        """Let it go on where it was."""
        self._container.get_wrapped_container().unpause()

    def _start(self, stack: ExitStack) -> None:
        if (problem := docker_available()) is not None:
            raise RabbitMQError(problem)
        import docker
        from testcontainers.core.config import testcontainers_config
        from testcontainers.core.container import DockerContainer

        if not image_present(testcontainers_config.ryuk_image):
            # Its watchdog would be pulled first. The block removes the container without it.
            testcontainers_config.ryuk_disabled = True
        container = DockerContainer(self.image).with_exposed_ports(_AMQP_PORT)
        if self._has_management:
            container.with_exposed_ports(_MANAGEMENT_PORT)
        container.with_envs(RABBITMQ_DEFAULT_USER=USER, RABBITMQ_DEFAULT_PASS=self.password)
        self._container = container
        stack.callback(container.get_docker_client().client.close)
        stack.callback(container.stop)
        try:
            container.start()
        except docker.errors.DockerException as error:
            raise RabbitMQError(f"no container of {self.image} can be started: {error}") from error
        self._find_ports()

    @property
    def _has_management(self) -> bool:
        return self.image.endswith("-management")

    def _find_ports(self) -> None:
        self.host = self._container.get_container_host_ip()
        self.port = int(self._container.get_exposed_port(_AMQP_PORT))
        if self._has_management:
            self.management_port = int(self._container.get_exposed_port(_MANAGEMENT_PORT))

    def _attributes(self) -> Any:
        container = self._container.get_wrapped_container()
        container.reload()
        return container.attrs

    def _problem(self) -> str | None:
        container = self._container.get_wrapped_container()
        container.reload()
        if container.status in ("created", "running"):
            return None
        return f"the container of {self.image} has ended:\n{container.logs(tail=20).decode(errors='replace')}"


class PrivateRabbitMQ(RabbitMQ):
    """The rabbitmq-server on PATH as a node of its own: own ports, data, cookie and port mapper (epmd).

    Runs as root and as an ordinary user; touches nothing of a RabbitMQ that is installed as a service.
    """

    def __init__(self) -> None:
        super().__init__()
        self._node = f"quaybridge-{secrets.token_hex(4)}@localhost"
        self._environment: dict[str, str] = {}
        self._log = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<PrivateRabbitMQ {self._node} port {self.port}>"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def control(self, *arguments: str) -> str:
        done = subprocess.run(
            [_program("rabbitmqctl"), "--quiet", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode:
            raise RabbitMQError(f"rabbitmqctl {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def _start(self, stack: ExitStack) -> None:
        if (problem := server_available()) is not None:
            raise RabbitMQError(problem)
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quaybridge-rabbitmq-")))
        self.port, self.management_port, distribution_port, mapper_port = _free_ports(4)
        self._log = home / "output"
        run_id = own_run_id()
        (home / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (home / "rabbitmq-env.conf").touch()
        (home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.management_port}\n"
            f"default_user = {USER}\ndefault_pass = {self.password}\n"
        )
        (home / "rabbitmq.conf").chmod(0o600)
        self._environment = {
            "HOME": str(home),  # where Erlang keeps its cookie
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(mapper_port),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(home / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            RUN: f"{run_id}/rabbitmq",
        }
        # If this process is killed, its end of the reaper's stdin is closed with it, and the reaper ends the server.
        reaper = spawn_reaper(run_id, stdout=subprocess.DEVNULL)
        stack.callback(reaper.communicate, b"end\n")
        stack.callback(self._kill)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [_program("rabbitmq-server")],
                cwd=home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for us; we end it then
            )

    def _problem(self) -> str | None:
        if self._process is None or self._process.poll() is None:
            return None
        output = self._log.read_text(errors="replace").strip().splitlines()[-10:]
        return f"rabbitmq-server ended with status {self._process.returncode}:\n" + "\n".join(output)

    def _kill(self) -> None:
        """End the node and all it started, its port mapper too, which has left the process group."""
        processes = [
            process for process in psutil.process_iter() if _variable(process, "RABBITMQ_NODENAME") == self._node
        ]
        for process in processes:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT)
        psutil.wait_procs(processes, STOP_TIMEOUT)


def docker_available() -> str | None:
    """Why no container can be started here, or None."""
    try:
        import testcontainers.core.container  # noqa: F401 (whether it is there; it needs docker itself)
    except ImportError:
        return "the package testcontainers is not installed: pip install 'quaybridge[containers]'"
    with warnings.catch_warnings():
        # The socket that could not connect is left to the garbage collector (docker/transport/unixconn.py).
        warnings.simplefilter("ignore", ResourceWarning)
        problem = _docker_problem()
        gc.collect()
    return problem


def _docker_problem() -> str | None:
    import docker

    try:
        with closing(docker.from_env(timeout=10)) as client:
            client.ping()
    except docker.errors.DockerException:
        return "no Docker daemon answers"
    return None


def image_present(image: str) -> bool:
    """Whether Docker has `image` already, so that it need not be pulled. Only where `docker_available` is None."""
    import docker

    with closing(docker.from_env(timeout=10)) as client:
        try:
            client.images.get(image)
        except docker.errors.ImageNotFound:
            return False
    return True


def server_available() -> str | None:
    """Why no private node can be started here, or None."""
    if shutil.which("rabbitmq-server") is None:
        return "there is no rabbitmq-server on PATH"
    return None


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise RabbitMQError(f"there is no {name} on PATH")
    unwrapped = _UNWRAPPED / name
    return str(unwrapped) if Path(found).parent == Path("/usr/sbin") and unwrapped.exists() else found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except psutil.Error:  # it is gone, or somebody else's
        return None
