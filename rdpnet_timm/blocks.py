"""The blocks of RDPNet, each in its train form (several branches) and its deploy form (one convolution).

A block is a sum of linear branches followed by ReLU. ``reparameterize()`` replaces the branches by the one convolution
that equals their sum in evaluation; timm's tools find the method by its name. A block built with
``inference_mode=True`` is born in its deploy form, and converts train-form weights as they are loaded.

Source: Xu, Zhao, Xu, "RDPNet", Journal of Cloud Computing 11:54, 2022, section "RDPNet-Module".
"""

from collections import OrderedDict
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .fused import conditions, inductor
from .reparam import (
    Kernel,
    add_kernels,
    float64,
    fuse_norm,
    identity_weight,
    pad_kernel,
    permute_inputs,
    shuffle_permutation,
)

__all__ = [
    "ChannelShuffle", "DepthBlock", "PointBlock", "RDPModule", "RepVGGBlock", "Reparameterizable", "SlicedConv2d",
    "set_fused",
]  # fmt: skip

NormLayer = Callable[..., nn.Module]

# scales and shifts in evaluation, by how they compute; other libraries' are known by name
_NORM_FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, nn.InstanceNorm2d.forward)
_NORM_NAMES = ("FrozenBatchNorm2d", "SyncBatchNorm")
_WEIGHT_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)  # set the weight before a forward pass


class Reparameterizable(nn.Module):
    """A module with a train form and a deploy form; the latter takes train-form weights and converts them on the way.

    Subclasses keep the arguments of their train form in ``_train_form_args``; a twin built from these does the
    conversion, so that loading and ``reparameterize()`` are one piece of algebra.
    """

    __jit_unused_properties__ = ["is_deployed"]
    __jit_ignored_attributes__ = ["_train_form_args"]  # not of one type, so not for TorchScript

    _train_form_args: Dict[str, Any]

    def convert_state_dict(self, state_dict: Dict[str, Any], prefix: str) -> None:
        """Replace this module's train-form entries of ``state_dict``, in place, by deploy-form ones.

        Does nothing where this module is itself in the train form, or where there is nothing to convert.

        Raises:
            RuntimeError: the entries do not make up the train form of this module.
        """
        names = [name for name in state_dict if name.startswith(prefix)]
        if not self.is_deployed or not any(".branches." in f".{name[len(prefix) :]}" for name in names):
            return
        entries = {name[len(prefix) :]: state_dict[name] for name in names}
        dtype = next(tensor.dtype for tensor in entries.values() if tensor.is_floating_point())
        dtype = torch.promote_types(dtype, torch.float32)  # in half precision the merged kernel would be rounded again
        with torch.device("cpu"):  # whatever the caller's default is: on "meta" there would be no numbers
            twin = self._train_form_twin(entries)
            try:
                twin.load_state_dict(entries)
            except RuntimeError as error:
                where = prefix.rstrip(".")
                raise RuntimeError(f"cannot convert the train-form weights of '{where}': {error}") from None
            twin.reparameterize()
        for name in names:
            del state_dict[name]
        for name, tensor in twin.state_dict().items():
            state_dict[prefix + name] = tensor.to(dtype)

    def _train_form_twin(self, entries: Mapping[str, Tensor]) -> "Reparameterizable":
        """A train-form module of this kind, in float64, for the weights ``entries``."""
        return type(self)(**self._train_form_args, dtype=torch.float64)

    @property
    def is_deployed(self) -> bool:
        """Whether this module is in its deploy form."""
        raise NotImplementedError

    def reparameterize(self) -> None:
        """Change this module, in place, from its train form to its deploy form; nothing happens the second time."""
        raise NotImplementedError

    @torch.jit.unused
    @torch.compiler.disable
    def eager_forward(self, x: Tensor) -> Tensor:
        """``self.forward(x)``, which torch.compile does not look into."""
        return self.forward(x)

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        self.convert_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class _ConvNorm(nn.Sequential):
    """A convolution without bias and its batch norm."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__(OrderedDict(conv=conv, norm=norm))

    @torch.jit.unused
    def is_as_made(self) -> bool:
        """Whether these are still torch's convolution, without bias, and one norm."""
        conv = self.conv
        if len(self) != 2 or type_before_parametrizations(conv) not in (nn.Conv2d, SlicedConv2d):
            return False
        return conv.bias is None


