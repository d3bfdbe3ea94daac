"""Says a text word by word; says how far it is when it writes one with a plan.

quaybridge worker --service words --bridge "python -m examples.stream_words"
quaybridge call words say text="to be or not to be" delay:=0.2 --stream
quaybridge call words write pages:=20
"""

import time
from collections.abc import Generator

from bridge_sdk import Bridge

bridge = Bridge()


@bridge.command
def say(text: str, delay: float = 0.0) -> Generator[str, None, int]:
    """The words of `text`, one after the other, `delay` seconds apart; the result is how many there were."""
    words = text.split()
    for word in words:
        yield word
        if delay:
            time.sleep(delay)
    return len(words)


@bridge.command
def count(to: int, size: int = 20) -> Generator[str, None, int]:
    """The numbers from 0 on, each written in `size` digits."""
    for number in range(to):
        yield f"{number:0{size}}"
    return to


@bridge.command
def write(pages: int, delay: float = 0.1) -> int:
    """Write so many pages, and say how far it is."""
    for page in range(pages):
        bridge.progress(page, pages, f"page {page + 1}")
        time.sleep(delay)
    return pages


if __name__ == "__main__":
    bridge.serve()
