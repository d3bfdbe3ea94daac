"""How hard hypothesis looks: a little by default, a hundred times more with QUAYBRIDGE_SOAK=1."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = 60

# No deadline: on a loaded machine a slow example says nothing about the code.
settings.register_profile(
    "default", max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("soak", settings.get_profile("default"), max_examples=100 * EXAMPLES)
settings.load_profile("soak" if os.environ.get("QUAYBRIDGE_SOAK") == "1" else "default")
