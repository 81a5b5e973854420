"""A progress bar for a training run."""

import sys
from contextlib import contextmanager
from functools import partial
from typing import Callable, Dict, Iterator

from ..extras import require
from ..progress import drop_output

__all__ = ["epoch_line", "progress_bar", "say"]


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, Dict[str, float]], None]]:
    """A ``report`` for :func:`rdpnet_timm.train.train`: a bar on a terminal, and a line an epoch everywhere."""
    console = require("rich", "showing progress").get_console()
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps, left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        tell = partial(console.print, highlight=False) if console.is_terminal else say

        def report(step: int, steps: int, record: Dict[str, float]) -> None:
            progress.update(task, completed=step, total=steps)
            if record:
                tell(epoch_line(record))

        yield report


def say(line: str) -> None:
    """Print a line at once. Where its reader has gone, ``head`` for one, what is reported goes on without it."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        drop_output()
        print("nobody reads the output any more; the training goes on, and its log.jsonl with it", file=sys.stderr)


def epoch_line(record: Dict[str, float]) -> str:
    """A line about an epoch, from its record in ``log.jsonl``."""
    return (
        f"epoch {record['epoch']:g}: training loss {record['train_loss']:.3f}, accuracy "
        f"{record['train_accuracy']:.1f} %; test {record['test_accuracy']:.2f} %; "
        f"{record['images_per_second']:.0f} images/s"
    )
