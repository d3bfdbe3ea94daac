"""RabbitMQ in containers that can be killed and started again on the same ports: one, or three that form a cluster.

    with Cluster(image, 3) as cluster:
        cluster.url                     # of all members, separated by commas
        cluster.members[0].kill()
        cluster.members[0].restart()

The members talk to each other over a network of their own, and to clients over another: a member that is
partitioned from the others is still there for its clients.
"""

from __future__ import annotations

import io
import random
import secrets
import socket
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, Self

import docker
from docker.errors import DockerException

from quaybridge.rabbitmq import USER, RabbitMQ, RabbitMQError

PATIENCE = 120.0  # seconds for what takes ten on an idle machine
TICK_TIME = 10  # seconds after which a silent member counts as gone
_PORTS = range(20_000, 30_000)  # below what systems give out by themselves, and so free while a member is down


class Member(RabbitMQ):
    """One container. `others`: how many members there are in all; `password` and `cookie` are the cluster's."""

    def __init__(self, image: str, number: int, members: int, *, network: str, password: str, cookie: str) -> None:
        super().__init__()
        self.password = password
        self.name = f"rabbit@rabbit{number}"
        self._image = image
        self._number = number
        self._members = members
        self._network_name = network
        self._cookie = cookie
        self._client: Any = None
        self._container: Any = None

    def __repr__(self) -> str:
        return f"<Member {self.name} {self._image} port {self.port}>"

    @property
    def pid(self) -> int:
        """See RabbitMQ."""
        self._container.reload()
        return int(self._container.attrs["State"]["Pid"])

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl in it."""
        return self.run("rabbitmqctl", "--quiet", *arguments)

    def run(self, *command: str) -> str:
        """Run a program in it; its output. Raises RabbitMQError if it fails."""
        status, output = self._container.exec_run(list(command))
        text: str = output.decode(errors="replace")
        if status:
            raise RabbitMQError(f"{' '.join(command)}: {text.strip()}")
        return text

    def kill(self) -> None:
        """SIGKILL to all of it."""
        self._container.kill("SIGKILL")

    def stop(self) -> None:
        """Stop it as an operator does."""
        self._container.stop(timeout=60)

    def restart(self) -> None:
        """Start it again; returns when it answers."""
        self._container.start()
        self._wait_until_it_answers()

    def running(self) -> bool:
        """Whether Docker says that it runs."""
        self._container.reload()
        return bool(self._container.status == "running")

    def partition(self) -> None:
        """Cut it off from the other members, not from its clients."""
        self._client.networks.get(self._network_name).disconnect(self._container)

    def heal(self) -> None:
        """Undo that."""
        self._client.networks.get(self._network_name).connect(self._container, aliases=[f"rabbit{self._number}"])

    def _start(self, stack: ExitStack) -> None:
        arguments = f"-setcookie {self._cookie} -kernel net_ticktime {TICK_TIME}"
        self._client = stack.enter_context(closing(docker.from_env(timeout=120)))
        self.port, self.management_port = _free_ports(2)
        try:
            self._container = self._client.containers.create(
                self._image,
                hostname=f"rabbit{self._number}",
                ports={"5672/tcp": ("127.0.0.1", self.port), "15672/tcp": ("127.0.0.1", self.management_port)},
                environment={
                    "RABBITMQ_DEFAULT_USER": USER,
                    "RABBITMQ_DEFAULT_PASS": self.password,
                    "RABBITMQ_ERLANG_COOKIE": self._cookie,  # for rabbitmqctl
                    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": arguments,
                },
            )
            stack.callback(self._container.remove, force=True, v=True)
            if self._members > 1:
                self.heal()
                self._container.put_archive("/etc/rabbitmq/conf.d", self._configuration())
            self._container.start()
        except DockerException as error:
            raise RabbitMQError(f"no container of {self._image} can be started: {error}") from error

    def _configuration(self) -> bytes:
        """Who is in the cluster, as a tar archive that holds a file."""
        nodes = "cluster_formation.classic_config.nodes"
        lines = ["cluster_formation.peer_discovery_backend = classic_config"]
        # Up to 4.1 members otherwise stay apart when the network is whole again; later ones ignore it.
        lines += ["cluster_partition_handling = pause_minority"]
        lines += [f"{nodes}.{number} = rabbit@rabbit{number}" for number in range(1, self._members + 1)]
        content = ("\n".join(lines) + "\n").encode()
        file = tarfile.TarInfo("90-cluster.conf")
        file.size, file.mode = len(content), 0o644
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(file, io.BytesIO(content))
        return archive.getvalue()

    def _problem(self) -> str | None:
        if self.running():
            return None
        return f"the container of {self.name} has ended:\n{self._container.logs(tail=20).decode(errors='replace')}"


class Cluster:
    """So many members, started together. A context manager; gone with all their data when the block ends."""

    def __init__(self, image: str, size: int = 1) -> None:
        self.image = image
        self._network_name = f"quaybridge-{secrets.token_hex(4)}"
        password, cookie = secrets.token_hex(16), secrets.token_hex(16)
        self.members = [
            Member(image, number, size, network=self._network_name, password=password, cookie=cookie)
            for number in range(1, size + 1)
        ]
        self._stack = ExitStack()

    def __repr__(self) -> str:
        return f"<Cluster of {len(self.members)} {self.image}>"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if len(self.members) > 1:
                client = stack.enter_context(closing(docker.from_env(timeout=120)))
                network = client.networks.create(self._network_name)
                stack.callback(network.remove)
            with ThreadPoolExecutor(len(self.members)) as pool:
                started = [pool.submit(member.__enter__) for member in self.members]
            for future in started:
                if future.exception() is None:
                    stack.callback(future.result().__exit__)
            for future in started:
                future.result()
            self.wait_until_whole()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The URLs of all members."""
        return ",".join(member.url for member in self.members)

    def wait_until_whole(self) -> None:
        """Wait until every member runs and sees all the others."""
        if len(self.members) > 1:
            self.wait_for(lambda: all(len(self._seen_by(member)) == len(self.members) for member in self.members))

    def leader_of(self, queue: str) -> Member:
        """The member that leads a quorum queue."""
        leaders: list[Member] = []

        def found() -> bool:
            told = self._queue(queue)
            leaders.extend(member for member in self.members if member.name == told.get("leader"))
            return bool(leaders)

        self.wait_for(found)
        return leaders[0]

    def move_leader(self, queue: str, to: Member) -> None:
        """Have another member lead a quorum queue; returns when it does."""
        leader = self.leader_of(queue)
        server = f'list_to_atom("%2F_{queue}")'  # the name of its log: vhost and queue
        leader.control("eval", f"ra:transfer_leadership({{{server}, node()}}, {{{server}, '{to.name}'}}).")
        self.wait_for(lambda: self.leader_of(queue) is to)

    def online_members_of(self, queue: str) -> list[str]:
        """The members that hold an up to date copy of a quorum queue's log, as the management plugin has it."""
        return list(self._queue(queue).get("online") or [])

    def _queue(self, queue: str) -> dict[str, Any]:
        for member in self.members:
            if member.running():
                found: dict[str, Any] = member.manage("GET", f"/api/queues/%2F/{queue}")
                return found
        raise RabbitMQError("no member runs")

    def _seen_by(self, member: Member) -> list[str]:
        try:
            nodes = member.manage("GET", "/api/nodes")
        except (OSError, RabbitMQError):
            return []
        return [node["name"] for node in nodes if node["running"]]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait for something about it. Raises RabbitMQError when patience ends."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise RabbitMQError(f"{self!r} is not whole after {PATIENCE:.0f} s")
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    while len(ports) < count:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) and port not in ports:
                ports.append(port)
    return ports
