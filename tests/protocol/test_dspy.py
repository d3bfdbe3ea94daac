"""examples/dspy on the real DSPy: its commands, in sessions and in none, and its real request path over loopback.

DSPy is an extra of 300 MB. Where it is not installed these tests are skipped, and say how to get it; where everything
must run (QUAYBRIDGE_REQUIRE_CONTAINERS=1) they fail.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE, run

from quaybridge import ApplicationError, SessionLost
from quaybridge.testing import Service, open_service

COMMAND = (sys.executable, "-m", "examples.dspy")
KEY = 'sk-Quay/Bridge+"0123456789'  # with what JSON and URLs spell in another way
ANSWER = {
    "inputs": [{"name": "question", "type": "string", "description": "what to answer"}],
    "outputs": [
        {"name": "answer", "type": "string"},
        {"name": "sure", "type": "probability"},
        {"name": "digits", "type": "list[integer]"},
    ],
}
SAID = {"answer": "four", "sure": 0.5, "digits": [4]}
REASONING = "two and two, and so on"


@pytest.fixture(scope="module", autouse=True)
def _dspy() -> None:
    if importlib.util.find_spec("dspy") is None:
        if os.environ.get("QUAYBRIDGE_REQUIRE_CONTAINERS") == "1":
            pytest.fail("QUAYBRIDGE_REQUIRE_CONTAINERS=1, and DSPy is not installed: run `make dspy`")
        pytest.skip("DSPy is not installed: run `make dspy`")


@dataclass
class Provider:
    """A provider of models as OpenAI is one, on loopback: what it was asked, and what it answers."""

    url: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # the key that came, and the body
    go_on: threading.Event = field(default_factory=threading.Event)  # the model that pauses may
    hung_up: threading.Event = field(default_factory=threading.Event)  # on the model that never ends

    def answer(self, key: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append((key, body))
        if body["model"] == "refuses":
            return 401, {"error": {"message": f"Incorrect API key provided: {key}", "code": "invalid_api_key"}}
        asked = json.dumps(body["messages"])
        fields: dict[str, Any] = {"reasoning": REASONING, **SAID} if "reasoning" in asked else SAID
        if "next_tool_name" in asked:
            fields = {"next_thought": "enough", "next_tool_name": "finish", "next_tool_args": "{}"}
        text = "\n".join(f"[[ ## {name} ## ]]\n{value}\n" for name, value in fields.items())
        if body["model"] == "gossips":
            text = text.replace("four", f"your key is {key}")
        message = {"role": "assistant", "content": text + "\n[[ ## completed ## ]]"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return 200, {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }

    def stream(self, body: dict[str, Any], said: dict[str, Any], connection: socket.socket) -> None:
        """Send the answer as server-sent events, a few characters in each, which part a key in the answer."""
        sent = ""
        for piece in re.findall(r"\w{1,3}|\W{1,3}", said["choices"][0]["message"]["content"]):
            connection.sendall(self._event(said, {"role": "assistant", "content": piece}, None))
            sent += piece
            if sent.endswith("four") and body["model"] == "pauses":
                assert self.go_on.wait(PATIENCE)
            if sent.endswith("four") and body["model"] == "endless":
                connection.settimeout(PATIENCE)
                assert connection.recv(1) == b""
                self.hung_up.set()
                return
        connection.sendall(self._event(said, {}, "stop") + b"data: [DONE]\n\n")

    def _event(self, said: dict[str, Any], delta: dict[str, Any], finish_reason: str | None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
        event = {**said, "object": "chat.completion.chunk", "choices": choices, "usage": None}
        return b"data: " + json.dumps(event).encode() + b"\n\n"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, said = provider.answer(self.headers["Authorization"].removeprefix("Bearer "), body)
            if body.get("stream") and status == 200:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                provider.stream(body, said, self.connection)
                return
            payload = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        provider.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield provider
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one directory that the bridge and its node may leave anything in."""
    return tmp_path_factory.mktemp("left")


