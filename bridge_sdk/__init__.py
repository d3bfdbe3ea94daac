"""What the author of a Python bridge imports. A bridge in ten lines:

    from bridge_sdk import Bridge

    bridge = Bridge()

    @bridge.command
    def shout(text: str, times: int = 1) -> str:
        return text.upper() * times

    bridge.serve()

A node marks the processes it starts as bridges with QUAYBRIDGE_BRIDGE=1 in their environment. In such a process
importing this package claims standard input and output for frames at once, so that whatever is imported next may
print; anywhere else importing it changes nothing, and `serve` claims them. (`python -m bridge_sdk module` claims
them in any case before it imports the module.)
"""

from bridge_sdk import stdio

# First of all, before anything else is imported: see above. The one place that reads the environment at import.
stdio.claim_if_marked()

from bridge_sdk.bridge import Bridge, RequestContext  # noqa: E402  (after the claim)
from bridge_sdk.errors import ApplicationError, Cancelled  # noqa: E402  (after the claim)

__all__ = ["ApplicationError", "Bridge", "Cancelled", "RequestContext"]
