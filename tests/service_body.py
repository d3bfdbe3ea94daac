"""One test body for all adapters of quaybridge.testing."""

from __future__ import annotations

import os
import time

import pytest

from quaybridge import ApplicationError, BridgeCrashed, BridgeTimeout, Progress, ProtocolViolation, SessionLost
from quaybridge.testing import Service

SETTINGS = {"run_timeout": 0.5, "sessions": {"enabled": True}}


def meets_every_failure(service: Service) -> None:
    """The same calls end in the same ways, whatever the service runs on."""
    service.fail("crash", request=2)
    service.fail("hang", request=3)
    service.fail("garbage", request=4)
    service.fail("error", request=5, message="no luck")
    service.fail("slow", request=6, seconds=0.2)
    own = service.adapter == "mock"
    assert (service.call("pid").result == os.getpid()) is own
    with pytest.raises(BridgeCrashed) as crashed:
        service.call("pid")
    assert crashed.value.details["signal"] == "SIGKILL"
    with pytest.raises(BridgeTimeout):
        service.call("pid")
    with pytest.raises(ProtocolViolation, match="as scripted: this is no frame"):
        service.call("pid")
    with pytest.raises(ApplicationError, match="no luck"):
        service.call("pid")
    begun = time.monotonic()
    assert service.submit("later", {"value": [1, "é"]}).result().result == [1, "é"]
    assert time.monotonic() - begun >= 0.2
    session = service.session("user-7")
    session.call("note", {"text": "a"})
    assert session.call("note", {"text": "b"}).result == ["a", "b"]
    service.fail("crash", request=9)
    with pytest.raises(BridgeCrashed):
        session.call("note", {"text": "c"})
    with pytest.raises(SessionLost):
        session.call("note", {"text": "d"})
    assert session.call("note", {"text": "e"}).result == ["e"]
    with pytest.raises(ApplicationError, match="unknown argument"):
        service.call("pid", {"extra": 1})
    with pytest.raises(ApplicationError, match="this bridge has"):
        service.call("nothing")
    told: list[Progress] = []
    stream = service.producer.stream(service.name, "pages", {"count": 300}, progress=told.append)
    assert list(stream) == list(range(300))  # more than may be on their way at once
    assert stream.reply is not None
    assert stream.reply.result == "the end"
    assert told[0].total == 300
    assert list(service.producer.stream(service.name, "later_pages", {"count": 3})) == [0, 1, 2]
    assert service.script.requests == 14