class SlicedConv2d(nn.Conv2d):
    """A strided 1x1 convolution that slices its input and takes a stride of 1: the same numbers.

    torch's own crashes the process in the backward pass on a CPU where the input is in channels_last and has fewer
    channels than a vector register holds numbers, which is where the stem stands.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``, rounded up."""
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight, self.bias)


class _MultiBranchBlock(Reparameterizable):
    """``ReLU(sum of branches)``; one of ``branches`` and ``reparam_conv`` is there, the other is None.

    A branch is a convolution with its norm, or a norm alone, which is an identity branch. While training on a CPU,
    branches are computed together where :mod:`.fused.conditions` allows it and ``fused`` is True.
    """

    fused: bool = True
    # the branches that the fused step of this kind of block is made for: all of the first, any of the second
    _fused_branches: Tuple[str, ...] = ("conv3x3", "conv1x1")
    _optional_branches: Tuple[str, ...] = ()
    # what their convolutions are: depthwise of stride 1 and any dilation, or dense of any stride and dilation 1
    _is_depthwise: bool = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        dilation: int,
        groups: int,
        branches: Mapping[str, int],
        inference_mode: bool,
        norm_layer: NormLayer,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        """Build ``branches``, which maps a branch's name to its kernel size, 0 being the identity branch."""
        super().__init__()
        dd: Dict[str, Any] = {"device": device, "dtype": dtype}

        def conv(size: int, bias: bool) -> nn.Conv2d:
            slices = size == 1 and stride > 1 and in_channels < 16  # with more channels slicing costs time
            conv_class = SlicedConv2d if slices else nn.Conv2d
            return conv_class(
                in_channels,
                out_channels,
                size,
                stride=stride,
                padding=size // 2 * dilation,
                dilation=dilation if size > 1 else 1,
                groups=groups,
                bias=bias,
                **dd,
            )

        self.branches: Optional[nn.ModuleDict] = None
        self.reparam_conv: Optional[nn.Conv2d] = None
        if inference_mode:
            self.reparam_conv = conv(kernel_size, bias=True)
        else:
            self.branches = nn.ModuleDict(
                {
                    name: _ConvNorm(conv(size, bias=False), norm_layer(out_channels, **dd))
                    if size
                    else norm_layer(out_channels, **dd)
                    for name, size in branches.items()
                }
            )
        self.act = nn.ReLU(inplace=True)

    @property
    def is_deployed(self) -> bool:
        """Whether the branches are merged into ``reparam_conv``."""
        return self.reparam_conv is not None

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``, rounded up."""
        if self.reparam_conv is not None:
            return self.act(self.reparam_conv(x))
        if not torch.jit.is_scripting():
            if self.leaves_graph(x):
                return self.eager_forward(x)
            if self.may_fuse(x):
                return self.fused_forward(x)
            if self.joins_graph(x):
                return self.compiled_forward(x)
        outputs: List[Tensor] = []
        for branch in self.branches.values():  # TorchScript unrolls this loop, but no comprehension over modules
            outputs.append(branch(x))
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return self.act(total)

    def extra_repr(self) -> str:
        """Whether the branches are computed together while training, for ``print(model)``."""
        if self.is_deployed:
            return ""
        missing = "" if conditions.is_installed() else " (but Numba is not installed)"
        return f"fused={self.fused}{missing if self.fused else ''}"

    @torch.jit.unused
    def leaves_graph(self, x: Tensor) -> bool:
        """Whether torch.compile is to leave this block out of its graph, for ``x`` to be a fused train step."""
        if not (torch.compiler.is_dynamo_compiling() and self.training and self.fused) or self.branches is None:
            return False
        return conditions.leaves_graph(x, self.parts()[1])

    @torch.jit.unused
    def joins_graph(self, x: Tensor) -> bool:
        """Whether torch.compile is to find this block, for ``x``, as one computation rather than as branches."""
        if not (torch.compiler.is_dynamo_compiling() and self.training and self.fused) or self.branches is None:
            return False
        return self.is_as_made() and conditions.joins_graph(x, *self.parts())

    @torch.jit.unused
    def compiled_forward(self, x: Tensor) -> Tensor:
        """The output of ``x``, written for torch.compile."""
        raise NotImplementedError

    @torch.jit.unused
    def parts(self) -> Tuple[List[nn.Conv2d], List[nn.Module]]:
        """The convolutions and the norms of the branches, in their order."""
        branches = list(self.branches.values())
        convs = [branch.conv for branch in branches if isinstance(branch, _ConvNorm)]
        return convs, [branch.norm if isinstance(branch, _ConvNorm) else branch for branch in branches]

    @torch.jit.unused
    def may_fuse(self, x: Tensor) -> bool:
        """Whether ``x`` is to be computed as a fused train step."""
        if not (self.training and self.fused) or self.branches is None or not self.is_as_made():
            return False
        return conditions.will_fuse(x, *self.parts()) and conditions.load_step() is not None

    @torch.jit.unused
    def is_as_made(self) -> bool:
        """Whether the branches and what follows are still what this block made, with nobody's hooks.

        Only then do the ways that compute them together, and so do not call them, compute the same.
        """
        names = list(self.branches.keys())  # no sets: torch 2.5 cannot compile their operators
        missing = [name for name in self._fused_branches if name not in names]
        if missing or [name for name in names if name not in self._fused_branches + self._optional_branches]:
            return False
        if type(self.act) is not nn.ReLU:
            return False
        skipped: List[nn.Module] = [self.act]
        convs: Dict[str, nn.Conv2d] = {}
        for name, branch in self.branches.items():
            skipped.append(branch)
            if name == "identity":
                continue
            if type(branch) is not _ConvNorm or not branch.is_as_made():
                return False
            conv = branch.conv
            if type(conv) not in (nn.Conv2d, SlicedConv2d):  # parametrised: a look at the weight may change it
                return False
            if conv.padding_mode != "zeros":
                return False
            convs[name] = conv
            skipped += [conv, branch.norm]
        return self._has_known_geometry(convs) and not conditions.have_hooks(skipped)

    @torch.jit.unused
    def _has_known_geometry(self, convs: Mapping[str, nn.Conv2d]) -> bool:
        """Whether ``convs`` are still 3x3 and 1x1 convolutions that a fused step computes.

        It takes the stride, the dilation and the channels of all of them from the first.
        """
        main = next(iter(convs.values()))
        stride, dilation = main.stride, (1, 1)
        groups, in_channels, out_channels = 1, main.in_channels, main.out_channels
        if self._is_depthwise:
            stride, dilation = (1, 1), main.dilation
            groups = in_channels = out_channels
        if not (_is_even(stride) and _is_even(dilation)):
            return False
        for name, conv in convs.items():
            is_3x3 = name == "conv3x3"
            if conv.kernel_size != ((3, 3) if is_3x3 else (1, 1)) or conv.padding != (dilation if is_3x3 else (0, 0)):
                return False
            if conv.stride != stride or (is_3x3 and conv.dilation != dilation):
                return False
            if conv.groups != groups or conv.in_channels != in_channels or conv.out_channels != out_channels:
                return False
        return True

    @torch.jit.unused
    def fused_forward(self, x: Tensor) -> Tensor:
        """The output of ``x`` by the fused train step; running statistics move as they do branch by branch."""
        raise NotImplementedError

    def convert_state_dict(self, state_dict: Dict[str, Any], prefix: str) -> None:
        """As :meth:`Reparameterizable.convert_state_dict`; there is no way back from the deploy form, so that raises.

        Raises:
            RuntimeError: the block is in the train form and the entries are not.
        """
        if not self.is_deployed and f"{prefix}reparam_conv.weight" in state_dict:
            raise RuntimeError(
                "these weights are in the deploy form, whose branches are merged for good, and this model is in the "
                "train form: load them into a model created with inference_mode=True, or load the train-form checkpoint"
            )
        super().convert_state_dict(state_dict, prefix)

    def merged_kernel(self) -> Kernel:
        """All branches as one kernel, in float64."""
        main = next(iter(self.branches.values())).conv
        return add_kernels(
            *(pad_kernel(_branch_kernel(branch, main), main.kernel_size[0]) for branch in self.branches.values())
        )

    def reparameterize(self) -> None:
        """Merge the branches, in place, into one convolution; nothing happens the second time.

        The convolution has the dtype, device, memory format and training flag of the block's first branch, and
        requires a gradient if any parameter of the branches did.

        Raises:
            ValueError: a branch was changed and computes more than one convolution and a norm in evaluation.
        """
        if self.is_deployed:
            return
        main = next(iter(self.branches.values())).conv
        kernel = self.merged_kernel()
        conv = nn.Conv2d(
            main.in_channels,
            main.out_channels,
            main.kernel_size,
            stride=main.stride,
            padding=main.padding,
            dilation=main.dilation,
            groups=main.groups,
            padding_mode=main.padding_mode,
            device="meta",
        ).train(self.training)
        conv.weight = nn.Parameter(torch.empty_like(main.weight).copy_(kernel.weight))  # keeps the memory format
        conv.bias = nn.Parameter(kernel.bias.to(main.weight))
        conv.requires_grad_(any(parameter.requires_grad for parameter in self.branches.parameters()))
        self.branches = None
        self.reparam_conv = conv


def _is_even(setting: Any) -> bool:
    """Whether a convolution's setting is the same along both axes, and a pair, as torch has it."""
    return isinstance(setting, tuple) and setting == setting[:1] * 2


