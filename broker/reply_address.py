"""Which direct reply addresses RabbitMQ before 4.3 can read.

    amq.rabbitmq.reply-to.<base64 of the requester's process, as Erlang writes a pid>.<key>

Up to 4.2 a publish to an address whose first part is not that ends the publisher's connection (541 INTERNAL_ERROR;
seen on 4.0.5), and anybody can name such an address in a request. Versions from 4.3 on confirm the publish and drop
it, and may give out addresses of another form. An address without a key is no trouble to any.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode

from bridge_protocol.envelope import DIRECT_REPLY_TO

PREFIX = f"{DIRECT_REPLY_TO}."

_READS_ANY = (4, 3)
_VERSION = re.compile(r"RabbitMQ (\d+)\.(\d+)")

# erlang.org/doc/apps/erts/erl_ext_dist: version, then NEW_PID_EXT or PID_EXT, whose first field is the node's name:
# an atom, with the size of its text in two bytes or in one.
_TERM = 131
_PIDS = {88: 12, 103: 9}  # and how many bytes follow the name
_ATOMS = {100: 2, 118: 2, 115: 1, 119: 1}


def reads_any_address(server: str) -> bool:
    """Whether this broker (product and version) survives every address. One that is not known is trusted to."""
    found = _VERSION.match(server)
    return found is None or (int(found[1]), int(found[2])) >= _READS_ANY


def readable(address: str) -> bool:
    """Whether a RabbitMQ that does not read every address can read this one."""
    process, dot, _ = address.removeprefix(PREFIX).partition(".")
    if not dot:
        return True
    try:
        term = b64decode(process, validate=True)
    except (binascii.Error, ValueError):
        return False
    if len(term) < 4 or term[0] != _TERM or term[1] not in _PIDS or term[2] not in _ATOMS:
        return False
    width = _ATOMS[term[2]]
    name = int.from_bytes(term[3 : 3 + width], "big")
    return len(term) >= 3 + width + name + _PIDS[term[1]]
