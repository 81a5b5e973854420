"""verify() measures what it says, and leaves the models as they were."""

import copy
import math
import os
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from rdpnet_timm import Verification, reparameterize, verify
from rdpnet_timm.deploy.calibration import Preprocessing
from rdpnet_timm.measure.difference import Difference, compare_outputs, randomize_norms


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> "dict[str, list[torch.Tensor]]":
        return {"maps": [x, x * self.factor]}


def test_it_finds_the_largest_difference_in_any_output() -> None:
    x = torch.tensor([[1.0, -4.0]]).reshape(1, 2, 1, 1)
    found = verify(Scaled(2.0), Scaled(2.5), x)
    assert (found.max_difference, found.max_output, found.relative) == (2.0, 8.0, 0.25)
    assert (
        str(found)
        == "outputs differ by at most 2.00e+00, which is 2.50e-01 of the largest, 8.00e+00 (1x2x1x1, float32)"
    )


def test_it_compares_in_evaluation_and_restores_every_mode() -> None:
    model = timm.create_model("rdpnet_025_cifar", drop_rate=0.5).train()
    model.stem.eval()
    modes = [module.training for module in model.modules()]
    assert verify(model, model).max_difference == 0, "dropout and batch statistics are off"
    assert [module.training for module in model.modules()] == modes
    assert verify(model, model).input_shape == (2, 3, 32, 32)
    assert verify(timm.create_model("rdpnet_025_cifar", in_chans=1), timm.create_model("rdpnet_025_cifar", in_chans=1))


def hiding(dead: "list[int]") -> nn.Module:
    """A network in which three channels of a middle module stay dead on all but huge inputs."""
    model = randomize_norms(timm.create_model("rdpnet_025_cifar"), decades=0.3).eval()
    with torch.no_grad():
        for norm in (m for m in model.stages[2][5].depth.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.bias[dead] = -20.0
    return model


def test_scrambled_columns_that_no_image_excites_are_found() -> None:
    dead = [3, 17, 40]
    model = hiding(dead)
    deployed = reparameterize(model)
    good = verify(model, deployed)
    assert good.parts == 21 and good.relative <= 1e-6, good
    with torch.no_grad():
        weight = deployed.stages[2][5].point.reparam_conv.weight
        weight[:, dead] = weight[:, dead].roll(1, 0)
    assert compare_outputs(model, deployed).relative <= 1e-5, "the damage must be one that images do not show"
    found = verify(model, deployed)
    assert found.relative > 1e-2 and found.worst_part == "stages.2.5", found
    with pytest.raises(RuntimeError, match=r"not the same function.*'stages\.2\.5'"):
        found.require(1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["stem.reparam_conv.weight", "stages.3.0.point.reparam_conv.bias", "head.weight"])
def test_one_number_that_is_none_is_found_anywhere(where: str, value: float) -> None:
    model = randomize_norms(timm.create_model("rdpnet_025_cifar"), decades=0.3)
    deployed = reparameterize(model)
    with torch.no_grad():
        deployed.get_parameter(where).flatten()[-1] = value
    with pytest.raises(RuntimeError, match=r"nan|inf"):
        verify(model, deployed).require(1e3)


def test_a_number_that_is_none_is_found_in_any_output() -> None:
    x = torch.ones(1, 2, 1, 1)
    for factor in (math.nan, math.inf):
        found = verify(Scaled(2.0), Scaled(factor), x)  # the first output is the same in both
        assert not found.relative <= 1e9, found
    model = timm.create_model("rdpnet_025_cifar", features_only=True)
    deployed = reparameterize(model)
    with torch.no_grad():
        deployed.stages_3[0].point.reparam_conv.weight[0] = math.nan
    for compare in (verify, compare_outputs):
        with pytest.raises(RuntimeError, match="nan"):
            compare(model, deployed).require(1e3)
    logits = torch.randn(4, 3).numpy()
    broken = logits.copy()
    broken[2, 1] = math.nan
    assert Difference.between(logits, broken).largest == math.inf == Difference.between(broken, broken).rms


def test_a_changed_weight_outside_the_converted_parts_is_found() -> None:
    model = timm.create_model("rdpnet_025_cifar")
    deployed = reparameterize(model)
    with torch.no_grad():
        deployed.head.weight[3, 100] *= 1.01
    found = verify(model, deployed)
    assert 1e-3 < found.relative <= 1e-2 and found.worst_part == "head.weight", found


def test_forms_in_half_precision_differ_by_its_rounding_alone() -> None:
    model = randomize_norms(timm.create_model("rdpnet_025_cifar"), decades=0.3)
    for dtype, rounding in ((torch.float16, 2**-10), (torch.bfloat16, 2**-7)):
        found = verify(model, reparameterize(model).to(dtype).float())
        assert found.largest_of_parts <= rounding, found


def test_a_model_beside_itself_or_a_wrapper_has_no_converted_part() -> None:
    model = timm.create_model("rdpnet_025_cifar").eval()
    deployed = reparameterize(model)
    assert verify(model, model).parts == verify(deployed, deployed).parts == 0
    assert verify(model, torch.compile(deployed, backend="eager")).parts == 21
    traced = torch.jit.trace(deployed, torch.randn(2, 3, 32, 32))
    assert verify(model, traced).relative <= 1e-5


def test_it_leaves_no_hook_and_no_changed_weight_behind() -> None:
    model = timm.create_model("rdpnet_025_cifar")
    deployed = reparameterize(model)
    before = copy.deepcopy((model.state_dict(), deployed.state_dict()))
    verify(model, deployed)
    for form, state in zip((model, deployed), before):
        assert not any(module._forward_pre_hooks for module in form.modules())
        assert all(torch.equal(tensor, state[name]) for name, tensor in form.state_dict().items())


@pytest.mark.parametrize("name", ["mobileone_s0", "repghostnet_050", "fastvit_t8", "levit_128s"])
def test_other_networks_are_compared_part_by_part_too(name: str) -> None:
    model = timm.create_model(name).eval()
    found = verify(model, reparameterize(model), torch.randn(1, 3, *timm.get_pretrained_cfg(name).input_size[1:]))
    assert found.parts > 10 and found.relative <= 1e-5, found


def test_models_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 10\).*\(2, 3\)"):
        verify(timm.create_model("rdpnet_025_cifar"), timm.create_model("rdpnet_025_cifar", num_classes=3))


