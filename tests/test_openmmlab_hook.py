"""ReparameterizeHook: training is bit by bit what it is without the hook, evaluation runs on the deploy form."""

import itertools
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("mmengine")

from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from timm.models.byobnet import MobileOneBlock

from rdpnet_timm.blocks import RDPModule, RepVGGBlock
from rdpnet_timm.openmmlab import ReparameterizeHook

NUMBERS = itertools.count()


class TinyModel(BaseModel):
    """A stem, an RDP-Module that downsamples, a linear classifier."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(16, 3)

    def forward(self, inputs: Tensor, labels: Any = None, mode: str = "tensor") -> Any:
        logits = self.head(self.backbone(inputs).mean((2, 3)))
        if mode == "loss":
            return {"loss": F.cross_entropy(logits, labels)}
        if mode == "predict":
            EVALUATED.append([name for name, _ in self.backbone.named_parameters()])
            return list(logits)
        return logits


EVALUATED: List[List[str]] = []  # parameter names of the backbone, at each evaluated batch


@pytest.fixture(autouse=True)
def forget_what_was_evaluated() -> None:
    EVALUATED.clear()


class MeanLogit(BaseMetric):
    """The mean of the first logit; raises at the evaluation ``crash_at``."""

    def __init__(self, crash_at: int = 0, values: Any = None) -> None:
        super().__init__()
        self.crash_at, self.seen = crash_at, [] if values is None else values

    def process(self, data_batch: Any, data_samples: Any) -> None:
        if self.crash_at and len(self.seen) + 1 == self.crash_at:
            raise OSError("disk on fire")
        self.results += [float(logits[0]) for logits in data_samples]

    def compute_metrics(self, results: List[float]) -> Dict[str, float]:
        self.seen.append(sum(results) / len(results))
        return {"logit": self.seen[-1]}


class AutocastOptimWrapper(OptimWrapper):
    """AMP on the CPU, where mmengine's AmpOptimWrapper asks for a GPU."""

    def optim_context(self, model: nn.Module) -> Any:
        return torch.autocast("cpu", torch.bfloat16)


def rdp_backbone(**kwargs: Any) -> nn.Module:
    stem, module = RepVGGBlock(3, 8, **kwargs), RDPModule(8, 16, stride=2, **kwargs)
    return nn.Sequential(OrderedDict(stem=stem, stage=module))


def data() -> List[Dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"inputs": torch.randn(3, 12, 12, generator=generator), "labels": i % 3} for i in range(8)]


def loader(shuffle: bool) -> Dict[str, Any]:
    sampler = dict(type="DefaultSampler", shuffle=shuffle, seed=3)
    return dict(batch_size=2, num_workers=0, dataset=data(), sampler=sampler, collate_fn=dict(type="default_collate"))


def build(folder: Path, hook: bool, backbone: Any = rdp_backbone, metric: Any = None, **overrides: Any) -> Runner:
    """A runner of three epochs of four batches, the same but for ``hook`` and ``overrides``."""
    torch.manual_seed(0)
    model = TinyModel(backbone())
    for module in model.modules():  # not the fresh statistics, which hide errors of the conversion
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5), nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2), nn.init.uniform_(module.bias, -0.5, 0.5)
    name = f"tiny{next(NUMBERS)}"
    metric = metric or MeanLogit()
    config = dict(
        model=model,
        work_dir=str(folder / name),
        experiment_name=name,
        train_dataloader=loader(shuffle=True),
        val_dataloader=loader(shuffle=False),
        test_dataloader=loader(shuffle=False),
        train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=1),
        val_cfg=dict(),
        test_cfg=dict(),
        val_evaluator=[metric],
        test_evaluator=[metric],
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
        default_hooks=dict(checkpoint=None),
        custom_hooks=[],
        randomness=dict(seed=0),
        log_level="ERROR",
    )
    config.update(overrides)
    if hook:
        config["custom_hooks"] = [*config["custom_hooks"], dict(type="ReparameterizeHook", tolerance=1e-5)]
    return Runner(**config)


