"""An SDK bridge that talks where it should not: on stdout, from Python, from C, from a child, before and after."""

import ctypes
import os
import subprocess
import sys

print("Loading model weights...")
ctypes.CDLL(None).puts(b"a C library says hello")
sys.stdout.flush()

from bridge_sdk import Bridge  # noqa: E402  (what it prints before that is the point)

bridge = Bridge()


@bridge.command
def chat() -> dict[str, object]:
    """Print in every way there is; what a child inherits."""
    print("from Python")
    os.write(1, b"from the descriptor\n")
    libc = ctypes.CDLL(None)
    libc.puts(b"from C")
    libc.fflush(None)
    child = subprocess.run(["ls", "/proc/self/fd"], stdout=subprocess.PIPE, text=True, check=True, close_fds=False)
    subprocess.run(["echo", "from a child"], check=True)
    return {
        "descriptors": child.stdout.split(),
        "variables": sorted(name for name in os.environ if name.startswith("QUAYBRIDGE")),
        "stdin": os.read(0, 10).decode(),
    }


bridge.serve()
