"""The fused train step is the branches' own step: output, every gradient and every running statistic."""

import copy
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from fused_steps import branch_by_branch, differences, excited, train_step
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from rdpnet_timm.blocks import DepthBlock, PointBlock, RDPModule, RepVGGBlock, set_fused
from rdpnet_timm.fused import conditions, products, step, tiles

WIDTHS = ("025", "050", "075", "100", "125", "150")
FORMATS = st.sampled_from([torch.contiguous_format, torch.channels_last])
# the 1x1 depthwise weight's gradient is nearly nothing (see the last test): what is left of two large numbers
NETWORK = 1e-8  # 41 blocks in training amplify a difference in the last digit a hundredfold
NOISE = "depth.branches.conv1x1.conv.weight"


@pytest.fixture(autouse=True)
def every_shape_is_fused(monkeypatch):
    monkeypatch.setattr(conditions, "SMALLEST", 2)


@pytest.fixture(params=[True, False], ids=["tiles", "no tiles"])
def with_tiles(request, monkeypatch):
    """Products of bfloat16 maps in AMX tiles, where the CPU has them, and as on CPUs that have none."""
    if not request.param:
        monkeypatch.setattr(tiles, "are_usable", lambda: False)
    elif not tiles.are_usable():
        pytest.skip("for a CPU with AMX")


@pytest.mark.parametrize(
    ("features", "system", "answer", "usable"),
    [
        ({"amx-tile", "amx-bf16"}, "Linux", 0, True),
        ({"amx-tile", "amx-bf16"}, "Linux", -1, False),  # an old kernel, or a sandbox
        ({"amx-tile", "amx-bf16"}, "Windows", 0, False),
        ({"amx-tile", "amx-int8"}, "Linux", 0, False),
    ],
)
def test_tiles_are_used_where_linux_gives_them(features, system, answer, usable, monkeypatch):
    asked = []
    monkeypatch.setattr(tiles, "HAS_BFLOAT16", True)
    monkeypatch.setattr(tiles, "FEATURES", frozenset(features))
    monkeypatch.setattr(tiles.platform, "system", lambda: system)
    libc = SimpleNamespace(syscall=lambda *arguments: asked.append(arguments) or answer)
    monkeypatch.setattr(tiles.ctypes, "CDLL", lambda name: libc)
    assert tiles.are_usable.__wrapped__() is usable
    assert asked in ([], [(158, 0x1023, 18)]) and bool(asked) == (system == "Linux" and "amx-bf16" in features)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def steps_agree(module, x, gradient, tolerance=1e-9):
    other = branch_by_branch(module)
    for _ in range(2):  # running statistics move twice
        found = differences(train_step(module, x, gradient), train_step(other, x, gradient))
    worst = max(found, key=lambda name: 0 if name.endswith(NOISE) else found[name])
    assert found[worst] <= tolerance, (worst, found[worst])


def test_a_comparison_of_steps_sees_nan_wherever_it_is():
    numbers = {"output": torch.ones(3), "gradient": torch.ones(3)}
    for name in numbers:
        broken = {**numbers, name: torch.tensor([1, torch.nan, 1])}
        for pair in ((broken, numbers), (numbers, broken), (broken, broken)):
            assert max(differences(*pair).values()) == torch.inf


def set_norms(module, zero_scales, momentum):
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = momentum
            if zero_scales:
                with torch.no_grad():
                    norm.weight[::2] = 0


def random_map(n, channels, height, width, memory_format):
    return torch.randn(n, channels, height, width, dtype=torch.float64).contiguous(memory_format=memory_format)


@settings(max_examples=60)
@given(
    in_channels=st.sampled_from([1, 2, 3, 7, 8, 12, 16, 20, 32]),
    out_channels=st.sampled_from([1, 5, 8, 16, 24]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 1, 2, 3]),
    groups=st.sampled_from([0, 1, 2, 4]),
    identity=st.booleans(),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    formats=st.tuples(FORMATS, FORMATS),
    zero_scales=st.booleans(),
    momentum=st.sampled_from([0.1, None]),
    threads=st.sampled_from([1, 2]),
)
@example(8, 8, 1, 1, 2, True, (1, 1, 2), (torch.channels_last,) * 2, False, 0.1, 1)
@example(16, 24, 2, 2, 4, False, (2, 9, 7), (torch.contiguous_format,) * 2, True, None, 2)
def test_a_module_by_the_fused_step_is_the_module_by_its_branches(
    in_channels, out_channels, stride, dilation, groups, identity, shape, formats, zero_scales, momentum, threads
):
    groups = groups if groups < 2 or in_channels % groups == 0 else 0
    out_channels = in_channels if identity else out_channels
    n, height, width = shape
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    if n * rows * columns < 2:
        n = 2
    torch.manual_seed(0)
    module = excited(RDPModule(in_channels, out_channels, stride, dilation, groups, identity, dtype=torch.float64))
    set_norms(module, zero_scales, momentum)
    # ReLU has no derivative at 0; random numbers do not meet it. Of two values a batch norm leaves only signs, so that
    # gradients are differences of what is equal but for eps: shapes of so few positions are compared loosely.
    tolerance = 1e-9 if n * rows * columns >= 8 else 1e-6
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, gradient = (
            random_map(n, in_channels, height, width, formats[0]),
            random_map(n, out_channels, rows, columns, formats[1]),
        )
        steps_agree(module, x, gradient, tolerance)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=25)
