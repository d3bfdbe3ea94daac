"""`quaybridge dead list | show | replay | purge | export`: what became of requests that ended without success."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing, contextmanager
from errno import EEXIST
from pathlib import Path
from tempfile import SpooledTemporaryFile, mkstemp
from typing import IO, TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from quaybridge import request_options as options
from quaybridge.exit_status import MEANINGS, ExitStatus, explained, printable
from quaybridge.help_text import help_text
from quaybridge.logs import LogLevel, log_to_stderr

if TYPE_CHECKING:
    from bridge_protocol.dead_letter import DeadLetter
    from broker.contract import Broker, Delivery
    from quaybridge.dead_letters import Look
    from quaybridge.letter_filter import LetterFilter

IN_MEMORY = 16 * 1024 * 1024  # bytes of a page that is to be written; more are kept in a temporary file

Service = Annotated[str, typer.Argument(help="Whose dead letters.", show_default=False)]
Codes = Annotated[
    list[str] | None, typer.Option("--code", metavar="CODE", help="Those with this code; may be given several times.")
]
Commands = Annotated[
    list[str] | None, typer.Option("--command", metavar="NAME", help="Requests for this command; several times too.")
]
OlderThan = Annotated[str | None, typer.Option(metavar="DURATION", help="Failed longer ago: 90s, 15m, 2h, 7d, 1w.")]
NewerThan = Annotated[str | None, typer.Option(metavar="DURATION", help="Failed since then: 90s, 15m, 2h, 7d, 1w.")]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON for each letter, on a terminal too.")]


def dead_letter_commands() -> typer.Typer:
    """The commands below `quaybridge dead`."""
    app = typer.Typer(no_args_is_help=True, help="Look at dead letters; replay, remove or save them.")
    app.command("list", epilog=MEANINGS, help=help_text(list_letters))(list_letters)
    for command in (show, replay, purge, export):
        app.command(epilog=MEANINGS, help=help_text(command))(command)
    return app


def list_letters(
    service: Service,
    code: Codes = None,
    command: Commands = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="No more than so many.")] = None,
    as_json: AsJson = False,
    broker: options.BrokerUrl = None,
    config: options.ConfigFile = None,
    verbose: options.Verbose = False,
) -> None:
    """List them, the oldest first: a table on a terminal, lines of JSON in a pipe. None is removed."""
    chosen = _filter((), code, command, older_than, newer_than)
    plain = as_json or not sys.stdout.isatty()

    async def work(look: Look) -> None:
        from quaybridge.letter_record import summary

        shown = 0
        async with aclosing(look.pages(lambda letter, _: summary(letter) if chosen(letter) else None)) as pages:
            async for page in pages:
                page = page if limit is None else page[: limit - shown]
                await asyncio.to_thread(_print_summaries, page, plain=plain, header=not shown)
                shown += len(page)
                if shown == limit:
                    return
        if not shown:
            _note(_nothing(look))

    _run(service, work, broker=broker, config=config, verbose=verbose)


def show(
    service: Service,
    id: Annotated[str, typer.Argument(help="A letter's id, as listed.", show_default=False)],
    as_json: AsJson = False,
    broker: options.BrokerUrl = None,
    config: options.ConfigFile = None,
    verbose: options.Verbose = False,
) -> None:
    """Show everything about one: reason, exit, stderr, request. Of several with its id, each. It is not removed."""
    chosen = _filter((id,))
    plain = as_json or not sys.stdout.isatty()

    async def work(look: Look) -> None:
        from quaybridge.letter_record import described, line, record

        found = False
        async with aclosing(look.pages(lambda letter, _: letter if chosen(letter) else None)) as pages:
            async for page in pages:
                for letter in page:
                    found = True
                    shown = line(record(letter)) if plain else described(letter).encode()
                    await asyncio.to_thread(_write, shown)
        if not found:
            _fail(_missing([id], look))

    _run(service, work, broker=broker, config=config, verbose=verbose)


def replay(
    service: Service,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]…", help="Which ones.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them, or all that the filters let pass.")] = False,
    code: Codes = None,
    command: Commands = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.001,
            max=86_400,
            help="A new deadline. Default: the old one; none if it has passed.",
        ),
    ] = None,
    broker: options.BrokerUrl = None,
    config: options.ConfigFile = None,
    verbose: options.Verbose = False,
) -> None:
    """Send requests again, with their ids, as first attempts; say of each what was done.

    A letter is removed once the broker has its request safe.
    """
    if bool(ids) == everything:
        raise typer.BadParameter("say which: some IDs, or --all with or without filters")
    chosen = _filter(ids or (), code, command, older_than, newer_than)

    async def work(look: Look) -> None:
        from quaybridge.replay import replay

        missing = set(ids or ())
        done = 0
        async with aclosing(replay(look, chosen, wall=time.time, timeout=timeout)) as replayed:
            async for one in replayed:
                note = f", {one.note}" if one.note else ""
                said = f"{one.id} replayed, time {one.replays}{note}\n"
                await asyncio.to_thread(_write, said.encode())
                missing.discard(one.id)
                done += 1
        if missing:
            _fail(_missing(missing, look))
        if not done:
            _fail(_nothing(look))

    _run(service, work, broker=broker, config=config, verbose=verbose)


def purge(
    service: Service,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]…", help="Which ones. Default: all.", show_default=False)
    ] = None,
    code: Codes = None,
    command: Commands = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    broker: options.BrokerUrl = None,
    config: options.ConfigFile = None,
    verbose: options.Verbose = False,
) -> None:
    """Remove them for good, after asking: exactly those that were counted, none that came later."""
    chosen = _filter(ids or (), code, command, older_than, newer_than)

    async def work(look: Look) -> None:
        tags: list[int] = []
        async with aclosing(look.pages(lambda letter, delivery: delivery.tag if chosen(letter) else None)) as pages:
            async for page in pages:
                tags += page
        if not tags:
            _fail(_nothing(look))
        question = f"Remove {len(tags):,} of {look.seen:,} letters from {look.queue} for good?"
        if not yes and not await asyncio.to_thread(_confirmed, question):
            _fail("nothing was removed: answer y, or give --yes")
        look.remove(tags)
        await look.settled()
        _write(f"{len(tags):,} letters removed\n".encode())

    _run(service, work, broker=broker, config=config, verbose=verbose)


def export(
    service: Service,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default, and -: stdout.", show_default=False)
    ] = None,
    code: Codes = None,
    command: Commands = None,
    older_than: OlderThan = None,
    newer_than: NewerThan = None,
    broker: options.BrokerUrl = None,
    config: options.ConfigFile = None,
    verbose: options.Verbose = False,
) -> None:
    """Write everything about each as a line of JSON. None is removed; a file is there whole, or not at all."""
    chosen = _filter((), code, command, older_than, newer_than)

    async def work(look: Look) -> None:
        from quaybridge.settings import SettingsError

        if file is None or str(file) == "-":
            await _write_records(look, chosen, sys.stdout.buffer)
            _check_whole(look)
            return
        try:
            with _whole_file(file) as part:
                count = await _write_records(look, chosen, part)
        except OSError as error:
            raise SettingsError(f"{str(file)!r} cannot be written: {error.strerror}: name another file") from None
        _note(f"{count:,} letters written to {file}")
        _check_whole(look)

    _run(service, work, broker=broker, config=config, verbose=verbose)


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends, and is gone if it fails. Raises OSError."""
    target = path.resolve()  # what a link leads to is replaced, not the link
    if target.exists() and not target.is_file():
        raise FileExistsError(EEXIST, "it is there and no file", str(path))
    descriptor, name = mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(descriptor, "wb") as part:
            yield part
            part.flush()
            os.fsync(descriptor)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