def _parameters(norms: List[nn.Module]) -> Tuple[List[Tensor], List[Tensor], List[float], Callable[..., None]]:
    """What a fused step takes of ``norms``: scales, shifts, eps, and who observes the statistics."""
    affine = [norm.weight for norm in norms], [norm.bias for norm in norms]
    return *affine, [norm.eps for norm in norms], partial(conditions.track, norms)


def set_fused(model: nn.Module, enabled: bool = True) -> nn.Module:
    """Let the RDPNet blocks of ``model`` compute their branches together while training, or one by one; returns it.

    Both are the same function with the same gradients, so that a training can go from one to the other at any step.
    """
    for module in model.modules():
        if isinstance(module, _MultiBranchBlock):
            module.fused = enabled
    return model


def _branch_kernel(branch: nn.Module, main: nn.Conv2d) -> Kernel:
    """One branch, a convolution and its norm or a norm alone, as a kernel of its own size.

    Args:
        branch: the branch; somebody may have exchanged it or parts of it.
        main: the convolution of the block's first branch, whose place the merged one takes.

    Raises:
        ValueError: the branch computes, or may compute, something else than such a kernel.
    """

    def require(is_met: bool, expected: str) -> None:
        if not is_met:
            raise ValueError(f"cannot reparameterise a branch, expected {expected}: {branch}")

    norm, parts = branch, [branch]
    if isinstance(branch, _ConvNorm):
        require(branch.is_as_made(), "a convolution and its norm, the convolution nn.Conv2d without bias")
        require(_lies_within(branch.conv, main), f"a convolution of 1x1 or as the block's first one, {main}")
        norm, parts = branch.norm, [branch, branch.conv, branch.norm]
    is_known = type(norm).forward in _NORM_FORWARDS or type(norm).__name__ in _NORM_NAMES
    require(is_known, "torch's batch norm or a frozen one, alone or behind a convolution")
    for part in parts:
        hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
        is_bare = "forward" not in vars(part) and all(isinstance(hook, _WEIGHT_HOOKS) for hook in hooks)
        require(is_bare, "no forward hooks, which may change what it computes")
        for hook in hooks:  # the weight may be that of the last forward pass
            hook(part, ())
    mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or variance is None:
        raise ValueError(
            f"cannot reparameterise a branch with {norm}: it keeps no running statistics, so its output in evaluation "
            "depends on the batch; use a batch norm with track_running_stats=True"
        )
    weight = identity_weight(mean.numel(), main.groups, float64(mean).device) if norm is branch else branch.conv.weight
    return fuse_norm(weight, mean, variance, norm.eps, getattr(norm, "weight", None), getattr(norm, "bias", None))


