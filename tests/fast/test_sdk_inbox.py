"""The inbox: bytes in, requests out, cancels settled; byte by byte too."""

from __future__ import annotations

from bridge_protocol.errors import FrameError, FrameKind
from bridge_protocol.frames import LARGE, encode_frame
from bridge_protocol.messages import CANCEL, Request, encode_request
from bridge_sdk.inbox import MAX_REMEMBERED, Inbox


def frame(request_id: int, command: str = "echo", **args: object) -> bytes:
    return encode_frame(encode_request(Request(id=request_id, command=command, args=args)))


def waiting(inbox: Inbox) -> list[int | FrameKind]:
    """The ids of what waits, or what was wrong."""
    found: list[int | FrameKind] = []
    while (item := inbox.next()) is not None:
        found.append(item.kind if isinstance(item, FrameError) else item.id)
    return found


def test_requests_come_out_in_order_however_they_were_cut() -> None:
    data = frame(1) + frame(2, text="x" * 300) + frame(3)
    whole, bytewise = Inbox(), Inbox()
    assert whole.receive(data) == []
    for position in range(len(data)):
        assert bytewise.receive(data[position : position + 1]) == []
    assert waiting(whole) == waiting(bytewise) == [1, 2, 3]


def test_the_rest_of_a_large_request_is_read_to_where_it_belongs() -> None:
    data = frame(1, text="x" * 2 * LARGE) + frame(2)
    inbox = Inbox()
    assert inbox.room is None
    assert inbox.receive(data[:100]) == []
    end = 100
    while (room := inbox.room) is not None:
        room[:1000] = data[end : end + 1000]
        del room
        inbox.filled(1000)
        assert inbox.receive(b"") == []
        end += 1000
    assert waiting(inbox) == []
    assert inbox.receive(data[end:]) == []
    assert waiting(inbox) == [1, 2]


def test_a_cancel_is_handed_out_and_is_no_request() -> None:
    inbox = Inbox()
    assert inbox.receive(frame(1) + frame(9, CANCEL, id=1) + frame(10, CANCEL, id=77)) == [1, 77]
    assert waiting(inbox) == [1]


def test_a_cancel_without_a_usable_id_is_ignored() -> None:
    inbox = Inbox()
    assert inbox.receive(frame(9, CANCEL) + frame(9, CANCEL, id="1") + frame(9, CANCEL, id=True)) == []
    assert waiting(inbox) == []


def test_a_waiting_request_is_withdrawn_and_the_others_stay() -> None:
    inbox = Inbox()
    inbox.receive(frame(1) + frame(2) + frame(3))
    assert inbox.withdraw(2)
    assert waiting(inbox) == [1, 3]
    assert not inbox.was_cancelled(2)


def test_what_is_asked_back_is_given_back_if_it_waits_and_never_remembered() -> None:
    inbox = Inbox()
    asked_back = frame(9, CANCEL, id=2, unbegun=True) + frame(10, CANCEL, id=77, unbegun=True)
    assert inbox.receive(frame(1) + frame(2) + frame(3) + asked_back) == []
    assert inbox.given_back() == [2]
    assert inbox.given_back() == []
    assert waiting(inbox) == [1, 3]
    assert not inbox.was_cancelled(77)


def test_a_cancel_that_comes_first_is_remembered_once() -> None:
    inbox = Inbox()
    assert not inbox.withdraw(5)
    assert repr(inbox) == "<Inbox 0 waiting, 1 cancels remembered>"
    assert not inbox.was_cancelled(4)
    assert inbox.was_cancelled(5)
    assert not inbox.was_cancelled(5)


def test_what_is_remembered_is_bounded_and_the_oldest_goes() -> None:
    inbox = Inbox()
    for request_id in range(1, MAX_REMEMBERED + 2):
        inbox.withdraw(request_id)
    assert not inbox.was_cancelled(1)
    assert inbox.was_cancelled(2)
    assert inbox.was_cancelled(MAX_REMEMBERED + 1)


def test_an_unreadable_request_takes_its_place_in_the_line() -> None:
    inbox = Inbox()
    inbox.receive(frame(1) + encode_frame(b"{nonsense}") + frame(2))
    assert waiting(inbox) == [1, FrameKind.BAD_JSON, 2]
    assert inbox.broken is None


def test_after_bytes_that_are_no_frame_nothing_more_is_read() -> None:
    inbox = Inbox()
    inbox.receive(frame(1) + b"\xff\xff\xff\xff" + frame(2))
    inbox.receive(frame(3))
    assert waiting(inbox) == [1, FrameKind.FRAME_TOO_LARGE]
    assert inbox.broken is not None