async def _write_records(look: Look, chosen: LetterFilter, output: IO[bytes]) -> int:
    """Write the chosen letters to `output`, page by page; how many they were."""
    from quaybridge.letter_record import line, record

    count = 0
    with SpooledTemporaryFile(IN_MEMORY) as lines:

        def take(letter: DeadLetter, _: Delivery) -> bool | None:
            return lines.write(line(record(letter))) > 0 if chosen(letter) else None

        def write_page() -> None:
            lines.seek(0)
            shutil.copyfileobj(lines, output)
            output.flush()
            lines.seek(0)
            lines.truncate()

        async with aclosing(look.pages(take)) as pages:
            async for page in pages:
                await asyncio.to_thread(write_page)
                count += len(page)
    return count


def _run(
    service: str,
    work: Callable[[Look], Coroutine[Any, Any, None]],
    *,
    broker: str | None,
    config: Path | None,
    verbose: bool,
) -> None:
    """Do `work` with a look at the service's dead letters."""
    from bridge_protocol.topology import service_name_problem

    if problem := service_name_problem(service):
        raise typer.BadParameter(problem)
    with explained(verbose=verbose):
        log_to_stderr(LogLevel.INFO if verbose else LogLevel.ERROR)
        asyncio.run(_look(options.read_broker(broker, config), service, work))


async def _look(broker: Broker, service: str, work: Callable[[Look], Coroutine[Any, Any, None]]) -> None:
    """Do `work` with a look; say so if it did not get to see all the letters."""
    from quaybridge.dead_letters import looking

    async with looking(broker, service) as look:
        try:
            await work(look)
        finally:
            if look.missed:
                _note(
                    f"{look.missed:,} of {look.total:,} letters did not come: another look holds them, "
                    "or they were taken away meanwhile: try again when it has ended"
                )


def _filter(
    ids: Iterable[str],
    codes: Iterable[str] | None = None,
    commands: Iterable[str] | None = None,
    older_than: str | None = None,
    newer_than: str | None = None,
) -> LetterFilter:
    from quaybridge.letter_filter import read_filter

    try:
        return read_filter(
            ids=ids,
            codes=codes or (),
            commands=commands or (),
            older_than=older_than,
            newer_than=newer_than,
            now=time.time(),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _print_summaries(summaries: list[dict[str, Any]], *, plain: bool, header: bool) -> None:
    from quaybridge.letter_record import line, table

    if plain:
        _write(b"".join(map(line, summaries)))
    elif summaries:
        import rich

        rich.print(table(summaries, columns=rich.get_console().width, header=header))


def _write(shown: bytes) -> None:
    sys.stdout.buffer.write(shown)
    sys.stdout.buffer.flush()


def _confirmed(question: str) -> bool:
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _nothing(look: Look) -> str:
    if look.seen:
        return f"none of the {look.seen:,} letters in {look.queue} is meant: try other filters"
    return f"no dead letters to be seen in {look.queue}; those that another look holds just now are not shown"


def _missing(ids: Iterable[str], look: Look) -> str:
    return (
        f"no letter {', '.join(sorted(ids))} among the {look.seen:,} in {look.queue}: `dead list` shows which there are"
    )


def _check_whole(look: Look) -> None:
    """A copy that is not of all the letters is no success: see `_look` for what is said of it."""
    if look.missed:
        raise typer.Exit(ExitStatus.FAILED)


def _note(text: str) -> None:
    sys.stderr.write(printable(text) + "\n")


def _fail(text: str) -> NoReturn:
    _note(text)
    raise typer.Exit(ExitStatus.FAILED)
