"""Blocks take the fused step by themselves where it is exact and known, and compute their branches elsewhere."""

import copy
import inspect
import logging
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
from fused_steps import Steps, branch_by_branch, differences, excited, train_step
from timm.layers import SqueezeExcite
from torch import nn

import rdpnet_timm
from rdpnet_timm.blocks import DepthBlock, PointBlock, RDPModule, RepVGGBlock
from rdpnet_timm.fused import conditions


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch)


def module():
    return excited(RDPModule(16, 8))


def images():
    return torch.randn(4, 16, 8, 8)


# where it is taken


def test_a_network_in_training_takes_the_fused_step_in_every_block(steps):
    assert steps.count(timm.create_model("rdpnet_025_cifar").train(), torch.randn(16, 3, 32, 32)) == 41


def test_in_evaluation_and_in_the_deploy_form_no_step_is_taken(steps):
    model = module()
    assert steps.count(model, images()) == 2
    assert steps.count(model.eval(), images()) == 0
    model.reparameterize()
    assert steps.count(model.train(), images()) == 0


def test_an_argument_and_a_function_switch_it(steps):
    model, x = timm.create_model("rdpnet_025_cifar", fused=False).train(), torch.randn(16, 3, 32, 32)
    assert steps.count(model, x) == 0
    assert rdpnet_timm.set_fused(model) is model and steps.count(model, x) == 41
    assert steps.count(rdpnet_timm.set_fused(model, False), x) == 0


def test_a_printed_model_says_which_way_is_taken(monkeypatch):
    block = DepthBlock(8)
    assert "fused=True" in str(block) and "fused=False" in str(rdpnet_timm.set_fused(block, False))
    rdpnet_timm.set_fused(block)
    monkeypatch.setattr(conditions, "is_installed", lambda: False)
    assert "fused=True (but Numba is not installed)" in str(block)
    block.reparameterize()
    assert "fused" not in str(block)


def test_a_tiny_batch_is_computed_branch_by_branch(steps):
    assert steps.count(module(), torch.randn(1, 16, 4, 4)) == 0


def test_a_single_position_is_an_error_in_batch_norms_words():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        module()(torch.randn(1, 16, 1, 1))


# where it is not


class OtherNorm(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    "norm_layer",
    [
        OtherNorm,
        nn.SyncBatchNorm,
        lambda channels, **dd: nn.GroupNorm(1, channels, **dd),
        lambda channels, **dd: nn.BatchNorm2d(channels, affine=False, **dd),
        pytest.param(
            lambda channels, **dd: nn.BatchNorm2d(channels, bias=False, **dd),
            marks=pytest.mark.skipif(
                "bias" not in inspect.signature(nn.BatchNorm2d).parameters, reason="this torch's norms all have shifts"
            ),
        ),
        lambda channels, **dd: nn.BatchNorm2d(channels, track_running_stats=False, **dd),
    ],
)
def test_another_norm_is_computed_branch_by_branch(steps, norm_layer):
    model = RDPModule(16, 8, norm_layer=norm_layer).train()
    if norm_layer is nn.SyncBatchNorm:  # refuses a CPU, and so does not get a map
        assert not model.may_fuse(images())
    else:
        assert steps.count(model, images()) == 0


@pytest.mark.parametrize(
    "name", ["depth", "shuffle", "point", "depth.branches.identity", "point.branches.conv1x1_b.conv"]
)
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_a_hook_is_called(name, kind):
    model, called = module(), []
    getattr(model.get_submodule(name), f"register_{kind}")(lambda *arguments: called.append(name))
    model(images().requires_grad_()).sum().backward()
    assert called == [name]


def test_a_global_hook_is_called():
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(type(module)))
    try:
        module()(images())
    finally:
        handle.remove()
    assert called.count(nn.BatchNorm2d) == 5


def test_norms_frozen_in_evaluation_use_their_running_statistics(steps):
    model = module()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert steps.count(model, images()) == 0
    x = images()
    torch.testing.assert_close(model(x), model.eval()(x))


def test_another_convolution_is_called(steps):
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = module()
    model.point.branches["conv1x1_a"].conv = Doubled(16, 8, 1, bias=False)
    assert steps.count(model, images()) == 1  # the Depth-Block's


def with_other_activations(model):
    model.depth.act, model.point.act = nn.SiLU(), nn.SiLU()


