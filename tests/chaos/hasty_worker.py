"""`quaybridge` whose worker is less patient: after it has connected it leaves others' sessions to them for seconds."""

from __future__ import annotations

from quaybridge.__main__ import main
from worker_node import partitions

if __name__ == "__main__":
    partitions.HAND_BACK = 3.0
    partitions.HAND_BACK_AGAIN = 6.0
    main()
