"""The algebra, each word of it against torch's own convolution in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rdpnet_timm.reparam import (
    Kernel,
    add_kernels,
    fuse_norm,
    identity_weight,
    pad_kernel,
    permute_inputs,
    shuffle_permutation,
)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def kernel(out_channels: int, in_channels: int, size: int) -> Kernel:
    return Kernel(random(out_channels, in_channels, size, size), random(out_channels))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("variance", [1e-30, 1.0, 1e30])
def test_a_fused_norm_is_the_convolution_followed_by_torchs_batch_norm(affine: bool, variance: float) -> None:
    x, weight, mean = random(2, 3, 5, 5), random(4, 3, 3, 3), random(4)
    scale, shift = (random(4), random(4)) if affine else (None, None)
    expected = F.batch_norm(F.conv2d(x, weight), mean, torch.full((4,), variance).double(), scale, shift, eps=1e-5)
    fused = fuse_norm(weight, mean, torch.full((4,), variance).double(), 1e-5, scale, shift)
    torch.testing.assert_close(F.conv2d(x, *fused), expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_identity_weight_returns_its_input(groups: int) -> None:
    x = random(2, 6, 4, 4)
    assert torch.equal(F.conv2d(x, identity_weight(6, groups), groups=groups), x)


def test_a_padded_1x1_kernel_acts_as_the_1x1_kernel() -> None:
    x, one = random(2, 3, 5, 6), kernel(4, 3, 1)
    torch.testing.assert_close(F.conv2d(x, *pad_kernel(one, 3), padding=1), F.conv2d(x, *one), rtol=0, atol=1e-14)


def test_added_kernels_give_the_sum_of_their_outputs() -> None:
    x, kernels = random(2, 3, 5, 6), [kernel(4, 3, 3) for _ in range(3)]
    expected = F.conv2d(x, *kernels[0]) + F.conv2d(x, *kernels[1]) + F.conv2d(x, *kernels[2])
    torch.testing.assert_close(F.conv2d(x, *add_kernels(*kernels)), expected, rtol=1e-13, atol=1e-13)


@given(st.sampled_from([(6, 2), (6, 3), (8, 4), (5, 1), (5, 5)]))
def test_permuted_inputs_take_a_channel_shuffle_into_the_kernel(case: "tuple[int, int]") -> None:
    channels, groups = case
    x, dense = random(2, channels, 3, 3), kernel(7, channels, 1)
    expected = F.conv2d(nn.ChannelShuffle(groups)(x), *dense)
    folded = permute_inputs(dense, shuffle_permutation(channels, groups))
    torch.testing.assert_close(F.conv2d(x, *folded), expected, rtol=1e-13, atol=1e-13)
