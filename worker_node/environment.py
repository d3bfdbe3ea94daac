"""The environment a bridge gets: an allow-list, never what the node itself was told."""

from __future__ import annotations

import re
from collections.abc import Mapping

# No broker URL, password or token gets into a bridge unless its service's settings name it.
ALLOWED = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR"})
ALLOWED_PREFIXES = ("LC_", "PYTHON")
# Anyone may name a variable so that it begins like those: these are secrets nevertheless.
_SECRET_NAME = re.compile(r"PASS|TOKEN|SECRET|CREDENTIAL|_KEY|_UR[IL]")
_SECRET_VALUE = re.compile(r"amqps?://|://[^/\s]*:[^/\s]*@")
# Tells a bridge that a node started it: the SDK then claims stdin and stdout before anything else can.
MARK = "QUAYBRIDGE_BRIDGE"
# Tells a bridge whose service has `protocol_fd` its two descriptors, "7,8": requests are read from the first, replies
# written to the second.
PROTOCOL_FDS = "QUAYBRIDGE_PROTOCOL_FDS"
# The id of the node, where the kernel ends with it the process that it starts, so that the SDK need not ask for that. A
# process between the two, which then is the one that ends, is another parent.
ENDS_WITH = "QUAYBRIDGE_ENDS_WITH"
# Tells the bridge, and whatever it starts, from all others: see run_id.py.
RUN = "QUAYBRIDGE_RUN"


def bridge_environment(
    inherited: Mapping[str, str], named: Mapping[str, str], slot: int, run: str, *, ends_with: int | None = None
) -> dict[str, str]:
    """What is allowed of `inherited`, and what the service names, with `{slot}` replaced by the slot's number.

    `run`: the bridge's run id. `ends_with`: this process's id, where the kernel ends the bridge with it.
    """
    environment = {name: value for name, value in inherited.items() if _allowed(name, value)}
    environment |= {name: value.replace("{slot}", str(slot)) for name, value in named.items()}
    environment[MARK] = "1"
    environment[RUN] = run
    if ends_with is not None:
        environment[ENDS_WITH] = str(ends_with)
    return environment


def _allowed(name: str, value: str) -> bool:
    if _SECRET_VALUE.search(value):
        return False
    return name in ALLOWED or (name.startswith(ALLOWED_PREFIXES) and not _SECRET_NAME.search(name))
