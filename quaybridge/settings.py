"""Configuration: a TOML file, then the environment, then flags. A later source wins, key by key.

The file is the one named by `--config`, else by QUAYBRIDGE_CONFIG, else `quaybridge.toml` in the working
directory if there is one. Its shape, and how the environment spells the same keys:

    broker = "amqp://user:secret@host/vhost"        QUAYBRIDGE_BROKER
    health_file = "/run/quaybridge"                 QUAYBRIDGE_HEALTH_FILE
    store = "/srv/share/quaybridge"                 QUAYBRIDGE_STORE

    [node]                                          QUAYBRIDGE_NODE: its name
    drain_timeout = 60                              QUAYBRIDGE_NODE__DRAIN_TIMEOUT

    [services.analyse]
    command = "python -m examples.analyse"          QUAYBRIDGE_SERVICES__ANALYSE__COMMAND
    bridges = 4                                     QUAYBRIDGE_SERVICES__ANALYSE__BRIDGES
    retry.max_attempts = 5                          QUAYBRIDGE_SERVICES__ANALYSE__RETRY__MAX_ATTEMPTS
    environment.OMP_NUM_THREADS = "1"               QUAYBRIDGE_SERVICES__ANALYSE__ENVIRONMENT__OMP_NUM_THREADS

The keys, their units and defaults are those of `worker_node.settings`. A command is a list, or a text that is
split into words as a shell would, without running one. In a variable's name the service `my-service` is
MY_SERVICE. An empty variable counts as not set.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from bridge_protocol.errors import QuaybridgeError
from broker.address import Address, parse_addresses
from broker.store import DirectoryStore
from worker_node.settings import NodeSettings, ServiceSettings

DEFAULT_BROKER = "amqp://guest:guest@127.0.0.1:5672/"  # RabbitMQ as it comes: its guest may connect from this host only
DEFAULT_FILE = "quaybridge.toml"
FILE_LIMIT = 1024 * 1024  # bytes

Key = tuple[str, ...]

BROKER: Key = ("broker",)
HEALTH_FILE: Key = ("health_file",)
STORE: Key = ("store",)
NODE_NAME: Key = ("node", "name")

_VARIABLES: dict[str, Key] = {"BROKER": BROKER, "HEALTH_FILE": HEALTH_FILE, "STORE": STORE, "NODE": NODE_NAME}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_CREDENTIALS = re.compile(r"//.*@", re.DOTALL)


class SettingsError(QuaybridgeError):
    """Raised when the configuration cannot be used: one line a problem, with the key, the value and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value, and where it was given: a file, a variable or an option."""

    value: object
    origin: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """What all sources together say. `settings` holds known keys only, and tables are spelt out to their leaves."""

    settings: Mapping[Key, Setting]

    def broker(self) -> tuple[Address, ...]:
        """Where the broker is, to be tried in turn; the default is RabbitMQ on this host. Raises SettingsError."""
        text = self._text(BROKER) or DEFAULT_BROKER
        try:
            return parse_addresses(text)
        except ValueError as error:  # says what to write instead, and shows no password
            raise SettingsError(f"{self.settings[BROKER].origin}: {_spelt(BROKER)}: {error}") from None

    def health_file(self) -> Path | None:
        """The file a healthy node touches, if one is wanted."""
        text = self._text(HEALTH_FILE)
        return Path(text) if text else None

    def store(self) -> DirectoryStore | None:
        """Where large payloads wait, if anywhere. Raises SettingsError."""
        text = self._text(STORE)
        if not text:
            return None
        try:
            return DirectoryStore(text)
        except ValueError as error:
            raise SettingsError(f"{self.settings[STORE].origin}: {_spelt(STORE)}: {error}") from None

    def node(self, only: str | None = None) -> NodeSettings:
        """The node's settings; with `only`, for that service alone. Raises SettingsError."""
        tree = self._tree()
        services = tree.get("services", {})
        assert isinstance(services, dict)
        if only is not None:
            services = {name: table for name, table in services.items() if name == only}
        if not services:
            raise SettingsError(
                "no service is configured: give --service NAME --bridge COMMAND, "
                f"or write a [services.NAME] table with a command into {DEFAULT_FILE}"
            )
        node = tree.get("node", {})
        assert isinstance(node, dict)
        try:
            return NodeSettings.model_validate({**node, "services": list(services.values())})
        except ValidationError as error:
            problems = [
                self._problem(list(services), item["loc"], item["msg"])
                for item in error.errors()
                if item["loc"] != ("services",)  # pydantic counts only the services without a problem
            ]
            raise SettingsError("\n".join(problems)) from None

    def _text(self, key: Key) -> str | None:
        setting = self.settings.get(key)
        if setting is None:
            return None
        if not isinstance(setting.value, str):
            raise SettingsError(_line(key, setting, "should be a text in quotes"))
        return setting.value

    def _tree(self) -> dict[str, object]:
        """All settings as nested tables."""
        tree: dict[str, object] = {}
        for (*tables, name), setting in self.settings.items():
            table = tree
            for below in tables:
                inner = table.setdefault(below, {})
                assert isinstance(inner, dict)
                table = inner
            table[name] = setting.value
        return tree

    def _problem(self, services: list[str], location: tuple[int | str, ...], message: str) -> str:
        """One line about what pydantic found at `location`, in the words of the configuration."""
        match location:
            case ("services", int(index), *rest):
                key = ("services", services[index], *map(str, rest))
            case _:
                key = ("node", *map(str, location))
        problem = message.removeprefix("Value error, ").removeprefix("Input ")
        problem = problem[0].lower() + problem[1:]
        if key[:-1] in self.settings:  # a word of a command
            key, problem = key[:-1], f"item {int(key[-1]) + 1} {problem}"
        field = (_fields(key[:-1]) or {}).get(key[-1])
        meaning = f" ({field.description})" if field is not None else ""
        if key not in self.settings:
            option = "--bridge" if key[2:] == ("command",) else _variable(key)
            return f"{_spelt(key)} is not set{meaning}: write it into {DEFAULT_FILE}, or give {option}"
        return _line(key, self.settings[key], problem + meaning)


