"""`quaybridge batch`: a request for each line of stdin, and their replies on stdout."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from quaybridge import request_options as options
from quaybridge.exit_status import ExitStatus, explained
from quaybridge.logs import LogLevel, log_to_stderr

if TYPE_CHECKING:
    from broker.contract import Broker
    from broker.store import Store
    from quaybridge.batch import Batch, Earlier, Lines, Tally

SHOWN_EVERY = 0.2  # seconds

MEANINGS = (
    "Exit status: 0 every line is answered; 1 some requests failed, or the broker took no more; 2 usage, or files that "
    "cannot be gone on with; 3 some lines were broken, or the broker cannot be reached; 130 interrupted: --resume."
)


def batch(
    service: options.Service,
    command: options.Command,
    failures: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where failures go. Default: beside the replies, NAME.failures.jsonl."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after an interruption: with the same stdin, and stdout as >> FILE.")
    ] = False,
    in_flight: Annotated[int, typer.Option(metavar="N", min=1, max=100_000, help="Requests under way at once.")] = 100,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, max=86_400, help="How long one request may take in all.")
    ] = 300.0,
    idempotent: Annotated[
        bool, typer.Option("--idempotent", help="Requests may run twice: sent again after a lost connection.")
    ] = False,
    store: options.StoreDirectory = None,
    broker: options.BrokerUrl = None,
    config: options.ConfigFile = None,
    verbose: options.Verbose = False,
) -> None:
    """Send each line of stdin, a JSON object, as a request's arguments; write the replies to stdout, in order.

    A reply is {"line": N, "result": …}. Requests that fail, and lines that are no JSON object, go to a file of their
    own, and the rest goes on. Interrupted, however it was, the same command with --resume and >> for > goes on where it
    stopped, and what it writes in the end is what one run would have written.
    """
    with explained(verbose=verbose):
        from quaybridge.batch import BatchError, Earlier
        from quaybridge.failures_file import check_failures, clear_failures

        log_to_stderr(LogLevel.INFO if verbose else LogLevel.ERROR)
        places = options.read_places(broker, store, config)
        _check_names(service, command)
        replies = sys.stdout.fileno()
        failures = failures or _beside(replies)
        try:
            check_failures(failures, requests=sys.stdin.fileno(), replies=replies, resume=resume)
            earlier = Earlier(replies, failures) if resume else None
            if not resume:
                clear_failures(failures)
        except BatchError as error:
            _end(ExitStatus.USAGE, str(error))
        except OSError as error:
            _end(ExitStatus.USAGE, f"{failures}: {error.strerror or error}")
        work = _batch(
            *places,
            service,
            command,
            failures=failures,
            earlier=earlier,
            in_flight=in_flight,
            timeout=timeout,
            idempotent=idempotent,
        )
        raise SystemExit(asyncio.run(work))


async def _batch(
    broker: Broker,
    store: Store | None,
    service: str,
    command: str,
    *,
    failures: Path,
    earlier: Earlier | None,
    in_flight: int,
    timeout: float,
    idempotent: bool,
) -> ExitStatus:
    from bridge_protocol.errors import CodedError
    from producer.async_producer import AsyncProducer
    from quaybridge.batch import Batch, BatchError, Lines, Records, Tally

    tally = Tally()
    lines = Lines(sys.stdin.fileno())
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    failed = Records(path=failures)
    try:
        async with AsyncProducer(broker, store=store, connect_timeout=options.CONNECT_TIMEOUT) as producer:
            work = Batch(
                producer,
                service,
                command,
                replies=Records(sys.stdout.fileno()),
                failures=failed,
                tally=tally,
                in_flight=in_flight,
                timeout=timeout,
                idempotent=idempotent,
            )
            with _shown(work, lines):
                await work.run(lines, earlier)
    except asyncio.CancelledError:
        _say(f"interrupted after line {tally.answered}: --resume, and >> for the replies, goes on from there")
        return ExitStatus.INTERRUPTED
    except BatchError as error:
        _say(str(error))
        return ExitStatus.USAGE
    except CodedError:
        _say(f"stopped after line {tally.answered}: --resume, and >> for the replies, goes on from there")
        raise
    except OSError as error:
        _say(f"stopped after line {tally.answered}: {error.strerror or error}")
        return ExitStatus.FAILED
    finally:
        failed.close()
    return _outcome(tally, failures)


def _outcome(tally: Tally, failures: Path) -> ExitStatus:
    if tally.failed or tally.broken or sys.stderr.isatty():
        _say(
            f"{tally.succeeded:,} answered, {tally.failed:,} failed, {tally.broken:,} broken lines"
            + (f": see {failures}" if tally.failed or tally.broken else "")
        )
    if tally.broken:
        return ExitStatus.BROKEN_INPUT
    return ExitStatus.FAILED if tally.failed else ExitStatus.DONE


def _beside(replies: int) -> Path:
    """Where failures go by default: beside the file of replies, or here."""
    if stat.S_ISREG(os.fstat(replies).st_mode):
        with suppress(OSError):
            file = Path(os.readlink(f"/proc/self/fd/{replies}"))
            return file.with_name(f"{file.stem}.failures.jsonl")
    return Path("failures.jsonl")


def _check_names(service: str, command: str) -> None:
    """What no request could be made of is said once, and not of each line. Raises BadParameter."""
    from bridge_protocol.messages import command_problem
    from producer.request import names_problem

    if problem := names_problem(service, command):
        raise typer.BadParameter(problem)
    if not command:
        raise typer.BadParameter(f"which command? quaybridge call {service} --describe lists those there are")
    if problem := command_problem(command):
        raise typer.BadParameter(problem)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _end(status: ExitStatus, line: str) -> NoReturn:
    _say(line)
    raise SystemExit(status)


@contextmanager
def _shown(work: Batch, lines: Lines) -> Iterator[None]:
    """A progress bar on stderr, where that is a terminal: by bytes, for nobody has counted the lines."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    loop = asyncio.get_running_loop()
    began = loop.time()
    tally = work.tally
    bar = progress.add_task("batch", total=lines.size, counts="")

    async def show() -> None:
        while True:
            done = tally.succeeded + tally.failed + tally.broken
            rate = (done - tally.earlier) / max(loop.time() - began, 0.001)
            wrong = tally.failed + tally.broken
            counts = f"{done:,} lines, {rate:,.0f}/s" + (f", {wrong:,} failed" if wrong else "")
            progress.update(bar, completed=tally.end, counts=counts)
            await asyncio.sleep(SHOWN_EVERY)

    with progress:
        showing = loop.create_task(show())
        try:
            yield
        finally:
            showing.cancel()
