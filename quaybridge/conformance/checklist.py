"""The checklist: every check in its order, and how one bridge is taken through it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from quaybridge.conformance import checks
from quaybridge.conformance.bench import Bench
from quaybridge.conformance.report import CannotStart, NotClaimed, Report, Row, Status, Unmet

Check = Callable[[Bench], Awaitable[str]]

# The conversation first; then what may break the subject; then the ways it ends.
CONVERSATION: Final[Mapping[str, tuple[str, Check]]] = {
    "ids": ("ids up to 2^53−1", checks.ids),
    "values": ("awkward values", checks.values),
    "unicode": ("Unicode", checks.unicode),
    "long_integers": ("integers past 2^53", checks.long_integers),
    "any_json": ("any writer's JSON", checks.any_json),
    "large": ("1 MiB both ways", checks.large),
    "split_writes": ("split writes", checks.split_writes),
    "concurrent": ("concurrent requests", checks.concurrent),
    "stream": ("stream", checks.stream),
    "cancel": ("cancel", checks.cancel),
    "ahead": ("requests ahead", checks.ahead),
    "binary": ("bytes", checks.binary),
    "stderr_flood": ("stderr flood", checks.stderr_flood),
    "unknown_command": ("unknown command", checks.unknown_command),
    "malformed_args": ("malformed args", checks.malformed_args),
    "unreadable": ("unreadable frame", checks.unreadable),
    "end_of_input": ("end of stdin", checks.end_of_input),
    "end_of_input_busy": ("end of stdin at work", checks.end_of_input_busy),
    "shutdown": ("shutdown", checks.shutdown),
    "sigterm": ("SIGTERM", checks.sigterm),
}
# What is told by all of it together.
SUMMARY: Final[Mapping[str, tuple[str, Check]]] = {
    "one_reply": ("one reply each", checks.one_reply),
    "clean_stdout": ("frames alone on stdout", checks.clean_stdout),
    "quiet_stderr": ("quiet stderr", checks.quiet_stderr),
    "no_orphans": ("no orphans", checks.no_orphans),
}


async def check_bridge(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    commands: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    on_check: Callable[[str], None] = lambda title: None,
) -> Report:
    """Take the bridge that `command` starts through the checklist.

    `environment`: variables for it beyond those a node passes on. `commands`: which of its commands plays one of
    bench.ROLES, where that has another name. `timeout`: seconds each reply, and each end, may take. `on_check` is
    told the title of each check as it begins.
    """
    bench = Bench(command, environment=environment or {}, commands=commands or {}, timeout=timeout)
    rows: list[Row] = []
    try:
        on_check("handshake")
        rows.append(await _greet(bench))
        for checklist in (CONVERSATION, SUMMARY):
            if checklist is SUMMARY:
                await _settle(bench)
            for name, (title, check) in checklist.items():
                if checklist is CONVERSATION and rows[0].status is not Status.PASSED:
                    rows.append(Row(check=name, title=title, status=Status.NOT_RUN, detail="no handshake"))
                    continue
                on_check(title)
                rows.append(await _made(bench, name, title, check))
    except CannotStart as problem:
        return Report(command=command, problem=str(problem))
    finally:
        await bench.close()
    return Report(command=command, rows=rows)


async def _greet(bench: Bench) -> Row:
    """The handshake's row. Raises CannotStart where there is nobody who could be checked."""
    row = await _made(bench, "handshake", "handshake", checks.handshake)
    subject = bench.subjects[-1]
    if row.status is Status.PASSED or subject.noise is not None:
        return row
    if subject.exit_code is not None:
        raise CannotStart(f"it ended before it answered its handshake: {subject.how_it_ended}")
    if subject.silent:
        raise CannotStart(
            f"it did not answer its handshake in {bench.timeout:g} s: it must read frames from stdin and answer the "
            "command ping; if it only needs longer to start, give --timeout"
        )
    return row


async def _settle(bench: Bench) -> None:
    """End what is still there, in order, so that what it leaves behind can be seen."""
    if bench.subjects and bench.subjects[-1].running:
        bench.subjects[-1].end_input()
        if not await bench.subjects[-1].ended():
            await bench.discard()


async def _made(bench: Bench, name: str, title: str, check: Check) -> Row:
    started = asyncio.get_running_loop().time()
    unasked = {subject: len(subject.unasked) for subject in bench.subjects}

    def row(status: Status, detail: str, fix: str | None = None) -> Row:
        seconds = asyncio.get_running_loop().time() - started
        return Row(check=name, title=title, status=status, detail=detail, fix=fix, seconds=seconds)

    try:
        return row(Status.PASSED, await check(bench))
    except NotClaimed as reason:
        return row(Status.NOT_CLAIMED, str(reason))
    except Unmet as unmet:
        if name != "handshake" and name in CONVERSATION:
            await bench.discard()  # whatever state it is in
            for subject in bench.subjects:
                del subject.unasked[unasked.get(subject, 0) :]  # what came with this failure is told
        return row(Status.FAILED, unmet.reason, unmet.fix)