@pytest.fixture(scope="module")
def service(left: Path) -> Iterator[Service]:
    """One bridge for all these tests (DSPy takes a second to import), with all there is of debugging on."""
    log = logging.FileHandler(left / "node.log")
    log.setLevel(logging.DEBUG)
    root = logging.getLogger()
    level = root.level
    root.addHandler(log)
    root.setLevel(logging.DEBUG)
    try:
        with open_service(
            "memory",
            "-",
            command=COMMAND,
            sessions={"enabled": True},
            run_timeout=60.0,
            start_timeout=60.0,
            debug={"directory": str(left), "args": True},
            environment={"HOME": str(left), "TMPDIR": str(left), "SOME_API_KEY": "sk-of-the-environment"},
        ) as service:
            yield service
    finally:
        root.setLevel(level)
        root.removeHandler(log)
        log.close()


@pytest.fixture(autouse=True)
def _fresh(service: Service) -> None:
    service.call("reset_state")


def dummy(answers: object) -> dict[str, object]:
    return {"model": "dummy", "answers": answers}


def refusal(service: Service, command: str, args: dict[str, object]) -> str:
    """What a request is refused with."""
    with pytest.raises(ApplicationError) as failed:
        service.call(command, args)
    return failed.value.message.removeprefix("ApplicationError: ")


def test_every_command_is_there(service: Service) -> None:
    commands = service.call("ping").result["capabilities"]["commands"]
    assert commands == [
        "cleanup",
        "cleanup_session",
        "configure_lm",
        "create_program",
        "delete_program",
        "execute_program",
        "get_program_info",
        "get_stats",
        "list_programs",
        "reset_state",
        "stream_program",
    ]


def test_a_programs_life_outside_of_sessions(service: Service) -> None:
    assert service.call("configure_lm", dummy([SAID])).result == {
        "status": "configured",
        "model": "dummy",
        "temperature": None,
    }
    created = service.call("create_program", {"id": "p", "signature": ANSWER}).result
    assert (created["program_id"], created["status"], created["program_type"]) == ("p", "created", "predict")
    done = service.call("execute_program", {"program_id": "p", "inputs": {"question": "2 + 2?"}}).result
    assert done["outputs"] == SAID
    info = service.call("get_program_info", {"program_id": "p"}).result
    assert info["execution_count"] == 1
    assert info["signature"]["inputs"] == [{"name": "question", "type": "str", "description": "what to answer"}]
    assert [field["type"] for field in info["signature"]["outputs"]] == ["str", "float", "list[int]"]
    assert service.call("list_programs").result == {"programs": [info], "total_count": 1}
    stats = service.call("get_stats").result
    assert (stats["programs_count"], stats["executions"], stats["model"]) == (1, 1, "dummy")
    assert service.call("delete_program", {"program_id": "p"}).result == {"program_id": "p", "status": "deleted"}
    service.call("create_program", {"id": "q", "signature": "question -> answer"})
    assert service.call("cleanup").result == {"status": "cleaned", "programs_removed": 1}
    assert service.call("reset_state").result == {"status": "reset", "programs_cleared": 0}
    assert service.call("get_stats").result["model"] is None


def test_the_modules(service: Service) -> None:
    thought = {"next_thought": "add", "next_tool_name": "calculate", "next_tool_args": '{"expression": "2 + 2"}'}
    enough = {"next_thought": "done", "next_tool_name": "finish", "next_tool_args": "{}"}
    service.call("configure_lm", dummy([{"reasoning": "so", **SAID}, thought, enough, {"reasoning": "so", **SAID}]))
    service.call("create_program", {"id": "c", "signature": ANSWER, "program_type": "chain_of_thought"})
    service.call("create_program", {"id": "r", "signature": ANSWER, "program_type": "react", "tools": ["calculate"]})
    asked = {"inputs": {"question": "2 + 2?"}}
    thoughtful = service.call("execute_program", {"program_id": "c", **asked}).result
    assert thoughtful["outputs"] == {"reasoning": "so", **SAID}
    acted = service.call("execute_program", {"program_id": "r", **asked}).result["outputs"]
    assert acted["trajectory"]["observation_0"] == 4
    assert {name: acted[name] for name in SAID} == SAID


