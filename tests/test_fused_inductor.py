"""The blocks as torch.compile finds them on a GPU, against their branches, here on a CPU."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from rdpnet_timm.blocks import DepthBlock, PointBlock, RDPModule, set_fused
from rdpnet_timm.fused import conditions, inductor
from rdpnet_timm.measure.difference import randomize_norms


def assert_same_step(module: nn.Module, branches: nn.Module, found: torch.Tensor, x: torch.Tensor) -> None:
    """Outputs, gradients of input and parameters, and buffers, of ``branches`` computed one by one and of ``found``."""
    other = x.detach().clone().requires_grad_()
    expected = branches(other)
    gradient = torch.randn_like(expected)
    found.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-8, atol=1e-11)
    for (name, ours), theirs in zip(module.named_parameters(), branches.parameters()):
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-8, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )
    for (name, ours), theirs in zip(module.named_buffers(), branches.buffers()):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


def in_training(module: nn.Module) -> nn.Module:
    return set_fused(randomize_norms(module.double().to(memory_format=torch.channels_last)).train(), False)


def images(channels: int, height: int, width: int) -> torch.Tensor:
    x = torch.randn(3, channels, height, width, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize(("dilation", "size"), [(1, (7, 5)), (2, (6, 6)), (4, (5, 9)), (1, (1, 1))])
def test_the_depth_block(dilation, size):
    block = in_training(DepthBlock(6, dilation))
    branches, x = deepcopy(block), images(6, *size)
    assert_same_step(block, branches, block.compiled_forward(x), x)


@pytest.mark.parametrize("arguments", [{}, {"stride": 2}, {"identity": True}, {"single_branch": True}], ids=str)
def test_the_point_block(arguments):
    block = in_training(PointBlock(6, 6, **arguments))
    branches, x = deepcopy(block), images(6, 7, 5)
    assert_same_step(block, branches, block.compiled_forward(x), x)


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="torch 2.5 does not say whether it exports: branches"
)
@pytest.mark.parametrize("arguments", [{}, {"stride": 2}, {"single_branch": True}], ids=str)
def test_torch_compile_finds_them(arguments, monkeypatch):
    calls = []
    for name in ("depth", "point"):
        function = getattr(inductor, name)
        monkeypatch.setattr(inductor, name, lambda *args, f=function, n=name: calls.append(n) or f(*args))
    monkeypatch.setattr(conditions, "IN_GRAPH", ("cpu",))
    monkeypatch.setattr(conditions, "IS_INSTALLED", False)  # whose loops would be left out of the graph
    module = in_training(RDPModule(4, 8, **arguments))
    branches, x = deepcopy(module), images(4, 6, 6)
    set_fused(module, True)
    found = torch.compile(module, backend="aot_eager")(x)
    # one branch is no sum: its convolution stays what it is
    assert calls == (["point"] if "single_branch" in arguments else ["depth", "point"])
    assert_same_step(module, branches, found, x)


@pytest.mark.slow
def test_torch_compile_calls_what_a_user_exchanged(monkeypatch):
    monkeypatch.setattr(conditions, "IN_GRAPH", ("cpu",))
    monkeypatch.setattr(conditions, "IS_INSTALLED", False)
    for name in ("depth", "point"):
        monkeypatch.setattr(inductor, name, lambda *args: pytest.fail("must not be called"))
    module, x = RDPModule(4, 8).train(), torch.randn(2, 4, 6, 6)
    seen = []
    module.depth.act = nn.SiLU()
    module.point.branches["conv1x1_a"].norm.register_forward_hook(lambda *_: seen.append(True))
    expected = deepcopy(module)(x)
    torch.testing.assert_close(torch.compile(module, backend="aot_eager")(x), expected)
    assert len(seen) == 2
    with pytest.raises((ValueError, torch._dynamo.exc.TorchRuntimeError)):  # batch norm's, of a single position
        torch.compile(PointBlock(4, 8).train(), backend="eager")(x[:1, :, :1, :1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block", [DepthBlock(8), PointBlock(8, 16, identity=True), PointBlock(8, 8, identity=True)])
def test_under_autocast_statistics_are_taken_in_float32(block, dtype):
    block = set_fused(randomize_norms(block).train(), False)
    branches, exact = deepcopy(block), deepcopy(block).double()
    x = 300 * torch.randn(4, 8, 16, 16).to(dtype)  # squares of which float16 does not hold
    expected = exact(x.double())
    with torch.autocast("cpu", dtype):
        found, other = block.compiled_forward(x), branches(x)
    assert found.dtype == dtype
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= 2 * (other - expected).abs().max().clamp_min(1e-3 * scale)
    for (name, ours), theirs in zip(block.named_buffers(), exact.buffers()):
        tolerance = {torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
        torch.testing.assert_close(
            ours.double(), theirs.double(), rtol=tolerance, atol=1e-1, msg=lambda t, n=name: f"{n}: {t}"
        )


def test_only_the_geometry_that_they_compute_takes_them(monkeypatch):
    monkeypatch.setattr(conditions, "IN_GRAPH", ("cpu",))
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", False, raising=False)
    x = torch.randn(2, 4, 6, 6)
    for make in (lambda: DepthBlock(4).train(), lambda: PointBlock(4, 4).train()):
        assert make().joins_graph(x)
        assert not make().joins_graph(x[:, :1])  # which a sum of shifted products would broadcast
        for setting in ({"stride": (2, 1)}, {"padding": (0, 1)}, {"kernel_size": (5, 5)}, {"groups": 2}):
            block = make()
            for conv in block.parts()[0]:
                vars(conv).update(setting)
            assert not block.joins_graph(x), setting


def test_only_compiled_training_takes_them(monkeypatch):
    monkeypatch.setattr(conditions, "IN_GRAPH", ("cpu",))
    monkeypatch.setattr(conditions, "IS_INSTALLED", False)
    for name in ("depth", "point"):
        monkeypatch.setattr(inductor, name, lambda *args: pytest.fail("must not be called"))
    module, x = RDPModule(4, 8), torch.randn(2, 4, 6, 6)
    module(x)
    torch.compile(module.eval(), backend="eager")(x)
    torch.compile(set_fused(module.train(), False), backend="eager")(x)
