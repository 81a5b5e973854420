"""What an accelerator has to compute as a CPU does; skipped where there is none.

``RDPNET_TEST_DEVICE=cpu`` runs the same tests on a CPU, to see that they work before a GPU is at hand.
"""

import os
import subprocess
import sys
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import rdpnet_timm
from rdpnet_timm.blocks import set_fused
from rdpnet_timm.fused import conditions
from rdpnet_timm.measure.difference import randomize_norms
from rdpnet_timm.train import RECIPES, Images, Job, Result, Run, train_together
from rdpnet_timm.train.recorded import Recorded, update
from rdpnet_timm.train.trainer import compile_model

DEVICE = os.environ.get("RDPNET_TEST_DEVICE", "cuda")
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

CONFIGS = Path(__file__).parents[1] / "mm_configs" / "demo"


@pytest.fixture(autouse=True)
def exact_products():
    """No TF32, which rounds products to ten bits of mantissa."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before)


def gradients(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> dict:
    F.cross_entropy(model(x), labels).backward()
    return {name: parameter.grad.double().cpu() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", timm.list_models("rdpnet*"))
def test_both_forms_are_one_function(name):
    model = randomize_norms(timm.create_model(name, num_classes=10)).to(DEVICE)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        trained = model.to(dtype).eval()
        deployed = rdpnet_timm.reparameterize(trained)
        assert next(deployed.parameters()).device.type == DEVICE
        x = torch.randn(2, *model.pretrained_cfg["input_size"], device=DEVICE, dtype=dtype)
        with torch.no_grad():
            expected = trained(x)
            difference = (deployed(x) - expected).abs().max() / expected.abs().max()
        assert difference < bound, f"{name} in {dtype}: {difference:.1e}"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_training_step_has_the_gradients_of_the_cpu_in_float64(memory_format):
    reference = timm.create_model("rdpnet_025_cifar", num_classes=10).double().train()
    model = timm.create_model("rdpnet_025_cifar", num_classes=10).double().train()
    model.load_state_dict(reference.state_dict())
    model = model.to(DEVICE, memory_format=memory_format)
    x, labels = torch.randn(16, 3, 32, 32, dtype=torch.float64), torch.arange(16) % 10
    expected = gradients(reference, x, labels)
    found = gradients(model, x.to(DEVICE, memory_format=memory_format), labels.to(DEVICE))
    for gradient, reference_gradient in ((found[name], expected[name]) for name in expected):
        torch.testing.assert_close(gradient, reference_gradient, rtol=1e-8, atol=1e-10)
    for buffer, reference_buffer in zip(model.buffers(), reference.buffers()):
        torch.testing.assert_close(buffer.cpu(), reference_buffer, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_under_autocast_is_near_that_in_float64(dtype):
    model = timm.create_model("rdpnet_025_cifar", num_classes=10).to(DEVICE, memory_format=torch.channels_last).train()
    exact = timm.create_model("rdpnet_025_cifar", num_classes=10).double()
    exact.load_state_dict(model.state_dict())
    x, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    with torch.autocast(DEVICE, dtype):
        loss = F.cross_entropy(model(x.to(DEVICE, memory_format=torch.channels_last)), labels.to(DEVICE))
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    expected = F.cross_entropy(exact.train()(x.double()), labels)
    assert abs(loss.item() - expected.item()) < 0.05 * expected.item()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, {"pointwise_identity": True}], ids=["RDPNet", "identity in PW"])
def test_a_compiled_step_is_that_of_the_branches(arguments, monkeypatch):
    monkeypatch.setattr(conditions, "IN_GRAPH", (DEVICE,))
    monkeypatch.setattr("rdpnet_timm.train.trainer.IN_GRAPH", (DEVICE,))
    monkeypatch.setattr(conditions, "IS_INSTALLED", False)  # nor by the loops for a CPU
    branches = timm.create_model("rdpnet_025_cifar", num_classes=10, **arguments).double()
    branches = set_fused(branches.to(DEVICE, memory_format=torch.channels_last).train(), False)
    compiled = set_fused(deepcopy(branches), True)
    x, labels = torch.randn(8, 3, 32, 32, dtype=torch.float64, device=DEVICE), torch.arange(8, device=DEVICE)
    expected = gradients(branches, x, labels)
    found = gradients(compile_model(compiled, "default"), x, labels)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9)
    for buffer, reference in zip(compiled.buffers(), branches.buffers()):
        torch.testing.assert_close(buffer, reference, rtol=1e-9, atol=1e-11)


def test_recorded_calls_are_calls():
    """Of a small network that learns from random numbers, with other seeds and other rates in every call."""

    def learn(calls_it: Callable[[Recorded], None]) -> torch.Tensor:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))
        network = network.double().to(DEVICE, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
        generator, rate = torch.Generator(DEVICE), torch.zeros((), device=DEVICE)

        def step() -> None:
            x = torch.rand(16, 3, 8, 8, generator=generator, device=DEVICE).double()
            x = x.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            F.cross_entropy(network(x), torch.arange(16, device=DEVICE) % 4).backward()
            update(optimizer, rate) if optimizer.state else optimizer.step()

        recorded = Recorded(step, [generator], enabled=DEVICE == "cuda")
        wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
        wait()  # for what the default stream has begun
        with torch.cuda.stream(torch.cuda.Stream()) if DEVICE == "cuda" else nullcontext():
            for number in range(12):
                generator.manual_seed(number)
                rate.fill_(0.1 / (1 + number))
                calls_it(recorded)
        wait()
        assert calls_it is not Recorded.__call__ or DEVICE != "cuda" or recorded.graph is not None
        return torch.cat([value.double().flatten().cpu() for value in network.state_dict().values()])

    found, expected = learn(Recorded.__call__), learn(lambda recorded: recorded.function())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_runs_together_see_what_they_see_alone(tmp_path):
    """By their running statistics, at a learning rate at which weights do not move: what steps amplify is left out."""
    data = tuple(
        Images(torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8), torch.arange(count) % 4, tuple("0123"))
        for count in (320, 100)
    )
    recipe = replace(RECIPES["ours"], epochs=2, batch_size=32, cutout=4, learning_rate=1e-12)

    def job(name: str, seed: int) -> Job:
        return Job(Run("rdpnet_025_cifar", recipe, seed, device=DEVICE), data, tmp_path / f"{name}{seed}")

    def statistics(result: Result) -> torch.Tensor:
        return torch.cat([value.double().flatten().cpu() for value in result.model.buffers()])

    together = [statistics(result) for result in train_together([job("together", seed) for seed in range(3)])]
    for seed, found in enumerate(together):
        (alone,) = train_together([job("alone", seed)])
        torch.testing.assert_close(found, statistics(alone), rtol=1e-3, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.01


@pytest.mark.parametrize("options", [["--amp"], ["--amp", "--compile"]], ids=["amp", "amp and compile"])
def test_the_trainer_runs_and_evaluates_both_forms(tmp_path, options):
    command = ["train", "digits", "-o", tmp_path, "--recipe", "demo", "--epochs", "0.2", "--device", DEVICE, *options]
    done = subprocess.run([sys.executable, "-m", "rdpnet_timm.cli", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "weights.safetensors").is_file()


def test_two_runs_share_the_device(tmp_path):
    command = ["table", "8", "digits", "-o", tmp_path, "--jobs", "2", "--recipe", "demo", "--epochs", "0.05"]
    command += ["--model", "rdpnet_025_cifar", "--device", DEVICE]
    done = subprocess.run([sys.executable, "-m", "rdpnet_timm.cli", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "not run" not in done.stdout


def test_the_stand_in_for_mmcvs_operators_computes_as_on_the_cpu():
    pytest.importorskip("mmdet")
    from mmcv import ops

    import rdpnet_timm.openmmlab  # noqa: F401  provides it

    corners = torch.rand(200, 2) * 60
    boxes, scores = torch.cat([corners, corners + 2 + 25 * torch.rand(200, 2)], 1), torch.rand(200)
    kept = ops.nms(boxes.to(DEVICE), scores.to(DEVICE), 0.5)[1].cpu()
    assert torch.equal(kept, ops.nms(boxes, scores, 0.5)[1])

    maps = torch.randn(1, 8, 32, 32)
    rois = torch.cat([torch.zeros(20, 1), boxes[:20]], 1)
    here, there = maps.clone().requires_grad_(), maps.to(DEVICE).requires_grad_()
    expected = ops.RoIAlign((7, 7), 0.25, 2)(here, rois)
    found = ops.RoIAlign((7, 7), 0.25, 2)(there, rois.to(DEVICE))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    expected.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=1e-3, atol=1e-4)


STEPS = {
    "mmdet": (
        "faster_rcnn_rdpnet075_sample.py",
        "train_cfg.max_epochs=1",
        "train_dataloader.dataset.dataset.indices=8",
    ),
    "mmsegmentation": (
        "deeplabv3plus_rdpnet075_sample.py",
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=2",
        "param_scheduler.0.end=1",
        "param_scheduler.1.begin=1",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("package", STEPS)
def test_openmmlabs_configs_take_a_step(tmp_path, package):
    pytest.importorskip("mim")
    from rdpnet_timm.demo.sample_voc import make_sample_voc

    config, *options = STEPS[package]
    env = {**os.environ, "VOCDEVKIT": str(make_sample_voc(tmp_path, images=45))}
    command = ["-m", "mim", "train", package, str(CONFIGS / config), "--work-dir", str(tmp_path / "work")]
    command += ["--cfg-options", *options]
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
