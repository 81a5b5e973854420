"""What the demo says while it works: it is never silent for long, on a terminal or off it."""

import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional

from ..extras import require

__all__ = ["Narrator"]


class Narrator:
    """Prints what happens; where nothing has been printed for ``silence`` seconds, what is still going on.

    Args:
        silence: seconds after which it speaks up.
        output: prints one line; by default rich's console, above a progress bar where there is one.
    """

    def __init__(self, silence: float = 8.0, output: Optional[Callable[[str], Any]] = None) -> None:
        self._is_terminal = False
        if output is None:
            console = require("rich", "the demo", "demo").get_console()
            self._is_terminal = console.is_terminal
            output = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
        self._print = output
        self._silence = silence
        self._doing: Optional[str] = None
        self._began = self._spoke = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print a line."""
        with self._lock:
            self._spoke = time.monotonic()
            self._print(text)

    @contextmanager
    def during(self, doing: str, has_bar: bool = False) -> Iterator[None]:
        """While this lasts, say from time to time that ``doing`` still goes on; a bar on a terminal says it better."""
        if has_bar and self._is_terminal:
            yield
            return
        self._doing, self._began = doing, time.monotonic()
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._doing = None

    def now(self, doing: str) -> None:
        """From here on it is ``doing`` that goes on."""
        if doing != self._doing:
            self._doing, self._began = doing, time.monotonic()

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(max(0.01, self._spoke + self._silence - time.monotonic())):
            if time.monotonic() - self._spoke >= self._silence:
                self.say(f"  ... {self._doing}, {time.monotonic() - self._began:.0f} s so far")