def with_other_borders(model):
    for conv in model.depth.parts()[0] + model.point.parts()[0]:
        conv.padding_mode = "circular"


def with_attention_between(model):
    model.shuffle = nn.Sequential(model.shuffle, SqueezeExcite(16))


def with_a_branch_more(model):
    for block in (model.depth, model.point):
        block.branches["another"] = copy.deepcopy(next(iter(block.branches.values())))


def with_a_longer_branch(model):
    model.depth.branches["conv1x1"].append(nn.Tanh())
    model.point.branches["conv1x1_a"].append(nn.Tanh())


def with_biases(model):
    for conv in model.depth.parts()[0] + model.point.parts()[0]:
        conv.bias = nn.Parameter(torch.ones(conv.out_channels))


def with_forwards_of_their_own(model):
    for norm in model.depth.parts()[1] + model.point.parts()[1]:
        norm.forward = torch.tanh


def with_wrapped_blocks(model):
    model.depth, model.point = nn.Sequential(model.depth, nn.Tanh()), nn.Sequential(model.point, nn.Tanh())


@pytest.mark.parametrize(
    ("change", "fused_blocks"),
    [
        (with_other_activations, 0),
        (with_other_borders, 0),
        (with_attention_between, 2),
        (with_a_branch_more, 0),
        (with_a_longer_branch, 0),
        (with_biases, 0),
        (with_forwards_of_their_own, 0),
        (with_wrapped_blocks, 2),
    ],
    ids=lambda change: getattr(change, "__name__", ""),
)
def test_what_a_user_exchanged_is_called(steps, change, fused_blocks):
    model, x = excited(RDPModule(16, 8, stride=2)), images().double()
    change(model)
    branches = branch_by_branch(model).double()
    assert steps.count(model, x.float()) == fused_blocks
    model = rdpnet_timm.set_fused(copy.deepcopy(branches))
    torch.testing.assert_close(model(x), branches(x), rtol=1e-9, atol=1e-9)
    if change in (with_a_longer_branch, with_biases, with_forwards_of_their_own):
        with pytest.raises(ValueError, match="cannot reparameterise a branch, expected"):
            rdpnet_timm.reparameterize(model)
    else:
        torch.testing.assert_close(rdpnet_timm.reparameterize(model)(x), model.eval()(x), rtol=1e-9, atol=1e-9)


def of_all(**settings):
    """A change of these settings of every convolution of a block or a module."""

    def change(block):
        for conv in [each for each in block.modules() if isinstance(each, nn.Conv2d)]:
            vars(conv).update(settings)

    return change


def of_one(name, **settings):
    return lambda block: vars(block.branches[name].conv).update(settings)