def state(runner: Runner) -> Dict[str, Tensor]:
    """All that training goes on with: parameters, buffers, the optimiser's momentum, averaged weights."""
    found = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    if hasattr(runner.optim_wrapper, "optimizer"):
        for index, entries in runner.optim_wrapper.optimizer.state_dict()["state"].items():
            found.update({f"optimizer.{index}.{key}": value.clone() for key, value in entries.items()})
    for hook in runner.hooks:
        if hasattr(hook, "ema_model"):
            found.update({f"ema.{name}": t.clone() for name, t in hook.ema_model.state_dict().items()})
    return found


def assert_same(actual: Dict[str, Tensor], expected: Dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    different = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not different, f"{len(different)} of {len(expected)} tensors differ: {different[:3]}"


def is_deploy_form(names: List[str]) -> bool:
    return not any("branches" in name for name in names)


ITER_BASED = dict(
    train_cfg=dict(by_epoch=False, max_iters=7, val_interval=2),
    train_dataloader=dict(loader(shuffle=True), sampler=dict(type="InfiniteSampler", shuffle=True, seed=3)),
)
SCENARIOS: Dict[str, Dict[str, Any]] = {
    "every epoch": {},
    "every second epoch": dict(train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=2)),
    "iterations": ITER_BASED,
    "EMA": dict(custom_hooks=[dict(type="EMAHook", momentum=0.3)]),
    "EMA of buffers": dict(custom_hooks=[dict(type="EMAHook", momentum=0.3, update_buffers=True)]),
    "EMA registered late": dict(custom_hooks=[dict(type="EMAHook", momentum=0.3, priority="LOWEST")]),
    "AMP": dict(
        optim_wrapper=dict(type=AutocastOptimWrapper, optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
        val_cfg=dict(fp16=True),
    ),
    "Adam": dict(optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.01))),
    "early stopping": dict(
        custom_hooks=[dict(type="EarlyStoppingHook", monitor="logit", patience=1, min_delta=9.0, rule="greater")]
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_training_is_bit_by_bit_what_it_is_without_the_hook(tmp_path: Path, scenario: str) -> None:
    plain, hooked = MeanLogit(), MeanLogit()
    expected = build(tmp_path, hook=False, metric=plain, **SCENARIOS[scenario])
    expected.train()
    assert not any(is_deploy_form(names) for names in EVALUATED)
    EVALUATED.clear()
    runner = build(tmp_path, hook=True, metric=hooked, **SCENARIOS[scenario])
    runner.train()
    assert EVALUATED and all(is_deploy_form(names) for names in EVALUATED)
    EVALUATED.clear()
    assert (runner.epoch, runner.iter) == (expected.epoch, expected.iter)
    assert_same(state(runner), state(expected))
    assert [m.training for m in runner.model.modules()] == [m.training for m in expected.model.modules()]
    # autocast rounds every layer of either form to 8 bits, logits of about 1 whose mean may be near 0
    tolerance = dict(abs=0.02) if scenario == "AMP" else dict(rel=1e-4)
    assert hooked.seen == pytest.approx(plain.seen, **tolerance)


def test_early_stopping_stops_where_it_does_without_the_hook(tmp_path: Path) -> None:
    runner = build(tmp_path, hook=True, **SCENARIOS["early stopping"])
    runner.train()
    assert runner.epoch == 2


def test_the_averaged_weights_are_what_is_evaluated(tmp_path: Path) -> None:
    metric = MeanLogit()
    runner = build(tmp_path, hook=True, metric=metric, custom_hooks=[dict(type="EMAHook", momentum=0.3)])
    runner.train()
    ema = next(hook.ema_model.module for hook in runner.hooks if hasattr(hook, "ema_model"))
    raw = runner.model
    inputs = torch.stack([sample["inputs"] for sample in data()])
    averaged = TinyModel(rdp_backbone())
    averaged.load_state_dict({**raw.state_dict(), **dict(ema.named_parameters())})  # buffers are not averaged
    with torch.no_grad():
        of_average, of_raw = (float(model.eval()(inputs)[:, 0].mean()) for model in (averaged, raw))
    assert metric.seen[-1] == pytest.approx(of_average, rel=1e-4)
    assert abs(metric.seen[-1] - of_raw) > 1e-3 * abs(of_raw)


def test_the_best_checkpoint_is_saved_in_the_train_form(tmp_path: Path) -> None:
    hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1, save_best="logit", rule="greater"))
    saved = []
    for hook in (False, True):
        ema = [dict(type="EMAHook", momentum=0.3)]
        runner = build(tmp_path, hook=hook, default_hooks=hooks, custom_hooks=ema)
        runner.train()
        files = sorted(Path(runner.work_dir).glob("*.pth"))
        saved.append({file.name: torch.load(file, weights_only=True) for file in files})
    assert list(saved[0]) == list(saved[1]) and any(name.startswith("best_logit") for name in saved[0])
    for name in saved[0]:
        assert any("branches" in key for key in saved[1][name]["state_dict"])
        assert_same(saved[1][name]["state_dict"], saved[0][name]["state_dict"])
        assert_same(saved[1][name]["ema_state_dict"], saved[0][name]["ema_state_dict"])


