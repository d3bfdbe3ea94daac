"""Whether the long forms of tests run: `make soak` asks for them, or QUAYBRIDGE_SOAK=1."""

import os

SOAK = os.environ.get("QUAYBRIDGE_SOAK") == "1"