def _lies_within(conv: nn.Conv2d, main: nn.Conv2d) -> bool:
    """Whether the kernel of ``conv`` is, with zeros around it, one of ``main``."""
    if (conv.stride, conv.groups) != (main.stride, main.groups):
        return False
    if conv.kernel_size == (1, 1):
        return conv.padding == (0, 0)
    geometry = [(one.kernel_size, one.padding, one.dilation, one.padding_mode) for one in (conv, main)]
    return geometry[0] == geometry[1]


class RepVGGBlock(_MultiBranchBlock):
    """The stem: ``ReLU(BN(conv3x3(x)) + BN(conv1x1(x)))``, dense, without an identity branch.

    Source: Ding et al., "RepVGG", 2021.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 2,
        single_branch: bool = False,
        inference_mode: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        branches = {"conv3x3": 3} if single_branch else {"conv3x3": 3, "conv1x1": 1}
        super().__init__(
            in_channels, out_channels, 3, stride, 1, 1, branches, inference_mode, norm_layer, device, dtype
        )
        self._train_form_args = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            stride=stride,
            single_branch=single_branch,
            norm_layer=norm_layer,
        )

    @torch.jit.unused
    def joins_graph(self, x: Tensor) -> bool:
        """Never: one dense convolution in the whole network gains nothing."""
        return False

    @torch.jit.unused
    def may_fuse(self, x: Tensor) -> bool:
        """As the other blocks, but for images that require a gradient, which the fused step has not."""
        return super().may_fuse(x) and not x.requires_grad

    @torch.jit.unused
    def fused_forward(self, x: Tensor) -> Tensor:
        """The output of ``x`` by the fused train step."""
        convs, norms = self.parts()
        weight, weight_1x1 = (conv.weight for conv in convs)
        stride = convs[0].stride[0]
        return conditions.load_step().stem_step(x, weight, weight_1x1, *_parameters(norms), stride)

    def _train_form_twin(self, entries: Mapping[str, Tensor]) -> "Reparameterizable":
        # A checkpoint may have other input channels than this model: whoever loads it adapts the converted kernel.
        weight = entries.get("branches.conv3x3.conv.weight")
        in_channels = self._train_form_args["in_channels"] if weight is None else weight.shape[1]
        return RepVGGBlock(**dict(self._train_form_args, in_channels=in_channels), dtype=torch.float64)


class DepthBlock(_MultiBranchBlock):
    """``ReLU(BN(DW3x3(x)) + BN(DW1x1(x)) + BN(x))``, every convolution depthwise, the stride 1.

    In the deploy form the 3x3 convolution may carry the stride of the Point-Block behind it, see :class:`RDPModule`.
    """

    _fused_branches: Tuple[str, ...] = ("conv3x3", "conv1x1", "identity")
    _is_depthwise: bool = True

    def __init__(
        self,
        channels: int,
        dilation: int = 1,
        deploy_stride: int = 1,
        single_branch: bool = False,
        inference_mode: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        branches = {"conv3x3": 3} if single_branch else {"conv3x3": 3, "conv1x1": 1, "identity": 0}
        stride = deploy_stride if inference_mode else 1
        super().__init__(
            channels, channels, 3, stride, dilation, channels, branches, inference_mode, norm_layer, device, dtype
        )
        self._train_form_args = dict(
            channels=channels, dilation=dilation, single_branch=single_branch, norm_layer=norm_layer
        )

    @torch.jit.unused
    def fused_forward(self, x: Tensor, stride: int = 1) -> Tensor:
        """The output of ``x`` by the fused train step, at the positions that a Point-Block of this ``stride`` reads."""
        convs, norms = self.parts()
        weight, scale = (conv.weight for conv in convs)
        dilation = convs[0].dilation[0]
        return conditions.load_step().depth_step(x, weight, scale, *_parameters(norms), stride, dilation)

    @torch.jit.unused
    def compiled_forward(self, x: Tensor) -> Tensor:
        """The output of ``x``, written for torch.compile."""
        convs, norms = self.parts()
        weight, scale = (conv.weight for conv in convs)
        return inductor.depth(x, weight, scale, *_parameters(norms), convs[0].dilation[0])


class PointBlock(_MultiBranchBlock):
    """``ReLU(BN(PW1x1(x)) + BN(PW1x1(x)))``, dense; with ``identity``, and where shapes allow it, ``+ BN(x)``.

    The identity branch is the paper's ablation (Table 8), not part of RDPNet.
    """

    _fused_branches: Tuple[str, ...] = ("conv1x1_a",)
    _optional_branches: Tuple[str, ...] = ("conv1x1_b", "identity")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        identity: bool = False,
        single_branch: bool = False,
        inference_mode: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        branches = {"conv1x1_a": 1} if single_branch else {"conv1x1_a": 1, "conv1x1_b": 1}
        if identity and in_channels == out_channels and stride == 1:
            branches["identity"] = 0
        super().__init__(
            in_channels, out_channels, 1, stride, 1, 1, branches, inference_mode, norm_layer, device, dtype
        )
        self._train_form_args = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            stride=stride,
            identity=identity,
            single_branch=single_branch,
            norm_layer=norm_layer,
        )

    @torch.jit.unused
    def fused_forward(self, x: Tensor, shuffle_groups: int = 1, is_strided: bool = False) -> Tensor:
        """The output of ``x`` by the fused train step, a channel shuffle in front of the block included.

        ``is_strided``: whether ``x`` holds only the positions that the block's stride reads.
        """
        convs, norms = self.parts()
        stride = 1 if is_strided else convs[0].stride[0]
        x = x[:, :, ::stride, ::stride]
        weights = [conv.weight for conv in convs]
        return conditions.load_step().point_step(x, weights, *_parameters(norms), shuffle_groups)

    @torch.jit.unused
    def compiled_forward(self, x: Tensor) -> Tensor:
        """The output of ``x``, written for torch.compile."""
        convs, norms = self.parts()
        return inductor.point(x, [conv.weight for conv in convs], *_parameters(norms), convs[0].stride[0])


class ChannelShuffle(nn.Module):
    """Reshape the channels to ``(groups, C / groups)``, transpose, flatten. Source: ShuffleNet, 2018."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        if torch.jit.is_tracing():  # the tracing ONNX exporter knows reshapes, but not aten::channel_shuffle
            return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return F.channel_shuffle(x, self.groups)  # keeps channels_last, which reshapes do not

    def extra_repr(self) -> str:
        """The number of groups, for ``print(model)``."""
        return f"groups={self.groups}"


