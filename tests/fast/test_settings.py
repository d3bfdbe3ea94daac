"""Configuration: which source wins, how each key is spelt in each, and what bad input is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from quaybridge.settings import (
    BROKER,
    FILE_LIMIT,
    NODE_NAME,
    STORE,
    Configuration,
    SettingsError,
    given,
    read_configuration,
)
from worker_node.settings import (
    AnsweredSettings,
    BridgeCount,
    DebugSettings,
    LimitSettings,
    NodeSettings,
    RetryAfterSettings,
    RetrySettings,
    ServiceSettings,
)

WHOLE = """
broker = "amqp://file:secret@file.example/orders"
health_file = "/run/quaybridge"

[node]
name = "from-the-file"
drain_timeout = 60

[services.analyse]
command = "python -m 'my analyse' --fast"
bridges = 4
start = "lazy"
run_timeout = 12.5
retry.max_attempts = 5
retry.after.bridge_timeout = 30
answered.count = 0
write_timeout = 3
protocol_fd = true
debug.directory = "/var/log/frames"
debug.args = true
environment.OMP_NUM_THREADS = "{slot}"
limits.memory = 2_000_000_000
limits.nice = 5

[services.my-echo]
command = ["cat", "a b"]
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(
    text: str = "",
    environ: Mapping[str, str] | None = None,
    options: Mapping[tuple[str, ...], tuple[str, object]] | None = None,
) -> Configuration:
    Path("quaybridge.toml").write_text(text)
    return read_configuration(environ=environ or {}, flags=given(options or {}))


def service(configuration: Configuration, name: str) -> ServiceSettings:
    return next(service for service in configuration.node().services if service.name == name)


def test_nothing_configured_means_rabbitmq_on_this_host() -> None:
    (address,) = read_configuration(environ={}).broker()
    assert (address.host, address.port, address.user) == ("127.0.0.1", 5672, "guest")
    assert read_configuration(environ={}).health_file() is None


def test_a_file_says_everything() -> None:
    configuration = configured(WHOLE)
    assert [address.host for address in configuration.broker()] == ["file.example"]
    assert configuration.health_file() == Path("/run/quaybridge")
    assert configuration.node() == NodeSettings(
        name="from-the-file",
        drain_timeout=60,
        services=(
            ServiceSettings(
                name="analyse",
                command=("python", "-m", "my analyse", "--fast"),
                bridges=4,
                start="lazy",
                run_timeout=12.5,
                retry=RetrySettings(max_attempts=5, after=RetryAfterSettings(bridge_timeout=30)),
                answered=AnsweredSettings(count=0),
                write_timeout=3,
                protocol_fd=True,
                debug=DebugSettings(directory="/var/log/frames", args=True),
                environment={"OMP_NUM_THREADS": "{slot}"},
                limits=LimitSettings(memory=2_000_000_000, nice=5),
            ),
            ServiceSettings(name="my-echo", command=("cat", "a b")),
        ),
    )


def test_the_environment_says_everything_a_file_can() -> None:
    from_environment = read_configuration(
        environ={
            "QUAYBRIDGE_BROKER": "amqp://file:secret@file.example/orders",
            "QUAYBRIDGE_HEALTH_FILE": "/run/quaybridge",
            "QUAYBRIDGE_NODE": "from-the-file",
            "QUAYBRIDGE_NODE__DRAIN_TIMEOUT": "60",
            "QUAYBRIDGE_SERVICES__ANALYSE__COMMAND": "python -m 'my analyse' --fast",
            "QUAYBRIDGE_SERVICES__ANALYSE__BRIDGES": "4",
            "QUAYBRIDGE_SERVICES__ANALYSE__START": "lazy",
            "QUAYBRIDGE_SERVICES__ANALYSE__RUN_TIMEOUT": "12.5",
            "QUAYBRIDGE_SERVICES__ANALYSE__RETRY__MAX_ATTEMPTS": "5",
            "QUAYBRIDGE_SERVICES__ANALYSE__RETRY__AFTER__BRIDGE_TIMEOUT": "30",
            "QUAYBRIDGE_SERVICES__ANALYSE__ANSWERED__COUNT": "0",
            "QUAYBRIDGE_SERVICES__ANALYSE__WRITE_TIMEOUT": "3",
            "QUAYBRIDGE_SERVICES__ANALYSE__PROTOCOL_FD": "true",
            "QUAYBRIDGE_SERVICES__ANALYSE__DEBUG__DIRECTORY": "/var/log/frames",
            "QUAYBRIDGE_SERVICES__ANALYSE__DEBUG__ARGS": "true",
            "QUAYBRIDGE_SERVICES__ANALYSE__ENVIRONMENT__OMP_NUM_THREADS": "{slot}",
            "QUAYBRIDGE_SERVICES__ANALYSE__LIMITS__MEMORY": "2000000000",
            "QUAYBRIDGE_SERVICES__ANALYSE__LIMITS__NICE": "5",
        }
    )
    from_file = configured(WHOLE)
    assert from_environment.broker() == from_file.broker()
    assert from_environment.health_file() == from_file.health_file()
    assert from_environment.node() == from_file.node("analyse")