def another(*names, size, **options):
    """An exchange of the convolutions of these branches, of 16 channels, for others."""

    def change(block):
        for name in names:
            conv = nn.Conv2d(16, 16, size, padding=size // 2, bias=False, dtype=torch.float64, **options)
            block.branches[name].conv = conv

    return change


GEOMETRIES = {
    "module, strides": (lambda: RDPModule(16, 16, 2), lambda m: of_all(stride=(2, 1))(m.point), 1),
    "point, strides": (lambda: PointBlock(16, 16, 2), of_all(stride=(2, 1)), 0),
    "stem, strides": (lambda: RepVGGBlock(16, 16), of_all(stride=(2, 1)), 0),
    "stem, one stride": (lambda: RepVGGBlock(16, 16, 1), of_all(stride=(1, 1)), 1),
    "stem, dilation": (lambda: RepVGGBlock(16, 16), of_one("conv3x3", dilation=(2, 2), padding=(2, 2)), 0),
    "depth, dilation": (lambda: DepthBlock(16), of_one("conv3x3", dilation=(2, 2), padding=(2, 2)), 1),
    "depth, dilations": (lambda: DepthBlock(16), of_one("conv3x3", dilation=(1, 2), padding=(1, 2)), 0),
    "depth, stride": (lambda: DepthBlock(16), of_all(stride=(2, 2)), None),
    "point, stride": (lambda: PointBlock(16, 16), of_all(stride=(2, 2)), 1),
    "point, a number": (lambda: PointBlock(16, 16), of_all(stride=2), 0),
    "point, padding": (lambda: PointBlock(16, 16), of_all(padding=(1, 1)), 0),
    "depth, dense 1x1": (lambda: DepthBlock(16), another("conv1x1", size=1), 0),
    "depth, 3x3 for 1x1": (lambda: DepthBlock(16), another("conv1x1", size=3, groups=16), 0),
    "depth, dense 3x3": (lambda: DepthBlock(16), another("conv3x3", size=3), 0),
    "depth, 5x5": (lambda: DepthBlock(16), another("conv3x3", size=5, groups=16), 0),
    "stem, 5x5": (lambda: RepVGGBlock(16, 16, 1), another("conv3x3", size=5), 0),
    "point, groups": (lambda: PointBlock(16, 16), another("conv1x1_a", "conv1x1_b", size=1, groups=2), 0),
    "point, one 3x3": (lambda: PointBlock(16, 16), another("conv1x1_b", size=3), 0),
    "point, the other 3x3": (lambda: PointBlock(16, 16), another("conv1x1_a", size=3), 0),
}


@pytest.mark.parametrize(("make", "change", "fused"), GEOMETRIES.values(), ids=GEOMETRIES)
def test_convolutions_of_another_geometry_are_called(steps, make, change, fused):
    block, x = excited(make()).double(), torch.randn(4, 16, 10, 12, dtype=torch.float64)
    change(block)
    branches = branch_by_branch(block)
    if fused is None:  # branches of different sizes have no sum
        for network in (block, branches):
            with pytest.raises(RuntimeError, match="size of tensor"):
                network(x)
        return
    assert steps.count(copy.deepcopy(block), x) == fused
    gradient = torch.randn_like(copy.deepcopy(branches)(x))
    found = differences(train_step(block, x, gradient), train_step(branches, x, gradient))
    assert max(found.values()) < 1e-9


def test_weights_of_other_shapes_than_their_modules_tell_are_the_branches_to_judge(steps):
    block, x = DepthBlock(16).train(), images()
    block.branches["conv3x3"].conv.weight = nn.Parameter(torch.randn(16, 1, 3, 1))
    with pytest.raises(RuntimeError, match="size of tensor"):
        block(x)
    block = DepthBlock(16).train()
    block.branches["identity"] = nn.BatchNorm2d(8)
    with pytest.raises(RuntimeError, match="running_mean should contain 16 elements not 8"):
        block(x)
    assert not steps.taken


@pytest.mark.parametrize("block", [RepVGGBlock(1, 16), DepthBlock(1), PointBlock(1, 8)], ids=lambda b: type(b).__name__)
def test_maps_of_another_number_of_channels_are_torchs_error(block):
    with torch.no_grad(), pytest.raises(RuntimeError, match="to have 1 channels, but got 3 channels instead"):
        block.train()(torch.randn(4, 3, 32, 32))


def test_whole_numbers_under_autocast_are_torchs_error():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="expected scalar type Byte"):
        DepthBlock(16).train()(torch.ones(4, 16, 16, 16, dtype=torch.uint8))


def test_a_parametrised_weight_is_looked_at_by_its_own_convolution_alone(steps):
    model, x = module(), images()
    for conv in model.depth.parts()[0] + model.point.parts()[0]:
        nn.utils.parametrizations.spectral_norm(conv)  # every look at the weight in training moves its buffers
    branches = branch_by_branch(model)
    assert steps.count(model, x) == 0
    branches(x)
    torch.testing.assert_close(dict(model.named_buffers()), dict(branches.named_buffers()), rtol=0, atol=0)


def test_half_precision_weights_are_computed_branch_by_branch(steps):
    assert steps.count(module().bfloat16(), images().bfloat16()) == 0


def test_images_that_require_a_gradient_get_it(steps):
    stem, x = excited(RepVGGBlock(3, 8)), torch.randn(4, 3, 32, 32, requires_grad=True)
    stem(x).sum().backward()
    assert not steps.taken and x.grad.abs().sum() > 0


