from copy import deepcopy
from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import StdConv2d
from torch import nn
from torch.nn.utils import parametrizations, prune

from rdpnet_timm import RDPNet, reparameterize
from rdpnet_timm.deploy.bias import correct_bias, rounded
from rdpnet_timm.deploy.equalization import (
    NotStraight,
    equalize,
    equalize_activations,
    scale_inputs,
    scale_outputs,
    straight_path,
)
from rdpnet_timm.deploy.normalize import fold_normalization
from rdpnet_timm.measure.difference import randomize_norms
from rdpnet_timm.measure.forms import fold_norms
from rdpnet_timm.reparam import Kernel


def deployed(dtype=torch.float64, **kwargs):
    model = RDPNet(0.25, strides=(1, 1, 2, 2, 2), num_classes=5, **kwargs)
    return reparameterize(randomize_norms(model).to(dtype)).eval().requires_grad_(False)


def frozen():
    return nn.Conv2d(3, 4, 1).requires_grad_(False)


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_scaled_kernels_are_convolutions_between_scaled_channels(groups):
    weight, bias = torch.randn(12, 6 // groups, 3, 3).double(), torch.randn(12).double()
    x = torch.randn(2, 6, 7, 7).double()
    into, out = torch.rand(6).double() + 0.5, torch.rand(12).double() + 0.5
    kernel = scale_outputs(scale_inputs(Kernel(weight, bias), into, groups), out)
    expected = F.conv2d(x * into.view(1, -1, 1, 1), weight, bias, groups=groups) * out.view(1, -1, 1, 1)
    assert relative(F.conv2d(x, *kernel, groups=groups), expected) < 1e-14


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equalisation_leaves_the_outputs(dtype, bound):
    model = deployed(dtype)
    x = torch.randn(2, 3, 16, 16, dtype=dtype)
    equalized = equalize(model).model
    assert not torch.equal(equalized.stem.reparam_conv.weight, model.stem.reparam_conv.weight)
    assert relative(equalized(x), model(x)) < bound


def test_a_converged_equalisation_gives_a_channel_one_range_on_both_its_sides():
    model = deployed()
    equalized = equalize(model, tolerance=1e-3)
    convs = [module for module in equalized.model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 41 and equalized.largest_change < 1e-3

    def disagreement(network):
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        worst = 1.0
        for first, second in pairwise(layers):
            for channel in range(first.out_channels):
                made = first.weight[channel].abs().max()
                read = (second.weight[channel] if second.groups > 1 else second.weight[:, channel]).abs().max()
                worst = max(worst, (made / read).item(), (read / made).item())
        return worst

    before, after = disagreement(model), disagreement(equalized.model)
    assert before > 20 and after < 1.01, (before, after)


@pytest.mark.parametrize("equalized", [lambda m, x: equalize(m).model, equalize_activations], ids=["weights", "both"])
def test_a_row_of_zeros_changes_nothing_for_the_other_channels(equalized):
    model = deployed()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    point = model.stages[1][2].point.reparam_conv
    point.weight[3] = 0.0
    found = equalized(model, x)
    assert all(tensor.isfinite().all() for tensor in found.state_dict().values())
    assert relative(found(x), model(x)) < 1e-12
    ratio = (found.stages[1][2].point.reparam_conv.weight / point.weight)[0]
    assert ratio.std() > 1e-3, "the other columns are still equalised, each by its own factor"


def test_every_step_stays_on_the_models_device():
    # what is made without a device would land on the default one, here one that cannot meet the model's
    model, x = deployed(torch.float32), torch.randn(2, 3, 16, 16)
    expected = [equalize(model).model, equalize_activations(model, x), correct_bias(model, x)]
    expected.append(fold_normalization(model, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 255, "map", (16, 16)))
    with torch.device("meta"):
        found = [equalize(model).model, equalize_activations(model, x), correct_bias(model, x)]
        found += [
            fold_normalization(model, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 255, border, (16, 16))
            for border in ("subtract", "pad", "map")
        ]
    for ours, theirs in zip(expected[:3] + expected[3:], found[:3] + found[-1:]):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_is_equalised_there():
    model, x = deployed(torch.float32).cuda(), torch.randn(2, 3, 16, 16)
    for found in (equalize(model).model, equalize_activations(model, x), correct_bias(model, x)):
        assert all(tensor.is_cuda and tensor.isfinite().all() for tensor in found.state_dict().values())


def test_equalised_weights_lose_less_to_one_scale_a_layer():
    def error(network):
        """Root mean square of the output's error when every layer's weights are rounded to 255 levels."""
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        expected = network(x)
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    step = module.weight.abs().max() / 127
                    module.weight.copy_((module.weight / step).round() * step)
        return ((network(x) - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()

    model = deployed()
    equalized = equalize(model).model
    before, after = error(model), error(equalized)
    assert after < before / 2, (before, after)


def test_equalised_activations_lose_less_to_one_scale_a_layer():
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)

    def error(network):
        """Root mean square of the output's error when every activation behind a ReLU is rounded to 256 levels."""
        expected = network(images)
        hooks = []
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                hooks.append(module.register_forward_hook(lambda m, i, x: (x / x.max() * 255).round() / 255 * x.max()))
        rounded = network(images)
        for hook in hooks:
            hook.remove()
        return ((rounded - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()

    model = deployed()
    equalized = equalize_activations(model, images)
    assert relative(equalized(images), model(images)) < 1e-12
    before, after = error(model), error(equalized)
    assert after < before / 1.5, (before, after)


def test_a_dead_channel_stays_dead_and_finite():
    model = deployed()
    model.stem.reparam_conv.weight[3] = 0
    model.stages[0][0].point.reparam_conv.weight[:, 5] = 0
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert relative(equalize(model).model(x), model(x)) < 1e-12
    assert relative(equalize_activations(model, x)(x), model(x)) < 1e-12


@pytest.mark.parametrize("left", [0.0, 1e-15, 1e-5], ids=str)
def test_what_reads_a_channel_that_is_a_constant_gets_a_range_like_any_other(left):
    model = deployed()
    first, second = straight_path(model)[:2]
    # as training leaves a channel whose weights decayed: one value, and a tiny variance behind it
    with torch.no_grad():
        first.weight[1] *= left / first.weight[1].abs().max()
        first.bias[1] = 0.7
        second.weight[1] *= 500 / second.weight[1].abs().max()
    x = torch.randn(2, 3, 32, 32).double()
    equalized = equalize(model).model
    assert relative(equalized(x), model(x)) < 1e-9
    first, second = straight_path(equalized)[:2]
    weights = second.weight.flatten(1).abs().amax(1)
    assert weights[1].item() == pytest.approx(first.bias[1].item(), rel=2e-2)
    assert weights[1] < 30  # of 500, the other part being the constant's


def test_any_straight_path_will_do():
    path = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, groups=4), nn.LeakyReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3),
    ).double().eval()  # fmt: skip
    path[8].weight.data[:, 2] *= 100
    x = torch.randn(2, 3, 12, 12).double()
    assert relative(equalize(path).model(x), path(x)) < 1e-13
    assert len(straight_path(path)) == 4


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: timm.create_model("resnet10t"), "BatchNorm2d"),
        (lambda: timm.create_model("rdpnet_025_cifar"), "branches at"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 3, 1)), "ReLU6"),
        (lambda: nn.Sequential(*[nn.Conv2d(3, 3, 1)] * 2), "twice"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)), "inputs"),
        (lambda: nn.Sequential(StdConv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)), "'_0' computes its weights"),
        (lambda: nn.Sequential(prune.l1_unstructured(frozen(), "weight", 0.5)), r"prune\.remove"),
        (lambda: nn.Sequential(prune.l1_unstructured(frozen(), "bias", 0.5)), r"prune\.remove"),
        (lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 1))), "remove_parametrizations"),
    ],
)
def test_a_model_that_is_no_straight_path_is_refused_by_the_place_where_it_branches(model, named):
    with pytest.raises(NotStraight, match=named):
        equalize(model())