@given(
    in_channels=st.sampled_from([1, 2, 3, 4, 9]),
    out_channels=st.sampled_from([1, 6, 16]),
    stride=st.sampled_from([1, 2]),
    shape=st.tuples(st.integers(1, 4), st.integers(3, 9), st.integers(3, 9)),
    formats=st.tuples(FORMATS, FORMATS),
)
def test_the_stem_by_the_fused_step_is_the_stem_by_its_branches(in_channels, out_channels, stride, shape, formats):
    n, height, width = shape
    torch.manual_seed(0)
    stem = excited(RepVGGBlock(in_channels, out_channels, stride, dtype=torch.float64))
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    x, gradient = (
        random_map(n, in_channels, height, width, formats[0]),
        random_map(n, out_channels, rows, columns, formats[1]),
    )
    steps_agree(stem, x, gradient, 1e-9 if n * rows * columns >= 8 else 1e-6)


@pytest.mark.parametrize("block", [lambda: DepthBlock(16, dilation=2), lambda: PointBlock(16, 8, stride=2)])
def test_a_block_alone_is_fused_as_well(block):
    module = excited(block()).double()
    x = random_map(3, 16, 7, 8, torch.contiguous_format)
    steps_agree(module, x, torch.randn_like(module(x)))


@pytest.mark.parametrize("name", [f"rdpnet_{width}{form}" for width in WIDTHS for form in ("", "_cifar")])
def test_a_network_takes_the_same_step_either_way(name):
    model = excited(timm.create_model(name, num_classes=7)).double()
    size = 17 if name.endswith("cifar") else 65
    x, gradient = torch.randn(3, 3, size, size, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    steps_agree(model, x, gradient, NETWORK)


@pytest.mark.parametrize(
    "options",
    [{"in_chans": 1}, {"in_chans": 5}, {"output_stride": 8}, {"shuffle_groups": 0, "pointwise_identity": True}],
    ids=str,
)
def test_a_variant_takes_the_same_step_either_way(options):
    model = excited(timm.create_model("rdpnet_025", num_classes=7, **options)).double()
    x = torch.randn(4, options.get("in_chans", 3), 64, 48, dtype=torch.float64)
    steps_agree(model, x, torch.randn(4, 7, dtype=torch.float64), NETWORK)


def gradient_errors(model, exact, x, labels):
    """Error of the loss and of every parameter's gradient against those of ``exact``, a twin in float64."""
    losses = []
    for network, images in ((model, x), (exact, x.double())):
        network.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        losses.append(loss.item())
    parameters = dict(exact.named_parameters())
    errors = {
        name: ((p.grad.double() - parameters[name].grad).norm() / parameters[name].grad.norm()).item()
        for name, p in model.named_parameters()
        if not name.endswith(NOISE)
    }
    return abs(losses[0] - losses[1]), torch.tensor(list(errors.values())).sort().values  # NaN comes last


@pytest.mark.slow
def test_a_networks_float32_errors_are_at_most_twice_the_branches_own():
    # 64 pictures: naive float32 sums over so many positions would show, which no test of a small block does
    ours, theirs = [], []
    for seed in range(3):  # a ReLU that opens by a rounding changes much: one seed says little
        torch.manual_seed(seed)
        model = timm.create_model("rdpnet_025_cifar").train()
        x, labels = torch.randn(64, 3, 32, 32) + 0.5, torch.randint(0, 10, (64,))
        exact = branch_by_branch(model).double()
        for errors, network in ((ours, model), (theirs, branch_by_branch(model))):
            loss, of_gradients = gradient_errors(network, exact, x, labels)
            errors.append((loss, of_gradients[len(of_gradients) // 2], of_gradients[-1]))
    ours, theirs = torch.tensor(ours).mean(0), torch.tensor(theirs).mean(0)
    assert (ours <= 2 * theirs + torch.tensor([1e-6, 0, 0])).all(), (ours, theirs)


def relative_errors(module, exact, x, gradient, dtype):
    """Errors of output, input gradient and gradients under autocast, against those of ``exact``, a twin in float64."""
    results = []
    for network, images in ((module, x), (exact, x.double())):
        images = images.clone().requires_grad_()
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=network is module):
            out = network(images)
        assert network is exact or out.dtype == dtype
        out.backward(gradient.to(out.dtype))
        found = {name: p.grad for name, p in network.named_parameters() if not name.endswith(NOISE)}
        results.append({"output": out.detach(), "input": images.grad, **found})
    assert all(results[0][name].dtype == torch.float32 for name in results[0] if name != "output")
    return {name: ((results[0][name].double() - b).norm() / b.norm()).item() for name, b in results[1].items()}


@pytest.mark.parametrize("kept", ["tiles", "registers", "float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("arguments", [(16, 32, 2), (32, 48, 1, 2), (64, 64), (32, 20)], ids=str)
def test_under_autocast_errors_are_no_larger_than_the_branches_own(monkeypatch, arguments, dtype, kept):
    # one module and not a network: in bfloat16 a network of 41 blocks in training leaves nothing of a gradient
    if kept == "registers":
        monkeypatch.setattr(tiles, "are_usable", lambda: False)
    if kept == "float32":
        monkeypatch.setattr(step, "HAS_BFLOAT16", False)
    totals = [0.0, 0.0]
    for seed in range(3):  # a ReLU that opens by a rounding changes much: one seed says little
        torch.manual_seed(seed)
        module = excited(RDPModule(*arguments))
        x = torch.randn(32, arguments[0], 9, 7).relu()
        gradient = torch.randn_like(branch_by_branch(module)(x))
        exact = branch_by_branch(module).double()
        for i, network in enumerate((module, branch_by_branch(module))):
            errors = relative_errors(network, exact, x, gradient, dtype)
            assert errors["output"] < 0.01 and max(errors.values()) < 0.3, errors
            totals[i] += sum(errors.values())
    assert totals[0] <= totals[1]


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 7), (1, 4, 8), (2, 16, 9), (5, 15, 17)])
@pytest.mark.parametrize("channels", [(16, 16), (32, 48), (64, 16), (80, 64)])
def test_products_of_bfloat16_maps_are_summed_as_those_of_float32(shape, channels, threads, with_tiles):
    if not step.HAS_BFLOAT16:
        pytest.skip("for a CPU with AVX512_BF16")
    n, height, width = shape
    a, b = (torch.randn(n, height, width, c).bfloat16().permute(0, 3, 1, 2) for c in channels)
    matrices = [products.rows(x).double() for x in (a, b)]
    gram, sums = map(torch.from_numpy, products.moments(a))
    outer = torch.from_numpy(products.outer_sums(a, b))
    for actual, expected in (
        (gram.triu(), (matrices[0].t() @ matrices[0]).triu()),
        (sums, matrices[0].sum(0)),
        (outer, matrices[0].t() @ matrices[1]),
    ):
        assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
    weights = [torch.randn(c, 48).bfloat16().float() for c in channels]
    bias = torch.randn(48)
    out = products.rows(products.pointwise((a, b), weights, bias))
    expected = bias + sum(x @ weight.double() for x, weight in zip(matrices, weights))
    assert out.dtype == torch.bfloat16
    assert ((out - expected).abs() <= 0.005 * expected.abs() + 1e-4).all()  # half of the last of bfloat16's eight bits


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 3, 2), (5, 1, 1)])
def test_a_step_in_bfloat16_of_few_positions_is_that_of_its_branches(shape):
    n, height, width = shape
    module, x = excited(RDPModule(16, 32, stride=8)), torch.randn(n, 16, height, width)
    exact = branch_by_branch(module).double()
    gradient = torch.randn_like(exact(x.double()))
    errors = relative_errors(module, exact, x, gradient, torch.bfloat16)
    assert errors["output"] < 0.02


