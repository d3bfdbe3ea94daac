"""The bar on a terminal's stderr that shows how far a request is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quaybridge.exit_status import printable

if TYPE_CHECKING:
    from producer.progress import Progress


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None] | None]:
    """What to call with each Progress, for as long as the block; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as shown  # only for whoever looks at it
    from rich.console import Console

    columns = (
        shown.BarColumn(),
        shown.TaskProgressColumn(),
        shown.TimeElapsedColumn(),
        shown.TextColumn("{task.description}", markup=False),
    )
    # It leaves stdout alone, where a stream may be printed meanwhile.
    with shown.Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task: shown.TaskID | None = None

        def show(progress: Progress) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task("", total=progress.total)
            note = printable(progress.note or "")
            bar.update(task, completed=progress.done or 0, total=progress.total, description=note)

        yield show