def test_the_given_model_stays_unless_inplace():
    model = deployed()
    weight = model.stem.reparam_conv.weight.clone()
    equalize(model)
    assert torch.equal(model.stem.reparam_conv.weight, weight)
    assert equalize(model, inplace=True).model is model
    assert not torch.equal(model.stem.reparam_conv.weight, weight)


@pytest.mark.parametrize("steps", [127, 64])
@pytest.mark.parametrize("per_channel", [True, False])
def test_corrected_biases_take_back_the_mean_error_of_rounded_weights(steps, per_channel):
    conv = nn.Conv2d(6, 4, 1).double().requires_grad_(False)
    images = torch.rand(8, 6, 5, 5).double() + 1  # of a mean far from zero
    expected = conv(images).mean((0, 2, 3))
    corrected = correct_bias(nn.Sequential(conv), images, False, steps, per_channel)[0]
    step = conv.weight.abs().amax((1, 2, 3) if per_channel else (0, 1, 2, 3), keepdim=True) / steps

    def mean_error(bias):
        return (F.conv2d(images, (conv.weight / step).round() * step, bias).mean((0, 2, 3)) - expected).abs().max()

    assert mean_error(conv.bias) > 1e-4
    assert mean_error(corrected.bias) < 1e-12


def test_layers_in_front_of_a_norm_are_corrected_as_if_it_were_folded():
    net = nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False))
    net = randomize_norms(net).double().eval().requires_grad_(False)
    images = torch.rand(40, 6, 5, 5).double() + 1  # more than are computed at once
    corrected = correct_bias(net, images)
    assert net[0].bias is None
    folded = correct_bias(fold_norms(deepcopy(net), images[:1]), images)
    assert relative(corrected(images), folded(images)) < 1e-12
    assert relative(corrected(images), net(images)) > 1e-5


def test_standardised_weights_are_not_corrected_for_a_rounding_that_is_not_theirs():
    net = nn.Sequential(StdConv2d(6, 4, 1, bias=True)).eval()
    assert torch.equal(correct_bias(net, torch.rand(2, 6, 5, 5))[0].bias, net[0].bias)


def test_images_are_taken_a_few_at_a_time():
    model, images = deployed(), torch.randn(40, 3, 16, 16).double()
    seen = []
    model.stem.reparam_conv.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    equalize_activations(model, images)
    correct_bias(model, images)
    assert sum(seen) == 80 and max(seen) <= 16


@pytest.mark.parametrize("border", ["subtract", "map"])
def test_biases_are_corrected_for_the_weights_that_folded_normalisation_leaves(border):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 16, 3, 2, 1).double().requires_grad_(False)
    mean, std = (0.5, 0.4, 0.3), (0.3, 0.2, 0.1)
    pixels = torch.rand(8, 3, 32, 32).double() * 25
    folded = fold_normalization(nn.Sequential(conv), mean, std, 255, border, (32, 32)).requires_grad_(False)

    def mean_error(model):
        model = deepcopy(model)
        model[0].conv.weight.copy_(rounded(model[0].conv.weight))
        return (model(pixels) - folded(pixels))[:, :, 1:-1, 1:-1].mean((0, 2, 3)).abs().max()

    assert mean_error(correct_bias(folded, pixels)) < mean_error(folded) / 4