def test_a_later_source_wins_key_by_key() -> None:
    environ = {"QUAYBRIDGE_NODE": "from-the-environment", "QUAYBRIDGE_SERVICES__ANALYSE__BRIDGES": "5"}
    options = {
        NODE_NAME: ("--name", "from-a-flag"),
        BROKER: ("--broker", None),
        ("services", "analyse", "command"): ("--bridge", "other 'bridge of mine'"),
    }
    assert configured(WHOLE).node().name == "from-the-file"
    assert configured(WHOLE, environ).node().name == "from-the-environment"
    configuration = configured(WHOLE, environ, options)
    assert configuration.node().name == "from-a-flag"
    assert configuration.node().drain_timeout == 60
    assert configuration.broker()[0].host == "file.example"
    analyse = service(configuration, "analyse")
    assert (analyse.command, analyse.bridges, analyse.start) == (("other", "bridge of mine"), BridgeCount(5, 5), "lazy")


def test_the_file_is_the_one_named_first(directory: Path) -> None:
    for name in ("option", "variable", "quaybridge"):
        (directory / f"{name}.toml").write_text(f'[node]\nname = "{name}"\n[services.a]\ncommand = "a"')
    environ = {"QUAYBRIDGE_CONFIG": str(directory / "variable.toml")}
    assert read_configuration(directory / "option.toml", environ=environ).node().name == "option"
    assert read_configuration(environ=environ).node().name == "variable"
    assert read_configuration(environ={}).node().name == "quaybridge"


def test_one_service_of_several_can_be_picked() -> None:
    assert [service.name for service in configured(WHOLE).node("my-echo").services] == ["my-echo"]
    with pytest.raises(SettingsError, match="no service is configured: give --service NAME --bridge COMMAND"):
        configured(WHOLE).node("other")


def test_a_variable_spells_dashes_as_underscores_and_keeps_the_letters_of_a_bridges_variables() -> None:
    prefix = "QUAYBRIDGE_SERVICES__MY_ECHO__"
    echo = service(configured(WHOLE, {f"{prefix}BRIDGES": "7", f"{prefix}ENVIRONMENT__a__B": "c d"}), "my-echo")
    assert (echo.bridges, echo.environment) == (BridgeCount(7, 7), {"a__B": "c d"})


def test_a_bridges_own_variable_may_have_any_name() -> None:
    named = {"command": "two words", "retry": "x", "name": "y"}
    lines = "".join(f"environment.{name} = {value!r}\n" for name, value in named.items())
    assert service(configured(f'[services.a]\ncommand = "a"\n{lines}'), "a").environment == named


def test_an_empty_variable_counts_as_not_set() -> None:
    environ = {"QUAYBRIDGE_BROKER": "", "QUAYBRIDGE_NODE__DRAIN_TIMEOUT": "", "QUAYBRIDGE_CONFIG": ""}
    assert configured(WHOLE, environ).node().drain_timeout == 60
    assert configured(WHOLE, environ).broker()[0].host == "file.example"


