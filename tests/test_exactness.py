"""The train form is the paper's formula written out, and the deploy form is the same function: over widths, forms,
ablations, input channels, output strides, dtypes and the states that batch norms get into."""

from typing import Any, Callable, Dict

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import rdpnet_timm
from rdpnet_timm.blocks import DepthBlock, PointBlock, RDPModule, RepVGGBlock
from rdpnet_timm.measure.difference import randomize_norms

WIDTHS = {"025": 0.25, "050": 0.5, "075": 0.75, "100": 1.0, "125": 1.25, "150": 1.5}


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    assert torch.isfinite(expected).all()
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def paper_forward(weights: Dict[str, Tensor], x: Tensor, strides: "tuple[int, ...]", shuffle_groups: int) -> Tensor:
    """RDPNet's train form in evaluation, written out from the paper: Table 2 and Figure 3a."""

    def norm(y: Tensor, name: str) -> Tensor:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
        column = (1, -1, 1, 1)
        return (y - mean.view(column)) / (variance.view(column) + 1e-5).sqrt() * scale.view(column) + shift.view(column)

    def branch(y: Tensor, name: str, **options: Any) -> Tensor:
        return norm(F.conv2d(y, weights[f"{name}.conv.weight"], **options), f"{name}.norm")

    y = branch(x, "stem.branches.conv3x3", stride=strides[0], padding=1)
    y = torch.relu(y + branch(x, "stem.branches.conv1x1", stride=strides[0]))
    for stage, depth in enumerate((1, 4, 14, 1)):
        for index in range(depth):
            stride = strides[stage + 1] if index == 0 else 1
            depthwise, pointwise = (f"stages.{stage}.{index}.{name}.branches" for name in ("depth", "point"))
            channels = y.shape[1]
            y = torch.relu(
                branch(y, f"{depthwise}.conv3x3", padding=1, groups=channels)
                + branch(y, f"{depthwise}.conv1x1", groups=channels)
                + norm(y, f"{depthwise}.identity")
            )
            if shuffle_groups > 1:
                n, _, h, w = y.shape
                y = y.reshape(n, shuffle_groups, -1, h, w).transpose(1, 2).reshape(n, channels, h, w)
            total = branch(y, f"{pointwise}.conv1x1_a", stride=stride) + branch(
                y, f"{pointwise}.conv1x1_b", stride=stride
            )
            if f"{pointwise}.identity.weight" in weights:
                total = total + norm(y, f"{pointwise}.identity")
            y = torch.relu(total)
    return F.linear(y.mean((2, 3)), weights["head.weight"], weights["head.bias"])


@pytest.mark.parametrize("form", ["", "_cifar"])
@pytest.mark.parametrize(
    "options", [{}, {"shuffle_groups": 4}, {"shuffle_groups": 0}, {"pointwise_identity": True}], ids=str
)
def test_the_train_form_is_the_papers_formula(form: str, options: Dict[str, Any]) -> None:
    model = randomize_norms(timm.create_model(f"rdpnet_050{form}", **options)).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    strides = (1, 1, 2, 2, 2) if form else (2, 2, 2, 2, 2)
    with torch.no_grad():
        expected = paper_forward(model.state_dict(), x, strides, options.get("shuffle_groups", 2))
        assert relative_difference(model(x), expected) <= 1e-12


def test_the_identity_ablation_adds_a_branch_only_where_shapes_allow_it() -> None:
    for form, expected in (("", 3 + 13), ("_cifar", 1 + 3 + 13)):  # in the CIFAR form stage 1 is 64 -> 64 at stride 1
        model = timm.create_model(f"rdpnet_100{form}", pointwise_identity=True)
        names = [name for name in model.state_dict() if name.endswith("point.branches.identity.weight")]
        assert len(names) == expected, names


@st.composite
def cases(draw: st.DrawFn) -> Dict[str, Any]:
    form = draw(st.sampled_from(["", "_cifar"]))
    return {
        "name": f"rdpnet_{draw(st.sampled_from(sorted(WIDTHS)))}{form}",
        "shuffle_groups": draw(st.sampled_from([0, 1, 2, 4])),
        "pointwise_identity": draw(st.booleans()),
        "single_branch": draw(st.sampled_from([False, False, True])),
        "in_chans": draw(st.sampled_from([1, 3, 5])),
        "output_stride": draw(st.sampled_from([8] if form else [8, 16, 32])),
        "seed": draw(st.integers(0, 1000)),
    }


