"""QUAYBRIDGE_FAILPOINT, for tests only: what it arms in this process. See `broker.failpoints`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quaybridge.settings import SettingsError

if TYPE_CHECKING:
    from broker.failpoints import Failpoints

VARIABLE = "QUAYBRIDGE_FAILPOINT"


def armed_failpoints(environ: Mapping[str, str]) -> Failpoints | None:
    """What the variable arms, or None where it is not set. Raises SettingsError."""
    text = environ.get(VARIABLE)
    if not text:
        return None
    from broker.failpoints import Failpoints

    try:
        return Failpoints.parse(text)
    except ValueError as error:
        raise SettingsError(f"{VARIABLE}: {error}") from None