@pytest.mark.parametrize(
    ("command", "args", "said"),
    [
        ("create_program", {"signature": ANSWER}, "Program ID is required"),
        ("create_program", {"id": "", "signature": ANSWER}, "Program ID is required"),
        ("create_program", {"id": None, "signature": ANSWER}, "Program ID is required"),
        ("execute_program", {"inputs": {}}, "Program ID is required"),
        ("get_program_info", {}, "Program ID is required"),
        ("delete_program", {"program_id": " "}, "Program ID is required"),
        ("execute_program", {"program_id": "none"}, "Program not found: none"),
        ("create_program", {"id": "taken", "signature": ANSWER}, "Program already exists: taken"),
        ("create_program", {"id": "x"}, "signature.inputs should be a list of at least one field"),
        ("create_program", {"id": "x", "signature": {**ANSWER, "outputs": [{}]}}, "signature.outputs[0].name should"),
        ("create_program", {"id": "x", "signature": "no arrow"}, "signature: "),
        (
            "create_program",
            {"id": "x", "signature": {**ANSWER, "outputs": [{"name": "a", "type": "list[text]"}]}},
            "signature.outputs[0].type 'text' is none of any, array, ",
        ),
        ("create_program", {"id": "x", "signature": ANSWER, "program_type": "guess"}, "program_type 'guess' is none"),
        (
            "create_program",
            {"id": "x", "signature": ANSWER, "program_type": "react", "tools": ["rm"]},
            "there is no tool",
        ),
        ("execute_program", {"program_id": "taken", "inputs": {"question": "?"}}, "no language model is configured"),
        ("configure_lm", {"model": "dummy"}, "the dummy model needs answers"),
    ],
)
def test_what_is_refused(service: Service, command: str, args: dict[str, object], said: str) -> None:
    service.call("create_program", {"id": "taken", "signature": ANSWER})
    assert refusal(service, command, args).startswith(said)


def test_inputs_are_checked_by_their_types(service: Service) -> None:
    service.call("configure_lm", dummy([{"sum": 3}]))
    inputs = [
        {"name": "numbers", "type": "list<integer>"},
        {"name": "weights", "type": "dict[str, float]"},
        {"name": "chance", "type": "probability"},
    ]
    signature = {"inputs": inputs, "outputs": [{"name": "sum", "type": "integer"}]}
    service.call("create_program", {"id": "s", "signature": signature})
    good = {"numbers": [1, 2], "weights": {"a": 1}, "chance": 1}
    assert service.call("execute_program", {"program_id": "s", "inputs": good}).result["outputs"] == {"sum": 3}
    bad = {"numbers": [1, "2"], "weights": {"a": True}, "other": 1}
    said = refusal(service, "execute_program", {"program_id": "s", "inputs": bad})
    assert said.startswith("input numbers[1]: ")
    assert "; input weights['a']: " in said
    assert "; missing input 'chance'; unknown input 'other'" in said
    said = refusal(service, "execute_program", {"program_id": "s", "inputs": {**good, "chance": 2}})
    assert said.startswith("input chance: ")


def test_sessions_have_programs_and_models_of_their_own(service: Service) -> None:
    sessions = [service.session(f"user-{number}") for number in range(3)]
    for number, session in enumerate(sessions):
        session.call("configure_lm", dummy([{**SAID, "answer": f"answer {number}"}] * 2))
        session.call("create_program", {"id": "p", "signature": ANSWER})
    asked = {"program_id": "p", "inputs": {"question": "?"}}
    answers = [session.call("execute_program", asked).result["outputs"]["answer"] for session in sessions]
    assert answers == ["answer 0", "answer 1", "answer 2"]
    assert refusal(service, "execute_program", asked) == "Program not found: p"
    assert sessions[0].call("cleanup").result["programs_removed"] == 1
    assert sessions[1].call("list_programs").result["total_count"] == 1
    sessions[1].close()
    assert service.session("user-1").call("get_stats").result["programs_count"] == 0