def test_variables_of_others_are_left_alone() -> None:
    environ = {
        "QUAYBRIDGE_PORT": "tcp://10.0.0.1:5672",
        "QUAYBRIDGE_SERVICE_HOST": "10.0.0.1",
        "QUAYBRIDGE_REQUIRE_CONTAINERS": "1",
        "QUAYBRIDGE": "x",
        "QUAYBRIDGES__A": "x",
    }
    assert read_configuration(environ=environ).settings == {}


def test_a_byte_order_mark_is_no_problem() -> None:
    Path("quaybridge.toml").write_bytes(b'\xef\xbb\xbfbroker = "amqp://a:b@bom.example"')
    assert read_configuration(environ={}).broker()[0].host == "bom.example"


# What is written below [services.a], after its command, and what is said about it.
WRONG_IN_A_SERVICE = [
    ("bridges = 0", "services.a.bridges = 0: should be 1 … 1024, or a range"),
    ("bridges = -1", "services.a.bridges = -1: should be 1 … 1024, or a range"),
    ("bridges = 1_000_000", "services.a.bridges = 1000000: should be 1 … 1024, or a range"),
    ("bridges = 'four'", "services.a.bridges = 'four': should be 1 … 1024, or a range"),
    ("bridges = true", "services.a.bridges = True: should not be true or false (bridge subprocesses)"),
    ("bridges = {min = 3, max = 2}", "services.a.bridges = {'max': 2, 'min': 3}: should be 1 … 1024, or a range"),
    ("bridges = {min = true, max = 2}", "services.a.bridges = {'max': 2, 'min': True}: should be 1 … 1024, or a range"),
    ("bridges = '1-'", "services.a.bridges = '1-': should be 1 … 1024, or a range"),
    ("bridges = {}", "services.a.bridges = {}: should be 1 … 1024, or a range"),
    ("bridges = [[[[[[[[[]]]]]]]]]", "services.a.bridges = [[[[[[[...]]]]]]]: should be 1 … 1024, or a range"),
    ("run_timeout = 0", "services.a.run_timeout = 0: should be greater than 0"),
    ("run_timeout = nan", "services.a.run_timeout = nan: should be a finite number"),
    ("run_timeout = 43_201", "services.a.run_timeout = 43201: should be less than or equal to 43200"),
    ("frame_limit = 134_217_729", "services.a.frame_limit = 134217729: should be less than or equal to 134217728"),
    ("start = 'sometimes'", "services.a.start = 'sometimes': should be 'eager' or 'lazy'"),
    ("brigdes = 4", "unknown key services.a.brigdes: did you mean services.a.bridges?"),
    ("colour = 4", "unknown key services.a.colour: the keys here are command, bridges, start"),
    ("name = 'b'", "unknown key services.a.name: a service is named by its table, [services.NAME]"),
    ("debug.arguments = true", "unknown key services.a.debug.arguments: did you mean services.a.debug.args?"),
    ("debug.args = 3", "services.a.debug.args = 3: should be a valid boolean"),
    ("debug.max_bytes = true", "services.a.debug.max_bytes = True: should not be true or false"),
    ("protocol_fd = 3", "services.a.protocol_fd = 3: should be a valid boolean"),
    ("retry = 3", "services.a.retry = 3: should be a table: write [services.a.retry]"),
    ("retry.max_attempts = 0", "services.a.retry.max_attempts = 0: should be greater than or equal to 1"),
    ("retry.max_attempt = 2", "unknown key services.a.retry.max_attempt: did you mean services.a.retry.max_attempts?"),
    (
        "retry.after.bridge_crash = 2",
        "unknown key services.a.retry.after.bridge_crash: did you mean services.a.retry.after.bridge_crashed?",
    ),
    (
        "retry.after.bridge_timeout = -1",
        "services.a.retry.after.bridge_timeout = -1: should be greater than or equal to 0",
    ),
    ("limits = 3", "services.a.limits = 3: should be a table: write [services.a.limits]"),
    ("limits.memory = 1024", "services.a.limits.memory = 1024: should be greater than or equal to 16777216 (bytes of"),
    ("limits.memory = '1Q'", "services.a.limits.memory = '1Q': could not interpret byte unit: Q (bytes of"),
    ("limits.cpu_time = true", "services.a.limits.cpu_time = True: should not be true or false (seconds of CPU time"),
    ("limits.files = 99", "unknown key services.a.limits.files: did you mean services.a.limits.open_files?"),
    ("environment.A = 1", "services.a.environment.A = …: should be a valid string"),
]
WRONG_COMMANDS = [
    ("''", "services.a.command = []: should name a program to run"),
    ("[]", "services.a.command = []: should name a program to run"),
    ("['']", "services.a.command = ['']: the first word names the program to run and cannot be empty"),
    ("['a', 1]", "services.a.command = ['a', 1]: item 2 should be a valid string"),
    ('"a \\u0000"', "services.a.command = ['a', '\\x00']: a command cannot hold NUL characters"),
    ('"it\'s"', 'services.a.command = "it\'s": cannot be split into words: No closing quotation'),
    ("3", "services.a.command = 3: should be a valid tuple"),
]
WRONG_FILES = [
    ("service.a.command = 'a'", "unknown key service: did you mean services?"),
    ("[broker]\nurl = 'x'", "broker = {'url': 'x'}: should be a text in quotes"),
    ("broker = 3", "broker = 3: should be a text in quotes"),
    ("broker = 'http://u:hunter2@host'", "broker: http://***@host: the scheme of a broker URL must be amqp or amqps"),
    ("node = 'alpha'", "node = 'alpha': should be a table: write [node]"),
    ("node.name = 'a b'", "node.name = 'a b': should be 1 … 128 letters, digits"),
    ("node.drain_timout = 3", "unknown key node.drain_timout: did you mean node.drain_timeout?"),
    ("node.services = []", "unknown key node.services"),
    ("services = 3", "services = 3: should be a table: write [services]"),
    ("services.a = 3", "services.a = 3: should be a table: write [services.a]"),
    ("services.Analyse.command = 'a'", "services.Analyse.name = 'Analyse': 'Analyse' is no service name: use [a-z]"),
    ("services.'a\\nb'.x = 'a'", "unknown key services.'a\\\\nb'.x"),
    ("services.control.command = 'a'", "services.control.name = 'control': 'control' is reserved"),
    ("x = ", "not TOML: Invalid value"),
    ("x = 1\nx = 2", "not TOML: Cannot overwrite a value"),
    ("x = " + "[" * 100_000, "nested too deep"),
]