def test_script_trace_fx_and_export_of_a_module_in_training_see_its_branches(steps):
    model, x = module(), images()
    expected = branch_by_branch(model)(x)
    for transform in (
        torch.jit.script,
        lambda m: torch.jit.trace(m, x, check_trace=False),
        torch.fx.symbolic_trace,
        lambda m: torch.export.export(m, (x,)).module(),
    ):
        torch.testing.assert_close(transform(copy.deepcopy(model))(x), expected)
    assert not steps.taken


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="torch 2.5 does not say whether it exports: one graph, unfused"
)
def test_a_compiled_network_takes_the_fused_step_outside_of_its_graphs(steps):
    model = excited(nn.Sequential(RepVGGBlock(3, 16), nn.Sequential(RDPModule(16, 8, 2), RDPModule(8, 8)))).double()
    eager, x, gradient = copy.deepcopy(model), torch.randn(4, 3, 32, 32).double(), torch.randn(4, 8, 8, 8).double()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        for network in (compiled, eager):
            network.zero_grad()
            network(x).backward(gradient)
        assert len(steps.taken) == 2 * 5
        steps.taken.clear()
        for found, expected in zip((*model.parameters(), *model.buffers()), (*eager.parameters(), *eager.buffers())):
            pairs = (found, expected) if expected.grad is None else (found.grad, expected.grad)
            torch.testing.assert_close(*pairs, rtol=0, atol=0)


def frozen_in_evaluation(model):
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    return model


@pytest.mark.parametrize("change", [nn.Module.eval, lambda m: rdpnet_timm.set_fused(m, False), frozen_in_evaluation])
def test_what_is_not_fused_is_compiled_as_one_graph(steps, change):
    torch.compiler.reset()
    model, x = change(module()), images()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    assert not steps.taken


def test_functional_transforms_and_forward_derivatives_see_the_branches(steps):
    model, x = module(), images()

    def loss(images):  # the transform refuses a change of buffers that it does not know
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return torch.func.functional_call(model, buffers, (images,)).sum()

    torch.func.grad(loss)(x)
    with torch.autograd.forward_ad.dual_level():
        model(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
    assert not steps.taken


def test_operations_are_counted_branch_by_branch(steps):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        module()(images())
    assert not steps.taken and counter.get_total_flops() == 2 * 256 * (16 * 10 + 2 * 16 * 8)


def test_a_mode_that_looks_at_functions_sees_those_of_the_branches(steps):
    class Counting(torch.overrides.TorchFunctionMode):
        convolutions = 0

        def __torch_function__(self, function, types, arguments=(), options=None):
            self.convolutions += function is torch.conv2d
            return function(*arguments, **(options or {}))

    with Counting() as mode:
        module()(images())
    assert mode.convolutions == 4 and not steps.taken


def test_a_default_device_is_not_where_a_step_is_computed(steps):
    block, x = PointBlock(16, 16, identity=True).train(), images()
    expected = branch_by_branch(block)(x)
    with torch.device("meta"):
        assert steps.count(block, x) == 1
        found = block(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("arguments", [(8, 4, 2, 1, 4), (8, 8, 1, 2, 2, True)])
def test_several_gradients_at_once_are_the_branches_own(steps, arguments):
    model, x = excited(RDPModule(*arguments)).double(), torch.randn(4, 8, 9, 9, dtype=torch.float64)
    found = []
    for block in (model, branch_by_branch(model)):
        inputs = [x.clone().requires_grad_(), *block.parameters()]
        out = block(inputs[0])
        gradients = torch.stack([torch.ones_like(out), out.detach()])

        def backward(gradient, out=out, inputs=inputs):
            return torch.autograd.grad(out, inputs, gradient, retain_graph=True)

        batched = torch.autograd.grad(out, inputs, gradients, retain_graph=True, is_grads_batched=True)
        found.append([*batched, *torch.vmap(backward)(gradients)])
    assert len(steps.taken) == 2 and not any(gradient.requires_grad for gradient in found[0])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7 * b.abs().max().item())


@pytest.mark.parametrize("arguments", [(8, 4, 2, 1, 4), (8, 8, 1, 2, 2, True)])
def test_gradients_of_gradients_are_the_branches_own(steps, arguments):
    model, x = excited(RDPModule(*arguments)).double(), torch.randn(4, 8, 9, 9, dtype=torch.float64)
    found = []
    for block in (model, branch_by_branch(model)):
        images = x.clone().requires_grad_()
        inputs = [images, *block.parameters()]
        gradients = torch.autograd.grad((block(images) ** 2).sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), inputs))
    assert len(steps.taken) == 2
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7 * b.abs().max().item())


def test_gradients_of_gradients_of_the_stem_are_the_branches_own():
    stem, x = excited(RepVGGBlock(3, 8)).double(), torch.randn(4, 3, 20, 20, dtype=torch.float64)
    found = []
    for block in (stem, branch_by_branch(stem)):
        out = block(x)
        gradients = torch.autograd.grad((out * out).sum(), block.parameters(), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), block.parameters()))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7 * b.abs().max().item())