class RDPModule(Reparameterizable):
    """Depth-Block, channel shuffle, Point-Block; the Point-Block downsamples.

    ``reparameterize()`` merges both blocks, folds the shuffle into the pointwise weight and moves the stride to the
    depthwise convolution, whose outputs a strided 1x1 convolution would skip. To see what these two steps gain, call
    ``depth.reparameterize()`` and ``point.reparameterize()`` alone: that is the paper's deploy form.
    (Its weights have the names and shapes of the other one's, whose function they do not give: do not save them.)

    Args:
        in_channels: input channels; a multiple of ``shuffle_groups``.
        out_channels: output channels.
        stride: stride of the module.
        dilation: dilation of the depthwise 3x3 convolution.
        shuffle_groups: groups of the channel shuffle; 0 or 1 leaves it out.
        pointwise_identity: give the Point-Block an identity branch where shapes allow it.
        single_branch: give every block its first convolution and norm alone.
        inference_mode: build the deploy form.
        norm_layer: batch norm class, called with the channels, ``device`` and ``dtype``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
        shuffle_groups: int = 2,
        pointwise_identity: bool = False,
        single_branch: bool = False,
        inference_mode: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        if shuffle_groups < 0 or (shuffle_groups > 1 and in_channels % shuffle_groups):
            raise ValueError(
                f"shuffle_groups must be 0 or 1 (no shuffle) or divide the {in_channels} channels, got {shuffle_groups}"
            )
        common: Dict[str, Any] = dict(
            single_branch=single_branch,
            inference_mode=inference_mode,
            norm_layer=norm_layer,
            device=device,
            dtype=dtype,
        )
        self.depth = DepthBlock(in_channels, dilation, deploy_stride=stride, **common)
        shuffles = shuffle_groups > 1 and not inference_mode
        self.shuffle = ChannelShuffle(shuffle_groups) if shuffles else nn.Identity()
        self.point = PointBlock(
            in_channels, out_channels, 1 if inference_mode else stride, pointwise_identity and stride == 1, **common
        )
        self._train_form_args = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            stride=stride,
            dilation=dilation,
            shuffle_groups=shuffle_groups,
            pointwise_identity=pointwise_identity,
            single_branch=single_branch,
            norm_layer=norm_layer,
        )

    @property
    def is_deployed(self) -> bool:
        """Whether both blocks are merged and the shuffle is folded."""
        return self.depth.is_deployed and self.point.is_deployed and isinstance(self.shuffle, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``, rounded up."""
        if not torch.jit.is_scripting() and self.has_own_parts():
            if self.depth.leaves_graph(x) and self.point.leaves_graph(x):
                return self.eager_forward(x)
            if self.may_fuse(x):
                return self.fused_forward(x)
        return self.point(self.shuffle(self.depth(x)))

    @torch.jit.unused
    def has_own_parts(self) -> bool:
        """Whether the parts are still those that this module made, and not wrapped or exchanged."""
        is_shuffle = type(self.shuffle) in (ChannelShuffle, nn.Identity)
        return type(self.depth) is DepthBlock and type(self.point) is PointBlock and is_shuffle

    @torch.jit.unused
    def may_fuse(self, x: Tensor) -> bool:
        """Whether both blocks may be computed as fused train steps, the shuffle and the stride within them."""
        if not self.training or conditions.have_hooks([self.depth, self.shuffle, self.point]):
            return False
        return self.depth.may_fuse(x) and self.point.may_fuse(x)

    @torch.jit.unused
    def fused_forward(self, x: Tensor) -> Tensor:
        """The output of ``x`` by two fused train steps."""
        stride = self.point.parts()[0][0].stride[0]
        between = self.depth.fused_forward(x, stride)
        return self.point.fused_forward(between, getattr(self.shuffle, "groups", 1), is_strided=True)

    def reparameterize(self) -> None:
        """Change this module, in place, to the deploy form: depthwise 3x3, ReLU, pointwise 1x1, ReLU.

        Where a part was exchanged or wrapped, or the shuffle has hooks, the blocks are merged alone: what then stands
        between them may look at every position and every channel.
        """
        for block in (self.depth, self.point):
            if isinstance(block, Reparameterizable):
                block.reparameterize()
        is_hooked = "forward" in vars(self.shuffle) or self.shuffle._forward_hooks or self.shuffle._forward_pre_hooks
        if is_hooked or not self.has_own_parts():
            return
        depthwise, pointwise = self.depth.reparam_conv, self.point.reparam_conv
        if isinstance(self.shuffle, ChannelShuffle):
            permutation = shuffle_permutation(pointwise.in_channels, self.shuffle.groups)
            folded = permute_inputs(Kernel(pointwise.weight.detach(), pointwise.bias.detach()), permutation)
            with torch.no_grad():
                pointwise.weight.copy_(folded.weight)
            self.shuffle = nn.Identity().train(self.training)
        if pointwise.stride != (1, 1):
            depthwise.stride, pointwise.stride = pointwise.stride, (1, 1)