def read_configuration(
    file: Path | None = None,
    *,
    environ: Mapping[str, str],
    flags: Mapping[Key, Setting] | None = None,
) -> Configuration:
    """Everything that is configured. Raises SettingsError for a source that cannot be read or an unknown key.

    `file` is what `--config` names; `flags` are the options of a command line.
    """
    flags = {key: _split(key, setting) for key, setting in (flags or {}).items()}
    settings: dict[Key, Setting] = {}
    path = _file_to_read(file, environ)
    if path is not None:
        settings.update(_leaves((), _read_file(path), str(path)))
    services = [key[1] for key in (*settings, *flags) if key[0] == "services"]
    settings.update(_read_environment(environ, services))
    settings.update(flags)
    return Configuration(settings)


def given(options: Mapping[Key, tuple[str, object]]) -> dict[Key, Setting]:
    """The flags, for `read_configuration`, that were given: of each option by key its name, and its value or None."""
    return {key: Setting(value=value, origin=name) for key, (name, value) in options.items() if value is not None}


def _file_to_read(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    if file is not None:
        return file
    if named := environ.get("QUAYBRIDGE_CONFIG"):
        return Path(named)
    default = Path(DEFAULT_FILE)
    return default if default.exists() else None


def _read_file(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as source:
            content = source.read(FILE_LIMIT + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"{str(path)!r}: cannot be read: {reason}: give --config a readable TOML file") from None
    if len(content) > FILE_LIMIT:
        raise SettingsError(f"{path}: more than {FILE_LIMIT // 1024} KiB is no configuration: is it the right file?")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: byte {error.start} is not UTF-8: save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path}: not a configuration: nested too deep") from None


def _leaves(table: Key, value: object, origin: str) -> Iterator[tuple[Key, Setting]]:
    """The settings below `table`, which is known to be one, with a mark (its name) for each service."""
    if not isinstance(value, dict):
        header = f"[{_spelt(table)}]"
        raise SettingsError(_line(table, Setting(value=value, origin=origin), f"should be a table: write {header}"))
    if len(table) == 2 and table[0] == "services":
        yield (*table, "name"), Setting(value=table[1], origin=origin)
    for name, below in value.items():
        key = (*table, name)
        setting = Setting(value=below, origin=origin)
        if _is_table(key):
            yield from _leaves(key, below, origin)
        else:
            yield key, _checked(key, setting)


def _read_environment(environ: Mapping[str, str], services: Iterable[str]) -> Iterator[tuple[Key, Setting]]:
    written = {name.replace("-", "_"): name for name in services}
    for variable, text in environ.items():
        key = _key_of(variable, written) if text else None
        if key is None:
            continue
        setting = Setting(value=text, origin=variable)
        if _is_table(key):
            raise SettingsError(f"{variable}: {_spelt(key)} is a table: add __ and one of its keys")
        if key[0] == "services":
            yield (*key[:2], "name"), Setting(value=key[1], origin=variable)
        yield key, _checked(key, setting)


def _key_of(variable: str, services: Mapping[str, str]) -> Key | None:
    """The key that `variable` stands for, or None if it is not for us. `services` are those known, by spelling."""
    prefix, _, rest = variable.partition("_")
    if prefix != "QUAYBRIDGE":
        return None
    if "__" not in rest:
        # Unknown ones are left alone: Kubernetes sets QUAYBRIDGE_PORT for a service that is named quaybridge.
        close = get_close_matches(rest, [*_VARIABLES, "CONFIG"], 1, cutoff=0.8)
        if close and close != [rest]:
            raise SettingsError(f"{variable}: unknown variable: did you mean QUAYBRIDGE_{close[0]}?")
        return _VARIABLES.get(rest)
    parts = rest.split("__")
    key = [part.lower() for part in parts]
    if key[0] == "services":
        key[1] = services.get(key[1], key[1])
        if key[2:3] == ["environment"] and len(key) > 3:  # a bridge's own variable keeps its letters
            key[3:] = ["__".join(parts[3:])]
    return tuple(key)


def _fields(table: Key) -> Mapping[str, FieldInfo | None] | None:
    """The keys that `table` may hold, with what is known about them; None if it is no table of known keys."""
    match table:
        case ():
            return dict.fromkeys(("broker", "health_file", "store", "node", "services"))
        case ("node", *below):
            return _fields_below(NodeSettings, below, without="services")
        case ("services", _, *below):
            return _fields_below(ServiceSettings, below, without="name")
    return None


def _fields_below(model: type[BaseModel], path: list[str], *, without: str) -> Mapping[str, FieldInfo | None] | None:
    """The fields of the model that `path` leads to from `model`; None if it leads to something else."""
    fields = {name: field for name, field in model.model_fields.items() if name != without}
    for name in path:
        below = fields[name].annotation if name in fields else None
        if not (isinstance(below, type) and issubclass(below, BaseModel)):
            return None
        fields = dict(below.model_fields)
    return dict(fields)


def _is_open(table: Key) -> bool:
    """Whether the keys of `table` are the user's own."""
    return table == ("services",) or (len(table) == 3 and table[0] == "services" and table[2] == "environment")


def _is_table(key: Key) -> bool:
    return _is_open(key) or _fields(key) is not None


def _checked(key: Key, setting: Setting) -> Setting:
    """`setting` if its key is known. Raises SettingsError."""
    field = None
    for depth, name in enumerate(key):
        table = key[:depth]
        if _is_open(table):
            continue
        fields = _fields(table) or {}
        if name not in fields:
            unknown = _spelt((*table, name))
            raise SettingsError(f"{setting.origin}: unknown key {unknown}: {_suggestion(table, name, fields)}")
        field = fields[name]
    # pydantic would read true as the number 1.
    if isinstance(setting.value, bool) and field is not None and field.annotation is not bool:
        raise SettingsError(_line(key, setting, f"should not be true or false ({field.description})"))
    return _split(key, setting)


def _split(key: Key, setting: Setting) -> Setting:
    """`setting`, with a command that is one text split into words."""
    if key[2:] != ("command",) or not isinstance(setting.value, str):
        return setting
    try:
        return Setting(value=shlex.split(setting.value), origin=setting.origin)
    except ValueError as error:
        raise SettingsError(_line(key, setting, f"cannot be split into words: {error}")) from None


def _suggestion(table: Key, name: str, known: Iterable[str]) -> str:
    if len(table) == 2 and name == "name":
        return "a service is named by its table, [services.NAME]"
    if close := get_close_matches(name, known, 1):
        return f"did you mean {_spelt((*table, close[0]))}?"
    if not known:
        return f"{_spelt(table)} holds no keys"
    return f"the keys here are {', '.join(known)}"


def _line(key: Key, setting: Setting, problem: str) -> str:
    return f"{setting.origin}: {_spelt(key)} = {_shown(key, setting.value)}: {problem}"


def _shown(key: Key, value: object) -> str:
    """`value` for a message: short, on one line, without a password."""
    if "environment" in key:
        return "…"  # what is given to a bridge may be a secret
    if isinstance(value, str):
        value = _CREDENTIALS.sub("//…@", value)
    brief = Repr()
    brief.maxstring = brief.maxother = 80
    return brief.repr(value)


def _spelt(key: Key) -> str:
    return ".".join(part if _BARE_KEY.fullmatch(part) else repr(part) for part in key)


def _variable(key: Key) -> str:
    return "QUAYBRIDGE_" + "__".join(key).upper().replace("-", "_")