def use(text: str, environ: Mapping[str, str]) -> None:
    configuration = configured(("" if "services" in text else "services.a.command = 'a'\n") + text, environ)
    configuration.broker()
    configuration.node()


def refusal(text: str, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        use(text, environ or {})
    return str(caught.value)


def test_sizes_may_have_units() -> None:
    text = (
        "services.a.recycle.memory = '1.5 GiB'\nservices.a.recycle.memory_hard = '2GB'\nservices.a.frame_limit = 65536"
    )
    settings = configured("services.a.command = 'a'\n" + text, {}).node().services[0]
    assert settings.recycle.memory == 3 * 2**29
    assert settings.recycle.memory_hard == 2 * 10**9
    assert settings.frame_limit == 2**16


@pytest.mark.parametrize(("line", "told"), WRONG_IN_A_SERVICE)
def test_what_is_wrong_in_a_service(line: str, told: str) -> None:
    assert refusal(f"[services.a]\ncommand = 'a'\n{line}").startswith(f"quaybridge.toml: {told}")


@pytest.mark.parametrize(("command", "told"), WRONG_COMMANDS)
def test_what_is_no_command(command: str, told: str) -> None:
    assert refusal(f"[services.a]\ncommand = {command}").startswith(f"quaybridge.toml: {told}")


@pytest.mark.parametrize(("text", "told"), WRONG_FILES, ids=[text[:30] for text, _ in WRONG_FILES])
def test_what_is_wrong_in_a_file(text: str, told: str) -> None:
    told_here = refusal(text)
    assert told_here.startswith("quaybridge.toml: ")
    assert told in told_here
    assert "\n" not in told_here
    assert "hunter2" not in told_here


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("QUAYBRIDGE_BROKR", "x", "unknown variable: did you mean QUAYBRIDGE_BROKER?"),
        ("QUAYBRIDGE_SERVICE__A__BRIDGES", "x", "unknown key service: did you mean services?"),
        ("QUAYBRIDGE_SERVICES__A", "x", "services.a is a table: add __ and one of its keys"),
        ("QUAYBRIDGE_SERVICES__A__RETRY", "x", "services.a.retry is a table: add __ and one of its keys"),
        (
            "QUAYBRIDGE_SERVICES__A__BRIDGES__X",
            "x",
            "unknown key services.a.bridges.x: services.a.bridges holds no keys",
        ),
        ("QUAYBRIDGE_SERVICES__A__BRIDGES", "0", "services.a.bridges = '0': should be 1 … 1024, or a range"),
        ("QUAYBRIDGE_SERVICES__A__COMMAND", "it's", 'services.a.command = "it\'s": cannot be split into words'),
        ("QUAYBRIDGE_NODE", "a b", "node.name = 'a b': should be 1 … 128 letters, digits"),
        ("QUAYBRIDGE_BROKER", "amqp://u:hunter/2@h@i", "broker: amqp://***@i: characters such as @ / :"),
        ("QUAYBRIDGE_BROKER", "amqp://10.1.2.3/", "broker: amqp://10.1.2.3/: user guest is for this machine only"),
    ],
)
def test_what_is_wrong_in_a_variable(variable: str, value: str, told: str) -> None:
    told_here = refusal("", {variable: value})
    assert told_here.startswith(f"{variable}: {told}")
    assert "hunter" not in told_here