def test_in_a_pool_every_command_works_in_sessions_and_without() -> None:
    with open_service(
        "memory", "-", command=COMMAND, bridges=2, sessions={"enabled": True}, run_timeout=60.0, start_timeout=60.0
    ) as pool:
        bridges = set()
        for number in range(6):
            session = pool.session(f"s{number}")
            session.call("configure_lm", dummy([SAID]))
            session.call("create_program", {"id": "p", "signature": ANSWER})
            asked = {"program_id": "p", "inputs": {"question": "?"}}
            assert session.call("execute_program", asked).result["outputs"] == SAID
            assert session.call("get_program_info", {"program_id": "p"}).result["execution_count"] == 1
            stats = session.call("get_stats").result
            bridges.add(stats["pid"])
            assert (stats["programs_count"], stats["executions"]) == (1, 1)
        assert len(bridges) == 2
        pooled = ("get_stats", "list_programs", "cleanup", "reset_state", "ping")
        outcomes = [pool.submit(command) for command in pooled for _ in range(6)]
        assert all(outcome.result().result for outcome in outcomes)
        assert {pool.session(f"s{number}").call("reset_state").result["programs_cleared"] for number in range(6)} == {1}


def test_after_a_crash_a_session_is_told_or_rebuilt(service: Service) -> None:
    told = service.session("told")
    told.call("create_program", {"id": "p", "signature": ANSWER})
    rebuilt = service.session("rebuilt", mode="rebuild", journal=["configure_lm", "create_program"])
    rebuilt.call("configure_lm", dummy([SAID]))
    rebuilt.call("create_program", {"id": "p", "signature": ANSWER})
    service.fail("crash", command="get_stats")
    with pytest.raises(Exception, match="SIGKILL"):
        service.call("get_stats")
    service.heal()
    asked = {"program_id": "p", "inputs": {"question": "?"}}
    assert rebuilt.call("execute_program", asked).result["outputs"] == SAID
    with pytest.raises(SessionLost):
        told.call("execute_program", asked)


def test_a_real_request_and_no_key_in_anything_that_is_left(service: Service, provider: Provider, left: Path) -> None:
    shared: dict[str, object] = {"provider": "openai", "api_base": provider.url, "api_key": KEY}
    seen = [service.call("configure_lm", {"model": "gpt", "temperature": 0.5, **shared}).result]
    service.call("create_program", {"id": "p", "signature": ANSWER})
    asked: dict[str, object] = {"program_id": "p", "inputs": {"question": "2 + 2?"}}
    assert service.call("execute_program", asked).result["outputs"] == SAID
    key, body = provider.asked[-1]
    assert (key, body["model"], body["temperature"]) == (KEY, "gpt", 0.5)
    assert "2 + 2?" in json.dumps(body["messages"])
    # A provider that quotes the key in its error, and a model that does so in its answer.
    service.call("configure_lm", {"model": "refuses", **shared})
    with pytest.raises(ApplicationError, match="Incorrect API key") as refused:
        service.call("execute_program", asked)
    seen += [refused.value.message, refused.value.details]
    service.call("configure_lm", {"model": "gossips", **shared})
    seen.append(service.call("execute_program", asked).result)
    assert "your key is [redacted]" in seen[-1]["outputs"]["answer"]
    assert (
        refusal(service, "execute_program", {"program_id": "sk-of-the-environment"}) == "Program not found: [redacted]"
    )
    assert KEY not in json.dumps(seen, ensure_ascii=False)
    for handler in logging.getLogger().handlers:
        handler.flush()
    files = [path for path in left.rglob("*") if path.is_file()]
    written = {path.name: path.read_bytes() for path in files}
    assert len(written["node.log"]) > 1000
    assert b"metadata refresh" not in written["node.log"]  # nobody else was asked for anything
    frames = next(content for name, content in written.items() if name.endswith(".frames.log"))
    assert b"Incorrect API key provided: [redacted]" in frames
    for name, content in written.items():
        for part in (b"0123456789", b"sk-Quay"):
            assert part not in content, name