def test_a_step_in_bfloat16_keeps_its_maps_in_it():
    if not step.HAS_BFLOAT16:
        pytest.skip("for a CPU with AVX512_BF16")
    saved, module, x = [], RDPModule(16, 32).train(), torch.randn(4, 16, 8, 8)
    keep = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    )
    with keep, torch.autocast("cpu", torch.bfloat16):
        module(x)
    assert {tensor.dtype for tensor in saved if tensor.dim() == 4 and tensor.shape[0] == 4} == {torch.bfloat16}


def test_the_1x1_branch_is_the_identity_branch_again():
    # BN(s x) and BN(x) differ by the sign of s, and by eps: what the branch adds is a second scale and shift
    block = excited(DepthBlock(6)).double()
    with torch.no_grad():
        block.branches["conv1x1"].conv.weight.uniform_(0.5, 2).mul_(torch.tensor([1, -1] * 3).view(-1, 1, 1, 1))
    x = torch.randn(8, 6, 9, 9, dtype=torch.float64)
    one_by_one, identity = block.branches["conv1x1"], copy.deepcopy(block.branches["identity"])
    identity.load_state_dict(one_by_one.norm.state_dict())
    sign = one_by_one.conv.weight.sign().view(1, -1, 1, 1)
    scale, shift = identity.weight.view(1, -1, 1, 1), identity.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(one_by_one(x) - shift, sign * (identity(x) - shift), rtol=1e-4, atol=1e-4)
    out = set_fused(block, True)(x)
    out.backward(torch.randn_like(out))
    gradient, centre = one_by_one.conv.weight.grad, block.branches["conv3x3"].conv.weight.grad[:, :, 1:2, 1:2]
    assert scale.abs().min() > 1e-3 and gradient.abs().max() < 1e-3 * centre.abs().max()
