"""What a step of training costs, in time and in memory."""

import importlib.util

import pytest
import torch
from torch import nn

from rdpnet_timm import cli
from rdpnet_timm.bench import peers, training


def test_single_branches_leave_the_convolutions_of_the_deploy_form():
    single = training.entries(training.Setting(0.25, (3, 32, 32), 16))[0].build()
    deployed = peers.rdpnet(0.25, strides=(1, 1, 2, 2, 2), inference_mode=True)
    kernels = [
        sorted(tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Conv2d))
        for model in (single, deployed)
    ]
    assert kernels[0] == kernels[1]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in single.modules()) == 41


def test_mobileone_at_224_is_itself_without_the_convolutions_that_crash():
    ours, x = training.entries(training.Setting(1.0, (3, 224, 224), 16))[-1].build(), torch.randn(2, 3, 64, 64)
    theirs = peers.timm_model("mobileone_s0")
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    strided = [module for module in ours.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)]
    assert all(
        type(module) is not nn.Conv2d for module in strided if module.in_channels < 16 and module.stride > (1, 1)
    )


def test_settings_of_training_are_selected_by_width_size_and_batch():
    assert training.select() == training.SETTINGS
    assert training.select([0.25], [32], [128]) == (training.Setting(0.25, (3, 32, 32), 128),)
    assert {each.batch for each in training.select(sizes=[32], batches=[16, 32])} == {16, 32}
    with pytest.raises(ValueError, match=r"widths any, sizes \[224\], batches \[128\]; there are: 32 pixels, batch 16"):
        training.select(sizes=[224], batches=[128])


def test_training_is_measured_in_the_settings_and_precisions_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_precisions", lambda device: [torch.float32, torch.bfloat16])
    monkeypatch.setattr(training, "entries", lambda setting, device: built.append(setting) or [])
    built, runs = [], []
    monkeypatch.setattr(training, "measure_run", lambda result, steps, turn, **facts: runs.append(facts))
    arguments = [
        "bench",
        "training",
        "--widths",
        "1.0",
        "--sizes",
        "32",
        "--precision",
        "bfloat16",
        "-o",
        str(tmp_path),
    ]
    assert cli.main(arguments) == 0
    assert [(each.width, each.batch) for each in built] == [(1.0, 16), (1.0, 32), (1.0, 128)]
    assert {(facts["precision"], facts["threads"]) for facts in runs} == {("bfloat16", 1)}


def test_a_fused_step_is_named_where_there_is_one(monkeypatch):
    setting = training.Setting(0.25, (3, 32, 32), 16)
    for device, fused in (("cpu", 1), ("cuda", 0)):
        assert sum("fused" in entry.name for entry in training.entries(setting, device)) == fused
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find_spec(name))
    with pytest.raises(ImportError, match="the table training needs numba: pip install"):
        training.require_training(["float32"])


def test_peak_memory_is_that_of_the_tensors_alive_together():
    def step():
        first = torch.empty(1_000_000)
        del first
        second, third = torch.empty(2_000_000), torch.empty(500_000)
        return second, third

    assert training.peak_of_step(step) == 10_000_000


def test_a_training_step_does_all_of_its_work_and_can_be_repeated():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(2, 3, 8, 8))
    before, steps = model[0].weight.clone(), model[1].num_batches_tracked.item()
    step = training.training_step(model, 2, (3, 8, 8))
    step(), step()
    assert model[1].num_batches_tracked.item() == steps + 2
    assert all(parameter.grad.abs().max() > 0 for parameter in (model[0].weight, model[3].weight))
    assert torch.equal(model[0].weight, before)  # the batch is not learnt