def rdpnet(case: Dict[str, Any], decades: float) -> "tuple[nn.Module, Tensor]":
    """The case's model, its norms random, and images for it."""
    options = {
        key: case[key] for key in ("shuffle_groups", "pointwise_identity", "single_branch", "in_chans", "output_stride")
    }
    model = randomize_norms(timm.create_model(case["name"], **options), case["seed"], decades)
    generator = torch.Generator().manual_seed(case["seed"])
    return model.eval(), torch.randn(2, case["in_chans"], 32, 48, generator=generator)


@pytest.mark.slow
@settings(max_examples=20)
@given(cases(), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_deploy_form_is_the_same_function(case: Dict[str, Any], decades: float) -> None:
    model, x = rdpnet(case, decades)
    with torch.no_grad():
        single = relative_difference(rdpnet_timm.reparameterize(model)(x), model(x))
        model, x = model.double(), x.double()
        double = relative_difference(rdpnet_timm.reparameterize(model)(x), model(x))
    assert double <= 1e-12, f"float64: {double:.2e}"
    assert single <= 1e-5, f"float32: {single:.2e}"


@settings(max_examples=8)
@given(cases(), st.sampled_from([0.0, 6.0]))
def test_each_module_is_exact_on_what_reaches_it_where_one_batch_set_the_statistics(
    case: Dict[str, Any], decades: float
) -> None:
    # Statistics of two small images, dead channels among them, and wild scales: such a network amplifies rounding from
    # module to module until neither form's last digits mean anything, so each module is compared on its own input.
    model, x = rdpnet(case, decades)
    model, x = model.double(), x.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    modules = [model.stem, *(module for stage in model.stages for module in stage)]
    with torch.no_grad():
        model.train()(x)
        model.eval()
        for index, module in enumerate(modules):
            expected = module(x)
            difference = relative_difference(rdpnet_timm.reparameterize(module)(x), expected)
            assert difference <= 1e-12, f"module {index}: {difference:.2e}"
            x = expected


@settings(max_examples=60)
@given(
    st.sampled_from([torch.float64, torch.float32]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0, 2, 4]),
    st.booleans(),
    st.sampled_from([0.0, 4.0, 12.0]),
    st.integers(0, 1000),
)
def test_a_module_stays_the_same_function_whatever_its_norms_hold(
    dtype: torch.dtype, stride: int, dilation: int, groups: int, identity: bool, decades: float, seed: int
) -> None:
    module = RDPModule(8, 8, stride, dilation, groups, identity).to(dtype).eval()
    randomize_norms(module, seed, decades)
    x = torch.randn(2, 8, 13, 10, dtype=dtype)
    with torch.no_grad():
        expected = module(x)
        module.reparameterize()
        difference = relative_difference(module(x), expected)
    assert difference <= (1e-12 if dtype == torch.float64 else 1e-5), f"{difference:.2e}"


@pytest.mark.parametrize(
    "block",
    [RepVGGBlock(3, 8, 2), DepthBlock(8, 2), PointBlock(8, 8, 1, True), PointBlock(8, 6, 2)],
    ids=["stem", "depth", "point, identity", "point, stride 2"],
)
def test_each_block_converts_alone_and_only_once(block: nn.Module) -> None:
    randomize_norms(block).double().eval()
    x = torch.randn(2, next(block.parameters()).shape[1] if isinstance(block, RepVGGBlock) else 8, 9, 9).double()
    with torch.no_grad():
        expected = block(x)
        block.reparameterize()
        convolution = block.reparam_conv
        block.reparameterize()
        assert block.reparam_conv is convolution and block.branches is None
        assert relative_difference(block(x), expected) <= 1e-12