class Killed(BaseException):
    """As if by a signal: no one catches it."""


class KillHook(Hook):
    """Ends the run in the middle of the second epoch."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.epoch == 1 and batch_idx == 2:
            raise Killed


def test_a_run_killed_in_mid_epoch_resumes_to_the_same_end(tmp_path: Path) -> None:
    expected = build(tmp_path, hook=False)
    expected.train()
    checkpoints = dict(checkpoint=dict(type="CheckpointHook", interval=1))
    killed = build(tmp_path, hook=True, default_hooks=checkpoints, custom_hooks=[KillHook()])
    with pytest.raises(Killed):
        killed.train()
    resumed = build(tmp_path, hook=True, default_hooks=checkpoints, work_dir=killed.work_dir, resume=True)
    resumed.train()
    assert resumed.epoch == 3
    assert_same(state(resumed), state(expected))


def test_a_crash_inside_validation_leaves_the_train_form(tmp_path: Path) -> None:
    expected = build(tmp_path, hook=False, train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1))
    expected.train()
    runner = build(tmp_path, hook=True, metric=MeanLogit(crash_at=2))
    model, parameters = runner.model, list(runner.model.parameters())
    with pytest.raises(OSError, match="disk on fire"):
        runner.train()
    assert runner.model is model
    assert all(a is b for a, b in zip(runner.model.parameters(), parameters))
    assert_same(state(runner), state(expected))


def test_synchronised_batch_norms_are_merged_as_others_are(tmp_path: Path) -> None:
    ends = []
    for hook in (False, True):
        runner = build(tmp_path, hook=hook)
        runner.model = nn.SyncBatchNorm.convert_sync_batchnorm(runner.model)  # Runner makes BN of them on one device
        EVALUATED.clear()
        runner.train()
        assert all(is_deploy_form(names) == hook for names in EVALUATED)
        ends.append(state(runner))
    assert_same(ends[1], ends[0])


class FlipTTA(BaseTTAModel):
    """Averages the predictions for a picture and its mirror image."""

    def merge_preds(self, data_samples_list: List[List[Tensor]]) -> List[Tensor]:
        return [torch.stack(list(samples)).mean(0) for samples in data_samples_list]

    def test_step(self, data: Any) -> Any:
        views = [data, dict(data, inputs=data["inputs"].flip(-1))]
        return self.merge_preds(list(zip(*(self.module.test_step(view) for view in views))))


def test_test_time_augmentation_runs_on_the_deploy_form(tmp_path: Path) -> None:
    metrics = []
    for hook in (False, True):
        runner = build(tmp_path, hook=hook)
        runner.model = FlipTTA(module=runner.model)
        EVALUATED.clear()
        metrics.append(runner.test()["logit"])
        assert len(EVALUATED) == 8 and all(is_deploy_form(names) == hook for names in EVALUATED)
        assert not is_deploy_form([name for name, _ in runner.model.named_parameters()])
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4)


def mobileone() -> nn.Module:
    return nn.Sequential(MobileOneBlock(3, 8, 3, stride=2), MobileOneBlock(8, 16, 3, stride=2))


def test_blocks_of_timm_are_reparameterised_too(tmp_path: Path) -> None:
    ends, metrics = [], []
    for hook in (False, True):
        runner = build(tmp_path, hook=hook, backbone=mobileone)
        EVALUATED.clear()
        runner.train()
        assert all(any("reparam_conv" in name for name in names) == hook for names in EVALUATED)
        ends.append(state(runner))
        metrics.append(runner.val()["logit"])
    assert_same(ends[1], ends[0])
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4)


def test_a_model_without_such_blocks_is_evaluated_as_it_is(tmp_path: Path) -> None:
    runner = build(tmp_path, hook=True, backbone=lambda: nn.Conv2d(3, 16, 3))
    assert runner.val()["logit"] == build(tmp_path, hook=False, backbone=lambda: nn.Conv2d(3, 16, 3)).val()["logit"]


class Lossy(nn.Conv2d):
    """A block whose deploy form is a little wrong."""

    def reparameterize(self) -> None:
        self.weight = nn.Parameter(self.weight.detach() * 1.001)


def test_a_difference_above_the_tolerance_stops_the_run(tmp_path: Path) -> None:
    runner = build(tmp_path, hook=True, backbone=lambda: Lossy(3, 16, 3))
    with pytest.raises(RuntimeError, match=r"'backbone' and its deploy form .* accepted are 1e-05"):
        runner.train()


def test_the_first_evaluation_logs_parameters_and_macs_of_both_forms(tmp_path: Path) -> None:
    runner = build(tmp_path, hook=True, log_level="INFO")
    runner.train()
    log = next(Path(runner.log_dir).glob("*.log")).read_text()
    lines = [line for line in log.splitlines() if "M MACs" in line or "M parameters" in line]
    assert len(lines) == 2, log
    # by hand: stem 3->8, module 8->16, both with bias in the deploy form; the head is 16*3+3
    deployed = 8 * (3 * 9 + 1) + 8 * (9 + 1) + 16 * (8 + 1) + 51
    norms = 2 * (2 * 8) + 3 * (2 * 8) + 2 * (2 * 16)
    trained = 8 * 3 * (9 + 1) + 8 * (9 + 1) + 2 * 16 * 8 + norms + 51
    assert f"{trained / 1e6:.3f} M parameters before, {deployed / 1e6:.3f} M after" in lines[0]
    # pictures of 12x12: the stem's map is 6x6, the module's 3x3, where the deploy form does its depthwise work
    before = 36 * 8 * 3 * 10 + 36 * 8 * 10 + 9 * 2 * 16 * 8
    after = 36 * 8 * 3 * 9 + 9 * 8 * 9 + 9 * 16 * 8
    assert f"backbone: {before / 1e6:.1f} M MACs before, {after / 1e6:.1f} M after, at 12x12" in lines[1]


def distributed(rank: int, folder: str, port: int) -> None:
    """One of two processes: trains with and without the hook, and stores where it ends."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    ema = dict(type="EMAHook", momentum=0.3)
    for hook in (False, True):
        EVALUATED.clear()
        runner = build(
            Path(folder), hook=hook, launcher="pytorch", env_cfg=dict(dist_cfg=dict(backend="gloo")), custom_hooks=[ema]
        )
        runner.train()
        assert type(runner.model).__name__ == "MMDistributedDataParallel"
        assert EVALUATED and all(is_deploy_form(names) == hook for names in EVALUATED)
        torch.save(state(runner), f"{folder}/{rank}{hook}.pth")


@pytest.mark.slow
def test_two_processes_train_bit_by_bit_as_without_the_hook(tmp_path: Path) -> None:
    port = 20000 + os.getpid() % 20000
    torch.multiprocessing.start_processes(distributed, args=(str(tmp_path), port), nprocs=2, start_method="spawn")
    ends = {(rank, hook): torch.load(tmp_path / f"{rank}{hook}.pth") for rank in (0, 1) for hook in (False, True)}
    for rank in (0, 1):
        assert_same(ends[rank, True], ends[rank, False])
    weights = [name for name in ends[0, True] if "running" not in name and "ema" not in name]
    assert_same({n: ends[0, True][n] for n in weights}, {n: ends[1, True][n] for n in weights})


@pytest.mark.parametrize("tolerance", [0, -1.0, float("nan")])
def test_a_tolerance_that_accepts_nothing_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match=str(tolerance)):
        ReparameterizeHook(tolerance)