def joined(said: list[dict[str, str]]) -> dict[str, str]:
    """The text of each field, of its pieces."""
    fields: dict[str, str] = {}
    for piece in said:
        fields[piece["field"]] = fields.get(piece["field"], "") + piece["text"]
    return fields


def configure(service: Service, provider: Provider, model: str) -> None:
    args = {"model": model, "provider": "openai", "api_base": provider.url, "api_key": KEY}
    service.call("configure_lm", args)


QUESTION: dict[str, object] = {"program_id": "p", "inputs": {"question": "2 + 2?"}}


@pytest.mark.parametrize("program_type", ["predict", "chain_of_thought", "react"])
def test_a_program_is_read_while_the_model_speaks(service: Service, provider: Provider, program_type: str) -> None:
    configure(service, provider, "pauses")
    service.call("create_program", {"id": "p", "signature": ANSWER, "program_type": program_type})
    provider.go_on.clear()
    stream = service.producer.stream(service.name, "stream_program", QUESTION, timeout=PATIENCE)
    said = []
    with stream:
        for piece in stream:
            said.append(piece)
            if "".join(piece["text"] for piece in said).endswith("four"):
                provider.go_on.set()
    assert provider.go_on.is_set()
    assert len(said) > 3
    thought = {} if program_type == "predict" else {"reasoning": REASONING}
    assert joined(said) == {**thought, "answer": "four", "sure": "0.5", "digits": "[4]"}
    assert stream.reply is not None
    outputs = stream.reply.result["outputs"]
    assert {name: outputs[name] for name in outputs if name != "trajectory"} == {**thought, **SAID}
    assert ("trajectory" in outputs) == (program_type == "react")
    assert provider.asked[-1][1]["stream"] is True
    assert service.call("get_stats").result["executions"] == 1
    assert service.call("get_program_info", {"program_id": "p"}).result["execution_count"] == 1
    told = service.call("execute_program", QUESTION).result
    assert told.keys() == stream.reply.result.keys()
    assert told["outputs"] == outputs


def test_a_key_in_two_pieces_is_hidden(service: Service, provider: Provider) -> None:
    configure(service, provider, "gossips")
    service.call("create_program", {"id": "p", "signature": ANSWER})
    stream = service.producer.stream(service.name, "stream_program", QUESTION, timeout=PATIENCE)
    said = list(stream)
    assert len(said) > 3
    assert joined(said)["answer"] == "your key is [redacted]"
    assert stream.reply is not None
    assert stream.reply.result["outputs"]["answer"] == "your key is [redacted]"


def test_leaving_a_program_early_ends_the_models_request(service: Service, provider: Provider) -> None:
    configure(service, provider, "endless")
    service.call("create_program", {"id": "p", "signature": ANSWER})
    pid = service.call("get_stats").result["pid"]
    provider.hung_up.clear()
    with service.producer.stream(service.name, "stream_program", QUESTION, timeout=PATIENCE) as stream:
        assert next(iter(stream))["field"] == "answer"
    assert provider.hung_up.wait(PATIENCE)
    stats = service.call("get_stats").result
    assert (stats["pid"], stats["executions"], stats["errors"]) == (pid, 0, 0)
    configure(service, provider, "gpt")
    assert service.call("stream_program", QUESTION).result["outputs"] == SAID  # the next one is as any


