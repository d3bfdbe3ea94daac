"""The chart: round trips per second of (a), a bar a system, as SVG by hand. It reads on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.results import Row, Run
from benchmarks.systems import QUAYBRIDGE

WIDTH, LABELS, FIGURES = 800, 290, 130  # pixels: in all, left of the bars, right of them
BAR, GAP, HEAD = 22, 12, 64
OURS, THEIRS, TEXT = "#c2571a", "#7a8794", "#7f7f7f"


def chart(runs: Sequence[Run]) -> str:
    """An SVG with a block of bars for each RabbitMQ. The thin lines are the least and the most of all rounds.

    Without a run that has measured (a) it says so.
    """
    blocks: list[str] = []
    top = 0
    for run in runs:
        rows = sorted(
            (row for row in run.rows if row.work == "a" and row.unit == "/s"), key=lambda row: row.median, reverse=True
        )
        if rows:
            blocks += _block(run, rows, top)
            top += HEAD + len(rows) * (BAR + GAP)
    if not blocks:
        blocks.append(f'<text x="0" y="24" fill="{TEXT}">Not measured yet: make bench</text>')
        top = HEAD // 2
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + GAP}" width="{WIDTH}" '
            'font-family="system-ui, sans-serif" font-size="13" role="img" '
            'aria-label="Round trips per second of quaybridge and its peers">',
            *blocks,
            "</svg>",
            "",
        )
    )


def _block(run: Run, rows: Sequence[Row], top: int) -> list[str]:
    most = max(max(row.values) for row in rows)
    scale = (WIDTH - LABELS - FIGURES) / most
    title = f"Echo of 200 characters, 256 in flight: per second, {run.broker}"
    pieces = [f'<text x="0" y="{top + 24}" font-size="15" font-weight="bold" fill="{TEXT}">{escape(title)}</text>']
    note = run.void or f"median of {len(rows[0].values)} rounds; the line spans the least and the most"
    pieces.append(f'<text x="0" y="{top + 44}" fill="{TEXT}">{escape(note)}</text>')
    for number, row in enumerate(rows):
        y = top + HEAD + number * (BAR + GAP)
        middle = y + BAR / 2
        ours = row.subject == QUAYBRIDGE.title
        low, high = LABELS + min(row.values) * scale, LABELS + max(row.values) * scale
        weight = ' font-weight="bold"' if ours else ""
        pieces += [
            f'<text x="{LABELS - 10}" y="{middle + 4}" text-anchor="end" fill="{TEXT}"{weight}>'
            f"{escape(row.subject)}</text>",
            f'<rect x="{LABELS}" y="{y}" width="{max(1.0, row.median * scale):.1f}" height="{BAR}" '
            f'fill="{OURS if ours else THEIRS}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10M{high:.1f} {middle - 5}v10" '
            f'stroke="{TEXT}" stroke-width="1.5" fill="none"/>',
            f'<text x="{max(high, LABELS + row.median * scale) + 10:.1f}" y="{middle + 4}" fill="{TEXT}"{weight}>'
            f"{row.median:,.0f}</text>",
        ]
    return pieces
