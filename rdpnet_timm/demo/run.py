"""The whole demo: its parts one after another, in one folder."""

import time
from pathlib import Path

import torch

from ..extras import require_all
from ..measure.timing import BUSY_PERCENT, cpu_load
from .narration import Narrator

__all__ = ["run"]


def run(output: Path) -> None:
    """Run every part of the demo; pictures, weights and data go to ``output``.

    Raises:
        ImportError: a package that a part needs is not installed.
        OSError: ``output`` cannot be written.
    """
    require_all(("rich", "sklearn", "matplotlib", "mim", "mmcv", "mmdet", "mmengine", "mmseg"), "the demo", "demo")
    from . import classification, openmmlab

    start, narrator = time.monotonic(), Narrator()
    output.mkdir(parents=True, exist_ok=True)
    narrator.say(f"A few minutes on two free cores; {torch.get_num_threads()} threads here. All files go to {output}/.")
    load = cpu_load(1.0)
    if load is not None and load > BUSY_PERCENT:
        narrator.say(
            f"This machine is busy: other programs use {load:.0f} % of it. All takes longer, and times are noisy."
        )
    classification.run(output, narrator=narrator)
    openmmlab.run(output, narrator)
    narrator.say(f"It took {time.monotonic() - start:.0f} s.")
