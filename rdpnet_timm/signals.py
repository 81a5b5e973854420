"""Orders to end, taken in good order."""

import math
import signal
import threading
import time
from contextlib import contextmanager
from types import FrameType
from typing import Callable, Iterator, Optional

__all__ = ["handled"]

_SAME = 1.0  # seconds


@contextmanager
def handled(handler: Callable[[int, Optional[FrameType]], object], *names: str) -> Iterator[None]:
    """Let ``handler`` have the signals of these names.

    What comes within a second is the same order once more, and dropped: a closed terminal or a batch system tells every
    process of a group, and so does the one among them that began the others.

    Left out are those that are ignored, as SIGHUP is under ``nohup``, and those that the system does not have; all of
    them in threads but the main one, where alone signals can be had.
    """
    handed = -math.inf

    def receive(number: int, frame: Optional[FrameType]) -> None:
        nonlocal handed
        if time.monotonic() - handed > _SAME:
            handed = time.monotonic()
            handler(number, frame)

    former = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        former = {number: signal.signal(number, receive) for number in heard}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)
