"""Training on a CPU at 224 in channels_last, eager and compiled: what went wrong there ended the process."""

import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F

from rdpnet_timm.blocks import RepVGGBlock

STEPS = """
    import sys, rdpnet_timm, timm, torch
    name, backend = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train(steps):
        for _ in range(steps):
            images = torch.randn(2, 3, 224, 224).to(memory_format=torch.channels_last)
            loss = model(images).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    train(2)
    rdpnet_timm.set_fused(model.stem, False)  # what is compiled is its branches
    model.stem.compile(backend=backend)
    train(2)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", ["025", "050", "075", "100", "125", "150"])
def test_every_width_trains_eager_and_with_a_compiled_stem(width: str) -> None:
    # inductor writes the stem of one width in C++; the whole network takes it minutes
    backend = "inductor" if width == "075" else "aot_eager"
    command = [sys.executable, "-c", textwrap.dedent(STEPS), f"rdpnet_{width}", backend]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, f"exit {finished.returncode}\n{finished.stderr[-2000:]}"


@pytest.mark.parametrize("in_channels", [1, 3, 4, 15, 16])
def test_the_stems_1x1_branch_is_a_strided_convolution(in_channels: int) -> None:
    branch = RepVGGBlock(in_channels, 16).branches["conv1x1"].conv.double()
    x = torch.randn(2, in_channels, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(branch(x), F.conv2d(x, branch.weight, stride=2))
