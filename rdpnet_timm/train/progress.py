"""A progress bar for a training run."""

import sys
from contextlib import contextmanager
from functools import partial
from typing import Callable, Dict, Iterator

from ..extras import require
from ..progress import drop_output

__all__ = ["epoch_line", "progress_bar", "say", "say_aside"]


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, Dict[str, float]], None]]:
    """A ``report`` for :func:`rdpnet_timm.train.train`: a bar on a terminal, and a line an epoch everywhere."""
    console = require("rich", "showing progress").get_console()
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps, left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        write = partial(console.print, highlight=False) if console.is_terminal else partial(print, flush=True)

        def report(step: int, steps: int, record: Dict[str, float]) -> None:
            progress.update(task, completed=step, total=steps)
            if record:
                say(epoch_line(record), write)

        yield report


def say(line: str, write: Callable[[str], object] = partial(print, flush=True)) -> None:
    """Print a line at once. Where its reader has gone, ``head`` or a terminal, what is reported goes on without it."""
    try:
        write(line)
    except OSError:
        drop_output(sys.stdout)
        say_aside("nobody reads the output any more; the training goes on, and its log.jsonl with it")


def say_aside(line: str) -> None:
    """The same on the error output, which often has the same reader."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        drop_output(sys.stderr)


def epoch_line(record: Dict[str, float]) -> str:
    """A line about an epoch, from its record in ``log.jsonl``."""
    return (
        f"epoch {record['epoch']:g}: training loss {record['train_loss']:.3f}, accuracy "
        f"{record['train_accuracy']:.1f} %; test {record['test_accuracy']:.2f} %; "
        f"{record['images_per_second']:.0f} images/s"
    )
