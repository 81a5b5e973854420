"""Signs of life on a terminal, on one line of the error output; silence everywhere else."""

import os
import sys
import time
from contextlib import contextmanager
from typing import Callable, Collection, Iterable, Iterator, TextIO, TypeVar

__all__ = ["counted", "drop_output", "status"]

Item = TypeVar("Item")

_PERIOD = 0.2  # seconds between two lines


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Give a function that shows what is being done, in place of what it showed before."""
    stream = sys.stderr
    shows = stream is not None and stream.isatty()  # None where the caller has closed it

    def show(text: str) -> None:
        if shows:
            stream.write(f"\r\x1b[K{text}")
            stream.flush()

    try:
        yield show
    finally:
        show("")


def counted(items: Collection[Item], title: str) -> Iterable[Item]:
    """The items, one after the other, while a line shows how many of them are done and what time is left."""
    stream = sys.stderr  # as it is now: what reads the items may redirect it meanwhile

    def run() -> Iterator[Item]:
        shows, start = stream is not None and stream.isatty(), time.monotonic()
        shown = start
        for done, item in enumerate(items):
            now = time.monotonic()
            if shows and now - shown >= _PERIOD:
                left = (now - start) / done * (len(items) - done) if done else 0.0
                stream.write(f"\r\x1b[K{title}: {done} of {len(items)}, {left:.0f} s left")
                stream.flush()
                shown = now
            yield item
        if shows and shown != start:
            stream.write("\r\x1b[K")
            stream.flush()

    return run()


def drop_output(stream: TextIO) -> None:
    """Let what waits to be written and what is printed from now on go nowhere: nobody reads it, or it has no place."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