@pytest.mark.parametrize(("difference", "largest"), [(2e-5, 1.0), (math.nan, 1.0), (1.0, math.nan), (1.0, 0.0)])
def test_a_difference_above_the_tolerance_or_no_number_is_not_accepted(difference: float, largest: float) -> None:
    with pytest.raises(RuntimeError, match="not the same function"):
        Verification(difference, largest, (1, 3, 8, 8), torch.float32).require(1e-5)
    Verification(1e-6, 1.0, (1, 3, 8, 8), torch.float32).require(1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that can be left with its settings")
def test_switches_of_tf32_come_back_by_whichever_name_they_were_set() -> None:
    """In processes of their own: some settings cannot be undone, and some make the older names unreadable."""
    code = """
import os
import torch
from torch.backends import cuda, cudnn
from rdpnet_timm.measure.difference import without_tf32

older = [(cudnn, "allow_tf32"), (cuda.matmul, "allow_tf32")]
cases = [("pass", older), ("cudnn.allow_tf32 = False", older), ("cuda.matmul.allow_tf32 = True", older)]
if is_new := hasattr(cudnn, "conv"):
    newer = [(each, "fp32_precision") for each in (torch.backends, cudnn.conv, cuda.matmul)]
    cases += [(f"{each}.fp32_precision = 'tf32'", newer) for each in ("torch.backends", "cuda.matmul", "cudnn.conv")]
    cases += [("cudnn.conv.fp32_precision = 'ieee'", newer)]
for setting, switches in cases:
    if os.fork() == 0:
        exec(setting)
        before = [getattr(*switch) for switch in switches]
        with without_tf32():
            exact = [cudnn.conv.fp32_precision, cuda.matmul.fp32_precision] if is_new else cudnn.allow_tf32
            assert exact == (["ieee", "ieee"] if is_new else False), (setting, exact)
        assert [getattr(*switch) for switch in switches] == before, setting
        os._exit(0)
    assert os.wait()[1] == 0, setting
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_default_device_is_none_of_its_business() -> None:
    model = timm.create_model("rdpnet_025_cifar", num_classes=10)
    deployed = timm.utils.reparameterize_model(model)
    with torch.device("meta"):
        assert verify(model, deployed).parts and verify(model, deployed, torch.ones(1, 3, 32, 32, device="cpu")).parts
        pixels = torch.ones(1, 3, 4, 4, device="cpu")
        assert Preprocessing.of(model).normalize(pixels).device.type == "cpu"
