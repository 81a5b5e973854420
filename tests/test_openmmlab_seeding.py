"""A training that was killed by the kernel in mid-epoch and is resumed ends as one that was not interrupted."""

import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Tuple

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")


from rdpnet_timm.demo.sample_voc import make_sample_voc
from rdpnet_timm.openmmlab import SeedByProgressHook

CONFIGS = Path(__file__).parent.parent / "mm_configs" / "demo"
DETECTOR: Dict[str, Any] = {
    "model.backbone.widen_factor": 0.25,
    "model.neck.in_channels": [16, 32, 64, 320],
    "train_dataloader.dataset.dataset.indices": 8,
    "val_dataloader.dataset.indices": 1,
    "test_dataloader.dataset.indices": 1,
    "train_cfg.max_epochs": 3,
    "train_cfg.val_interval": 1,
    "default_hooks.checkpoint.interval": 1,
}
SEGMENTOR: Dict[str, Any] = {
    "train_dataloader.batch_size": 2,
    "val_dataloader.dataset.indices": 1,
    "test_dataloader.dataset.indices": 1,
    "train_cfg.max_iters": 5,
    "param_scheduler.0.end": 2,
    "param_scheduler.1.begin": 2,
    "train_cfg.val_interval": 2,
    "default_hooks.checkpoint.interval": 2,
}

# Everything in one interpreter, whose imports take longer than the trainings: a child that kills itself in the step
# `kill_at`, then its resumption and the uninterrupted run.
SCRIPT = """
    import json, os, signal, sys
    import torch
    from mmengine.config import Config
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS
    from mmengine.runner import Runner

    torch.set_num_threads(1)
    config, options, folder, kill_at = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])

    @HOOKS.register_module()
    class KillHook(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def train(name, resume=False, hooks=()):
        cfg = Config.fromfile(config)
        cfg.merge_from_dict({**options, "work_dir": f"{folder}/{name}", "resume": resume, "log_level": "ERROR"})
        cfg.custom_hooks = [*cfg.custom_hooks, *hooks]
        cfg.experiment_name = f"{name}{resume}"
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner.model.state_dict(), torch.get_rng_state()

    child = os.fork()
    if not child:
        train("killed", hooks=[dict(type="KillHook")])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    checkpoints = sorted(file for file in os.listdir(f"{folder}/killed") if file.endswith(".pth"))
    resumed, _ = train("killed", resume=True)
    whole, _ = train("whole")
    different = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    print(json.dumps([checkpoints, len(whole), different]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "options", "kill_at", "checkpoint"),
    [
        ("faster_rcnn_rdpnet075_sample.py", DETECTOR, 3, "epoch_1.pth"),  # the second of two steps of epoch 2
        ("deeplabv3plus_rdpnet075_sample.py", SEGMENTOR, 2, "iter_2.pth"),
    ],
    ids=["Faster R-CNN", "DeepLabV3+"],
)
def test_after_sigkill_and_resume_every_weight_is_that_of_the_uninterrupted_run(
    tmp_path: Path, config: str, options: Dict[str, Any], kill_at: int, checkpoint: str
) -> None:
    devkit = make_sample_voc(tmp_path / "sample", images=45)
    arguments = [str(CONFIGS / config), json.dumps(options), str(tmp_path), str(kill_at)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT), *arguments],
        env={**os.environ, "VOCDEVKIT": str(devkit), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    checkpoints, weights, different = json.loads(done.stdout.splitlines()[-1])
    assert checkpoints == [checkpoint], "the run was killed where it should be"
    assert weights > 200 and not different, f"{len(different)} of {weights} tensors differ: {different[:3]}"


class _Runner:
    """As much of a runner as the hook looks at."""

    def __init__(self, seed: Any, persistent: bool, by_epoch: bool) -> None:
        self.cfg, self.seed, self.warnings = {"randomness": {"seed": seed}}, seed or 7, []
        self.train_dataloader = SimpleNamespace(persistent_workers=persistent)
        self.train_loop = SimpleNamespace() if by_epoch else SimpleNamespace(dataloader_iterator=iter(range(9)))
        self.logger = SimpleNamespace(warning=self.warnings.append)
        self.epoch = self.iter = 0


@pytest.mark.parametrize(
    ("seed", "persistent", "by_epoch", "said"),
    [
        (0, False, True, ()),
        (0, True, False, ()),  # workers that are told to skip what was read read it again
        (None, False, True, ("no randomness=dict(seed=...)",)),
        (0, True, True, ("persistent_workers=True",)),
        (None, True, True, ("no randomness=dict(seed=...)", "persistent_workers=True")),
    ],
)
def test_what_keeps_a_resumed_run_from_the_same_end_is_said(
    seed: Any, persistent: bool, by_epoch: bool, said: Tuple[str, ...]
) -> None:
    runner = _Runner(seed, persistent, by_epoch)
    SeedByProgressHook().before_train(runner)
    assert len(runner.warnings) == bool(said) and all(part in runner.warnings[0] for part in said)


def drawn() -> Tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_each_epoch_step_and_batch_draws_its_own_numbers_and_always_the_same() -> None:
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        found = []
        for _ in range(2):
            runner, hook = _Runner(5, False, by_epoch=False), SeedByProgressHook()
            hook.before_train(runner)
            for runner.epoch in range(2):
                hook.before_train_epoch(runner)
                found.append(drawn())
                torch.rand(3)
            for runner.iter in range(3):
                next(runner.train_loop.dataloader_iterator)
                found.append(drawn())
                hook.before_train_iter(runner, runner.iter)
                found.append(drawn())
        assert found[:8] == found[8:]
        assert all(len({numbers[kind] for numbers in found}) == 8 for kind in range(3))
    finally:
        random.setstate(state[0]), np.random.set_state(state[1]), torch.set_rng_state(state[2])
