"""Random numbers that do not depend on whether a training was interrupted."""

from typing import Any, Iterator

import numpy as np
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import set_random_seed

__all__ = ["SeedByProgressHook"]

# what is drawn for: the numbers of one must not be those of another
_EPOCH, _STEP, _BATCH = range(3)


@HOOKS.register_module()
class SeedByProgressHook(Hook):
    """Seed the random generators by the seed of the run and by how far it is.

    Python's, numpy's and torch's generators are seeded anew before each epoch, of a training by iterations before each
    batch is read and before each step. So a training that was killed and is resumed draws the numbers that it would
    have drawn, and ends with the same weights, to the bit where the arithmetic itself is (on a CPU with the same number
    of threads). mmengine's checkpoints do not hold the generators' states; those of a training that is validated
    between checkpoint and next epoch would not be the right ones either.

    What it takes besides: a seed in the config (``randomness=dict(seed=0)``), which samplers and workers get, and in a
    training by epochs no persistent workers, whose generators know how many pictures they have read since their start.
    Where one of these is missing, a warning says so.
    """

    def before_train(self, runner: Any) -> None:
        """Say what stands in the way of the same end, and take over the reading of batches of an iteration loop."""
        dataloader, missing = runner.train_dataloader, []
        if (runner.cfg.get("randomness") or {}).get("seed") is None:
            missing.append("the config has no randomness=dict(seed=...)")
        if hasattr(runner.train_loop, "dataloader_iterator"):
            seeded = _SeededBatches(runner.train_loop.dataloader_iterator, runner)
            runner.train_loop.dataloader_iterator = seeded
        elif getattr(dataloader, "persistent_workers", False):
            missing.append("train_dataloader has persistent_workers=True")
        if missing:
            runner.logger.warning(
                f"a training that is interrupted and resumed will not end as one that is not: {', and '.join(missing)}"
            )

    def before_train_epoch(self, runner: Any) -> None:
        """Seed for an epoch."""
        _seed(runner, _EPOCH, runner.epoch)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed for a step of a training by iterations."""
        if isinstance(getattr(runner.train_loop, "dataloader_iterator", None), _SeededBatches):
            _seed(runner, _STEP, runner.iter)


class _SeededBatches:
    """The batches of an iteration loop, each read under a seed of its own; a resumed loop reads them all again."""

    def __init__(self, batches: Iterator[Any], runner: Any) -> None:
        self.batches, self.runner, self.count = batches, runner, 0

    def __iter__(self) -> "Iterator[Any]":
        return self

    def __next__(self) -> Any:
        _seed(self.runner, _BATCH, self.count)
        self.count += 1
        return next(self.batches)


def _seed(runner: Any, purpose: int, number: int) -> None:
    # as in mmengine all processes draw the same numbers unless the config asks for different ones
    rank = get_rank() if (runner.cfg.get("randomness") or {}).get("diff_rank_seed") else 0
    seed = np.random.SeedSequence([runner.seed, purpose, number, rank]).generate_state(1)[0]
    set_random_seed(int(seed))
