"""Orders to end, taken in good order."""

import signal
import threading
from contextlib import contextmanager
from types import FrameType
from typing import Callable, Iterator, Optional

__all__ = ["handled"]


@contextmanager
def handled(handler: Callable[[int, Optional[FrameType]], object], *names: str) -> Iterator[None]:
    """Let ``handler`` have the signals of these names.

    Left out are those that are ignored, as SIGHUP is under ``nohup``, and those that the system does not have; all of
    them in threads but the main one, where alone signals can be had.
    """
    former = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        former = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)