# how a run uses it


def test_a_run_can_go_from_one_way_to_the_other_at_any_step():
    one, other = module().double(), None
    other = branch_by_branch(one)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (one, other)]
    for turn in range(4):
        x = torch.randn(4, 16, 8, 8, dtype=torch.float64)
        rdpnet_timm.set_fused(one, turn % 2 == 0)
        for model, optimizer in zip((one, other), optimizers):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-8, atol=1e-8)


def test_copies_and_pickles_of_a_module_take_the_same_step(steps):
    model = module()
    model(images()).sum().backward()
    x, gradient = images(), torch.randn(4, 8, 8, 8)
    expected = train_step(copy.deepcopy(model), x, gradient)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert max(differences(train_step(twin, x, gradient), expected).values()) == 0
    old = pickle.loads(pickle.dumps(model))
    assert steps.count(old, x) == 2


def test_parameters_without_gradients_get_none():
    model = module().double()
    frozen = [model.depth.branches["conv3x3"].conv.weight, model.point.branches["conv1x1_b"].norm.bias]
    for parameter in frozen:
        parameter.requires_grad_(False)
    x, gradient = images().double(), torch.randn(4, 8, 8, 8, dtype=torch.float64)
    other = branch_by_branch(model)
    found = differences(train_step(model, x, gradient), train_step(other, x, gradient))
    assert max(found.values()) < 1e-9 and all(parameter.grad is None for parameter in frozen)
    model.requires_grad_(False)
    assert not model(images().double()).requires_grad


def test_gradients_accumulate():
    model, x, gradient = module().double(), images().double(), torch.randn(4, 8, 8, 8, dtype=torch.float64)
    model(x).backward(gradient)
    once = [parameter.grad.clone() for parameter in model.parameters()]
    model(x).backward(gradient)
    for parameter, grad in zip(model.parameters(), once):
        torch.testing.assert_close(parameter.grad, 2 * grad)


def test_the_memory_of_parameters_can_be_freed_as_fsdp_does_between_two_uses(steps):
    for block, x in ((module(), images()), (RepVGGBlock(3, 16).train(), torch.randn(4, 3, 16, 16))):
        block(x).sum().backward()
        assert all(parameter.untyped_storage().resizable() for parameter in block.parameters())
    assert len(steps.taken) == 3


def test_gradient_checkpointing_changes_nothing(steps):
    model = excited(timm.create_model("rdpnet_025_cifar")).double()
    other = branch_by_branch(model)
    model.set_grad_checkpointing()  # running statistics are among what is compared
    x, gradient = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.randn(4, 10, dtype=torch.float64)
    found = differences(train_step(model, x, gradient), train_step(other, x, gradient))
    assert max(found.values()) < 1e-8 and steps.taken


@pytest.mark.parametrize(
    "make", [lambda: RDPModule(16, 16, 2), lambda: RDPModule(10, 12), lambda: RepVGGBlock(3, 16)], ids=["16", "10", "3"]
)
def test_what_is_kept_may_come_back_in_another_memory_format(steps, make):
    block = excited(make()).double()
    x = torch.randn(4, block._train_form_args["in_channels"], 12, 10, dtype=torch.float64)
    gradient = torch.randn_like(branch_by_branch(block)(x))
    expected = train_step(copy.deepcopy(block), x, gradient)
    # as torch.autograd.graph.save_on_cpu does
    with torch.autograd.graph.saved_tensors_hooks(
        lambda kept: torch.empty(kept.shape).to(kept).copy_(kept), lambda t: t
    ):
        found = train_step(block, x, gradient)
    assert max(differences(found, expected).values()) == 0 and steps.taken


def test_loops_by_registers_refuse_arrays_that_do_not_lie_in_memory_as_they_walk_them():
    from rdpnet_timm.fused import vector_loops

    maps = torch.ones(1, 16, 2, 2).permute(0, 2, 3, 1).numpy()
    with pytest.raises(Exception, match="expected a C-contiguous one, got array"):
        vector_loops.masked_gradient(0, 1, 0, maps, maps, maps, torch.zeros(1, 16).double().numpy())