@pytest.mark.parametrize("mode", [True, False])
def test_conversion_gives_the_evaluation_function_whatever_mode_the_model_is_in(mode: bool) -> None:
    model = randomize_norms(timm.create_model("rdpnet_025_cifar")).double()
    x = torch.randn(2, 3, 32, 32).double()
    with torch.no_grad():
        expected = model.eval()(x)
        deployed = rdpnet_timm.reparameterize(model.train(mode))
        assert relative_difference(deployed(x), expected) <= 1e-12
    assert all(module.training == mode for module in deployed.modules()), "conversion keeps the mode"


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_computes_the_strided_maps_and_the_positions_between(output_stride: int) -> None:
    # A trous: without a stride, what the strided network computes stands at every (32 / output_stride)-th position.
    strided = randomize_norms(timm.create_model("rdpnet_050")).double().eval()
    dilated = timm.create_model("rdpnet_050", output_stride=output_stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    x, step = torch.randn(1, 3, 96, 128).double(), 32 // output_stride
    with torch.no_grad():
        expected = strided.forward_features(x)
        for model in (dilated, rdpnet_timm.reparameterize(dilated)):
            maps = model.forward_features(x)
            assert maps.shape[-2:] == (96 // output_stride, 128 // output_stride)
            assert relative_difference(maps[..., ::step, ::step], expected) <= 1e-12


def test_the_deploy_form_is_one_path() -> None:
    for name in ("rdpnet_025", "rdpnet_025_cifar", "rdpnet_125"):
        size = timm.get_pretrained_cfg(name).input_size
        model = rdpnet_timm.reparameterize(timm.create_model(name)).eval()
        graph = torch.export.export(model, (torch.randn(1, *size),)).graph
        calls = [node for node in graph.nodes if node.op == "call_function"]
        images = next(node for node in graph.nodes if node.name == "x")
        operators = [str(node.target).split(".")[1].rstrip("_") for node in calls]
        flatten = "view" if torch.__version__.startswith("2.5") else "flatten"
        assert operators == ["conv2d", "relu"] * 41 + ["adaptive_avg_pool2d", flatten, "linear"], name
        for previous, node in zip([images, *calls], calls):
            others = [arg for arg in node.all_input_nodes if not arg.name.startswith("p_")]
            assert others == [previous], f"{name}: {node} does not take the output of {previous} alone"


def test_the_stride_sits_on_the_depthwise_convolution() -> None:
    deployed = rdpnet_timm.reparameterize(timm.create_model("rdpnet_025"))
    strides = [
        (module.depth.reparam_conv.stride, module.point.reparam_conv.stride)
        for stage in deployed.stages
        for module in stage
    ]
    assert strides == [((2, 2), (1, 1)) if index in (0, 1, 5, 19) else ((1, 1), (1, 1)) for index in range(20)]


@pytest.mark.parametrize("kwargs", [{}, {"inference_mode": True}], ids=["converted", "built"])
def test_timms_own_tool_alone_gives_the_whole_deploy_form(kwargs: Dict[str, Any]) -> None:
    model = randomize_norms(timm.create_model("rdpnet_025_cifar", **kwargs))
    deployed = timm.utils.reparameterize_model(model)
    assert not any(isinstance(m, (nn.BatchNorm2d, rdpnet_timm.blocks.ChannelShuffle)) for m in deployed.modules())
    again = timm.utils.reparameterize_model(deployed)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_difference(deployed.eval()(x), model.eval()(x)) <= 1e-5
        assert torch.equal(again(x), deployed(x)), "converting twice changes nothing"


def test_conversion_keeps_dtype_memory_format_gradients_and_hooks() -> None:
    model = timm.create_model("rdpnet_025").to(torch.bfloat16, memory_format=torch.channels_last)
    model.stem.requires_grad_(False)
    calls: list[nn.Module] = []
    model.head.register_forward_hook(lambda module, *_: calls.append(module))
    deployed = rdpnet_timm.reparameterize(model)
    for convolution in (m for m in deployed.modules() if isinstance(m, nn.Conv2d)):
        assert convolution.weight.dtype == convolution.bias.dtype == torch.bfloat16
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(parameter.requires_grad for parameter in deployed.stem.parameters())
    assert all(parameter.requires_grad for parameter in deployed.stages.parameters())
    deployed(torch.randn(1, 3, 64, 64, dtype=torch.bfloat16))
    assert calls == [deployed.head]
    assert model.stem.branches is not None, "the model itself is untouched"
    assert rdpnet_timm.reparameterize(model, inplace=True) is model and model.stem.branches is None


def test_a_norm_without_running_statistics_is_refused() -> None:
    model = timm.create_model(
        "rdpnet_025", norm_layer=lambda *a, **k: nn.BatchNorm2d(*a, track_running_stats=False, **k)
    )
    with pytest.raises(ValueError, match="running statistics"):
        rdpnet_timm.reparameterize(model)


def _with_another_convolution(block: PointBlock) -> None:
    block.branches["conv1x1_a"].conv = timm.layers.StdConv2d(8, 8, 1)


def _with_a_larger_convolution(block: PointBlock) -> None:
    block.branches["conv1x1_b"].conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)


def _with_a_convolution_wrapped(block: PointBlock) -> None:
    conv = block.branches["conv1x1_a"].conv
    wrapper = nn.Sequential(conv, nn.Tanh())
    wrapper.weight = conv.weight
    block.branches["conv1x1_a"].conv = wrapper


def _with_a_bias(block: PointBlock) -> None:
    block.branches["conv1x1_a"].conv.bias = nn.Parameter(torch.ones(8))


def _with_a_hook(block: PointBlock) -> None:
    block.branches["conv1x1_a"].register_forward_hook(lambda module, inputs, output: output * 2)


def _with_a_hook_before(block: PointBlock) -> None:
    block.branches["identity"].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def _with_fake_quantisation(block: PointBlock) -> None:
    block.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    torch.ao.quantization.prepare_qat(block, inplace=True)


def _with_activations_in_the_norms(block: PointBlock) -> None:
    block.branches["identity"] = timm.layers.BatchNormAct2d(8)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize(
    "change",
    [
        _with_another_convolution,
        _with_a_larger_convolution,
        _with_a_convolution_wrapped,
        _with_a_bias,
        _with_a_hook,
        _with_a_hook_before,
        _with_fake_quantisation,
        _with_activations_in_the_norms,
    ],
)
def test_a_branch_that_computes_something_else_is_refused(change: Callable[[PointBlock], None]) -> None:
    block = PointBlock(8, 8, identity=True)
    change(block)
    with pytest.raises(ValueError, match="cannot reparameterise a branch, expected"):
        block.reparameterize()


def _with_weights_normalised(block: PointBlock) -> None:
    nn.utils.parametrizations.weight_norm(block.branches["conv1x1_a"].conv)


def _with_weights_pruned(block: PointBlock) -> None:
    conv = block.branches["conv1x1_a"].conv
    prune.l1_unstructured(conv, "weight", 0.5)
    with torch.no_grad():
        conv.weight_orig.mul_(2)  # as a step of an optimiser or a checkpoint does: no forward pass in between


def _with_frozen_norms(block: PointBlock) -> None:
    block.branches["conv1x1_a"].norm = timm.layers.convert_sync_batchnorm(block.branches["conv1x1_a"].norm)
    block.branches["conv1x1_b"] = timm.layers.freeze_batch_norm_2d(block.branches["conv1x1_b"])


@pytest.mark.parametrize("change", [_with_weights_normalised, _with_weights_pruned, _with_frozen_norms])
def test_other_ways_to_the_same_weights_and_norms_are_merged(change: Callable[[PointBlock], None]) -> None:
    block = randomize_norms(PointBlock(8, 8, identity=True)).eval().requires_grad_(False)
    change(block)
    deployed = rdpnet_timm.reparameterize(block)
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        assert relative_difference(deployed(x), block(x)) <= 1e-5


def test_a_hooked_shuffle_stays_and_the_blocks_beside_it_are_merged():
    model = randomize_norms(timm.create_model("rdpnet_025_cifar", num_classes=10)).eval()
    model.stages[2][0].shuffle.register_forward_hook(lambda module, inputs, output: 2 * output)
    deployed, x = rdpnet_timm.reparameterize(model), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        assert (deployed(x) - expected).abs().max() < 1e-4 * expected.abs().max()
    changed = deployed.stages[2][0]
    assert not changed.is_deployed and changed.depth.is_deployed and changed.point.is_deployed
    assert rdpnet_timm.verify(model, deployed).relative < 1e-5
