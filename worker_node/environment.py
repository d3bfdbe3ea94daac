"""The environment a bridge gets: an allow-list, never what the node itself was told."""

from __future__ import annotations

from collections.abc import Mapping

# No broker URL, password or token gets into a bridge unless its service's settings name it.
ALLOWED = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL", "VIRTUAL_ENV"})
ALLOWED_PREFIXES = ("LC_", "PYTHON")
# Tells a bridge that a node started it: the SDK then claims stdin and stdout before anything else can.
MARK = "QUAYBRIDGE_BRIDGE"
# Tells a bridge whose service has `protocol_fd` its two descriptors, "7,8": requests are read from the first, replies
# written to the second.
PROTOCOL_FDS = "QUAYBRIDGE_PROTOCOL_FDS"


def bridge_environment(inherited: Mapping[str, str], named: Mapping[str, str], slot: int) -> dict[str, str]:
    """What is allowed of `inherited`, and what the service names, with `{slot}` replaced by the slot's number."""
    environment = {
        name: value for name, value in inherited.items() if name in ALLOWED or name.startswith(ALLOWED_PREFIXES)
    }
    environment |= {name: value.replace("{slot}", str(slot)) for name, value in named.items()}
    environment[MARK] = "1"
    return environment