def test_what_is_wrong_in_a_flag() -> None:
    with pytest.raises(SettingsError, match=r"^--bridges: services\.analyse\.bridges = 0: should be 1 "):
        configured(WHOLE, {}, {("services", "analyse", "bridges"): ("--bridges", 0)}).node()


def test_every_problem_of_a_file_is_told_in_a_line_of_its_own() -> None:
    told = refusal("[services.a]\nbridges = 0\n[services.b]\ncommand = 'b'\nstart = 3\n[node]\ndrain_timeout = 0")
    assert sorted(line.partition(" = ")[0] for line in told.splitlines()) == [
        "quaybridge.toml: node.drain_timeout",
        "quaybridge.toml: services.a.bridges",
        "quaybridge.toml: services.b.start",
        "services.a.command is not set (the bridge's program and its arguments; no shell is involved): "
        "write it into quaybridge.toml, or give --bridge",
    ]


def test_files_that_cannot_be_read(directory: Path) -> None:
    (directory / "latin-1.toml").write_bytes(b"# caf\xe9")
    (directory / "huge.toml").write_bytes(b"#" * (FILE_LIMIT + 1))
    (directory / "empty.toml").write_bytes(b"")
    for name, told in (
        ("latin-1.toml", "byte 5 is not UTF-8: save the file as UTF-8"),
        ("huge.toml", "more than 1024 KiB is no configuration"),
        ("missing.toml", "cannot be read: No such file or directory: give --config a readable TOML file"),
        (".", "cannot be read: Is a directory"),
        ("a\0b", "cannot be read: embedded null byte"),
    ):
        with pytest.raises(SettingsError) as caught:
            read_configuration(Path(name), environ={})
        assert told in str(caught.value)
    with pytest.raises(SettingsError, match="no service is configured"):
        read_configuration(directory / "empty.toml", environ={}).node()


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(SettingsError, match="more than 1024 KiB is no configuration"):
        read_configuration(Path("/dev/zero"), environ={})


def test_a_store_is_a_directory_that_is_there(tmp_path: Path) -> None:
    assert read_configuration(environ={}).store() is None
    found = read_configuration(environ={"QUAYBRIDGE_STORE": str(tmp_path)}).store()
    assert repr(found) == f"<DirectoryStore {tmp_path}>"
    missing = read_configuration(environ={}, flags=given({STORE: ("--store", str(tmp_path / "missing"))}))
    with pytest.raises(SettingsError, match=r"--store: store: '.*/missing' is no directory: make it"):
        missing.store()
