"""The alarm: the moment by which somebody must look at the time again."""

from __future__ import annotations

import math


class Alarm:
    """`at`: that moment; infinite: none. Whoever looks sets it back to that first."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = math.inf

    def __repr__(self) -> str:
        return f"<Alarm at {self.at}>"

    def watch(self, moment: float) -> None:
        """Something is due at `moment`."""
        if moment < self.at:
            self.at = moment