def test_a_stream_fails_as_an_execution_does(service: Service, provider: Provider) -> None:
    service.call("create_program", {"id": "p", "signature": ANSWER})
    wrong: list[dict[str, object]] = [{}, {"program_id": "none"}, QUESTION, {"program_id": "p", "inputs": {"other": 1}}]

    def failures(command: str) -> list[str]:
        found = []
        for model in (None, "refuses"):
            service.call("reset_state")
            service.call("create_program", {"id": "p", "signature": ANSWER})
            if model is not None:
                configure(service, provider, model)
            found += [refusal(service, command, args) for args in wrong]
        return [*found, str(service.call("get_stats").result["errors"])]

    failed = failures("stream_program")
    assert failed == failures("execute_program")
    assert "Incorrect API key provided: [redacted]" in "".join(failed)


def test_a_model_that_does_not_stream(service: Service) -> None:
    thought = {"next_thought": "add", "next_tool_name": "calculate", "next_tool_args": '{"expression": "2 + 2"}'}
    enough = {"next_thought": "done", "next_tool_name": "finish", "next_tool_args": "{}"}
    service.call("configure_lm", dummy([thought, enough, {"reasoning": "so", **SAID}]))
    service.call("create_program", {"id": "p", "signature": ANSWER, "program_type": "react", "tools": ["calculate"]})
    stream = service.producer.stream(service.name, "stream_program", QUESTION, timeout=PATIENCE)
    assert joined(list(stream)).keys() <= {"reasoning", *SAID}
    assert stream.reply is not None
    outputs = stream.reply.result["outputs"]
    assert outputs["trajectory"]["observation_0"] == 4
    assert {name: outputs[name] for name in SAID} == SAID


def test_in_a_session_a_program_is_read_as_well(service: Service, provider: Provider) -> None:
    session = service.session("read")
    session.call("configure_lm", {"model": "pauses", "provider": "openai", "api_base": provider.url, "api_key": KEY})
    session.call("create_program", {"id": "p", "signature": ANSWER})
    provider.go_on.clear()
    said = []
    with session.stream("stream_program", QUESTION, timeout=PATIENCE) as stream:
        for piece in stream:
            said.append(piece)
            if "".join(piece["text"] for piece in said).endswith("four"):
                provider.go_on.set()
    assert provider.go_on.is_set()
    assert joined(said) == {"answer": "four", "sure": "0.5", "digits": "[4]"}
    assert stream.reply is not None
    assert stream.reply.result["outputs"] == SAID
    assert session.call("get_stats").result["executions"] == 1


def test_in_a_session_the_result_is_the_same(service: Service) -> None:
    session = service.session("streams")
    session.call("configure_lm", dummy([SAID]))
    session.call("create_program", {"id": "p", "signature": ANSWER})
    assert session.call("stream_program", QUESTION).result["outputs"] == SAID
    assert session.call("get_stats").result["executions"] == 1


def test_what_is_printed_or_logged_holds_no_key() -> None:
    """Also where one comes in pieces, as some library may write it to stderr."""
    program = (
        "import logging, os, sys\n"
        "from examples.dspy.keys import Keys, keep_quiet\n"
        "keys = Keys(); keys.add_from(os.environ); keep_quiet(keys)\n"
        "key = os.environ['MY_API_KEY']\n"
        "logging.warning('logged %s', key); print('printed', key)\n"
        "sys.stderr.write('in two: ' + key[:9]); sys.stderr.write(key[9:] + '\\n')\n"
        "raise ValueError('raised ' + key)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MY_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    for said in ("logged", "printed", "in two:", "raised"):
        assert f"{said} [redacted]" in done.stderr
    assert "0123456789" not in done.stderr


async def test_the_demo_shows_programs_in_sessions_over_two_nodes() -> None:
    ended = await run("demo", "--dspy")
    assert ended.status == 0, ended.err
    assert "demo-0" in ended.out
    assert "demo-1" in ended.out
    assert ended.out.splitlines()[-1] == "12 questions answered by 6 programs in 6 sessions over 2 nodes"