def with_strided_scales(model):
    model.depth.branches["identity"].weight = nn.Parameter(torch.rand(32, dtype=torch.float64)[::2])
    model.point.branches["conv1x1_b"].norm.bias = nn.Parameter(torch.rand(32, dtype=torch.float64)[::2])


def with_whole_eps(model):
    model.depth.branches["identity"].eps = model.point.branches["conv1x1_b"].norm.eps = 1


@pytest.mark.parametrize("change", [with_strided_scales, with_whole_eps])
def test_scales_and_eps_may_be_kept_in_any_way(steps, change):
    model, x, gradient = RDPModule(16, 16).double().train(), images().double(), torch.randn(4, 16, 8, 8).double()
    change(model)
    other = branch_by_branch(model)
    found = differences(train_step(model, x, gradient), train_step(other, x, gradient))
    assert max(found.values()) < 1e-9 and len(steps.taken) == 2


def test_maps_that_others_read_have_their_gradients():
    model = excited(timm.create_model("rdpnet_025", features_only=True)).double()
    x, results = torch.randn(4, 3, 64, 64, dtype=torch.float64), []
    for network in (model, branch_by_branch(model)):
        maps = network(x)
        # every map is read twice, once in place of nothing and once by another function, beside the next stage
        sum((each.sigmoid() * each).mean() + each.square().mean() for each in maps).backward()
        results.append({name: p.grad for name, p in network.named_parameters()})
    assert max(differences(*results).values()) < 1e-8


def test_the_threads_do_not_change_the_step():
    model, x, gradient = module().double(), images().double(), torch.randn(4, 8, 8, 8, dtype=torch.float64)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(train_step(copy.deepcopy(model), x, gradient))
    finally:
        torch.set_num_threads(before)
    assert all(max(differences(result, results[0]).values()) < 1e-12 for result in results[1:])


def test_an_error_in_a_part_is_raised_and_a_pool_stands_in_for_openmp(monkeypatch):
    from rdpnet_timm.fused import threads

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for openmp in (threads._openmp(), None):
        monkeypatch.setattr(threads, "_openmp", lambda openmp=openmp: openmp)
        calls = set()
        threads.over_parts(lambda *arguments, calls=calls: calls.add(arguments), 5)
        assert calls - {(0, 0, 0)} == {(0, 2, 0), (2, 5, 1)}

        def fail(start, stop, part):
            if stop > 2:
                raise RuntimeError("in a part")

        with pytest.raises(RuntimeError, match="in a part"):
            threads.over_parts(fail, 5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="for systems that fork")
def test_a_child_process_has_a_pool_of_its_own(monkeypatch):
    from rdpnet_timm.fused import threads

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    threads.over_parts(lambda *arguments: None, 5)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        threads.over_parts(lambda *arguments: os.write(write, b"."), 2)
        os._exit(0)
    for _ in range(500):
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        time.sleep(0.02)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child waits for its parent's threads")
    os.close(write)
    assert os.read(read, 10) == b"..."  # once before the parts, by way of trial
    os.close(read)


# without Numba


def test_a_numba_that_cannot_load_its_library_is_none(monkeypatch, caplog, steps):
    class Broken:
        def find_spec(self, name, *_):
            if name == "rdpnet_timm.fused.step":
                raise OSError("Could not find/load shared object file")

    conditions.load_step.cache_clear()
    monkeypatch.delitem(sys.modules, "rdpnet_timm.fused.step")
    monkeypatch.delattr("rdpnet_timm.fused.step")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with caplog.at_level(logging.WARNING):
        assert steps.count(module(), images()) == 0
    conditions.load_step.cache_clear()
    assert "branch by branch (Could not find/load" in caplog.text


def test_without_numba_training_says_once_what_installing_it_would_bring(monkeypatch, caplog, steps):
    conditions.load_step.cache_clear()
    monkeypatch.setitem(sys.modules, "rdpnet_timm.fused.step", None)
    monkeypatch.delattr("rdpnet_timm.fused.step", raising=False)
    model = module()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert steps.count(model, images()) == 0
    conditions.load_step.cache_clear()
    assert [record.getMessage().count('pip install "rdpnet-timm[fused]"') for record in caplog.records] == [1]


def test_importing_the_package_does_not_import_numba():
    code = "import sys, rdpnet_timm, timm; timm.create_model('rdpnet_025_cifar'); print('numba' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"
