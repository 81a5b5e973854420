"""RDPNet, a single-path lightweight CNN for CPUs, as a timm model.

Paper: Xu, Zhao, Xu, "RDPNet: a single-path lightweight CNN with re-parameterization for CPU-type edge devices",
Journal of Cloud Computing 11:54, 2022, doi 10.1186/s13677-022-00330-5. No code was published with it.
"""

from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Linear, SelectAdaptivePool2d
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import weights
from .blocks import NormLayer, RDPModule, Reparameterizable, RepVGGBlock, set_fused
from .weights.reading import Checkpoint, read_checkpoint

__all__ = ["RDPNet", "convert_state_dict", "name_classes", "require_same_function"]

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)
STRIDES, CIFAR_STRIDES = (2, 2, 2, 2, 2), (1, 1, 2, 2, 2)

# What timm's pretrained_cfg says of weights, where these are none that it knows
_UNKNOWN_WEIGHTS = dict.fromkeys(("label_names", "label_descriptions", "description", "tag"))


class RDPNet(nn.Module):
    """RDPNet (the paper's Table 2): a RepVGG stem, four stages of RDP-Modules, pooling, one linear layer.

    Args:
        width: the width multiplier alpha.
        strides: stride of the stem and of the first module of each stage; the CIFAR form has 1 for the first two.
        shuffle_groups: groups of the channel shuffle; 0 or 1 switches it off (the paper's ablation, Table 8).
        pointwise_identity: an identity branch in the Point-Blocks whose shapes allow it (ablation, Table 8).
        single_branch: one convolution and one norm a block, as in the deploy form: what the branches are measured by.
        inference_mode: build the deploy form, one path of convolutions. It loads train-form weights as well.
        in_chans: input channels.
        num_classes: classes; 0 leaves the classifier out.
        global_pool: timm's pooling type ('avg', 'max', 'avgmax', 'catavgmax', ...); '' switches pooling off.
        drop_rate: dropout in front of the classifier.
        output_stride: stride of the last map, 8, 16 or 32, strides beyond it being replaced by dilation; None keeps
            the strides as they are.
        norm_layer: batch norm class.
        fused: compute the branches of a block together while training, see :func:`rdpnet_timm.set_fused`.

    Raises:
        ValueError: a count out of range, a width without whole channels, a shuffle that does not divide the channels,
            an output stride that this form cannot have, classes without pooling.
    """

    def __init__(
        self,
        width: float = 1.0,
        strides: Tuple[int, ...] = STRIDES,
        shuffle_groups: int = 2,
        pointwise_identity: bool = False,
        single_branch: bool = False,
        inference_mode: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        output_stride: Optional[int] = None,
        norm_layer: NormLayer = nn.BatchNorm2d,
        fused: bool = True,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        if in_chans < 1 or num_classes < 0:
            raise ValueError(f"in_chans must be positive, got {in_chans}; num_classes 0 or more, got {num_classes}")
        common: Dict[str, Any] = dict(
            single_branch=single_branch,
            inference_mode=inference_mode,
            norm_layer=norm_layer,
            device=device,
            dtype=dtype,
        )
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.strides = tuple(strides)
        self.shuffle_groups = shuffle_groups
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        max_stride = _check_output_stride(output_stride, strides)

        # Table 2: channels and modules of the stages; the last width carries the text's extra multiplier of 2.5
        stem_channels = min(64, _channels(64, width))
        stages = [
            (_channels(64, width), 1),
            (_channels(128, width), 4),
            (_channels(256, width), 14),
            (_channels(1280, width), 1),
        ]

        self.stem = RepVGGBlock(in_chans, stem_channels, strides[0], **common)
        channels, reduction, dilation = stem_channels, strides[0], 1
        self.feature_info = [dict(num_chs=channels, reduction=reduction, module="stem")]
        self.stages = nn.Sequential()
        for index, (out_channels, depth) in enumerate(stages):
            stride = strides[index + 1]
            next_dilation = dilation
            if reduction * stride > max_stride:
                # The module's depthwise convolution stands in front of the stride, so only those behind it dilate.
                next_dilation, stride = dilation * stride, 1
            stage = nn.Sequential()
            for _ in range(depth):
                stage.append(
                    RDPModule(channels, out_channels, stride, dilation, shuffle_groups, pointwise_identity, **common)
                )
                channels, reduction = out_channels, reduction * stride
                stride, dilation = 1, next_dilation
            self.stages.append(stage)
            self.feature_info.append(dict(num_chs=channels, reduction=reduction, module=f"stages.{index}"))

        self.num_features = channels
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        _check_pooling(global_pool, num_classes)
        self.head = (
            Linear(self.head_hidden_size, num_classes, device=device, dtype=dtype) if num_classes > 0 else nn.Identity()
        )
        set_fused(self, fused)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialise all weights anew, as after ``to_empty`` of a model built on the meta device."""
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Parameter groups by depth, for layer-wise learning rate decay: the stem, then stages or modules."""
        return dict(stem=r"^stem", blocks=r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)")

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each module in the backward pass rather than keep its activations; a batch counts once."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear layer, or an identity without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier, 0 classes removing it, and, where given, the pooling.

        Raises:
            ValueError: classes without pooling.
        """
        _check_pooling(self.global_pool.pool_type if global_pool is None else global_pool, num_classes)
        weight = next(self.parameters())
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool)).train(
                self.training
            )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        head = nn.Identity()
        if num_classes > 0:
            head = Linear(self.head_hidden_size, num_classes, device=weight.device, dtype=weight.dtype)
        self.head = head.train(self.training)
        name_classes(self, None)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[List[Tensor], Tuple[Tensor, List[Tensor]]]:
        """Run the features and return intermediate maps: index 0 is the stem, 1 to 4 the stages.

        Args:
            x: images ``(N, C, H, W)``.
            indices: the last n maps for an int, those named for a list, all for None.
            norm: without effect, RDPNet has no final norm.
            stop_early: do not run what comes behind the last map asked for.
            output_fmt: 'NCHW', the only one there is.
            intermediates_only: return the maps alone.

        Returns:
            The final map and the list of maps, or the list alone.

        Raises:
            ValueError: another ``output_fmt``.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got '{output_fmt}'")
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.stages) + 1, indices)

        x = self.stem(x)
        if 0 in take_indices:
            intermediates.append(x)
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice modules
            stages = self.stages
        else:
            stages = self.stages[:max_index]
        for index, stage in enumerate(stages):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = _checkpointed(stage, x)
            else:
                x = stage(x)
            if index + 1 in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Remove what the maps ``indices`` do not need, and return them as non-negative indices."""
        take_indices, max_index = feature_take_indices(len(self.stages) + 1, indices)
        prunes_end = max_index < len(self.stages)
        self.stages = self.stages[:max_index]
        if prunes_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or prunes_end:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the last map ``(N, num_features, H / stride, W / stride)``."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = _checkpointed(chain.from_iterable(self.stages), x)
        else:
            x = self.stages(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify ``(N, num_features, H, W)``; ``pre_logits`` leaves the classifier out."""
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to logits ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    def _load_from_state_dict(
        self, state_dict: Dict[str, Any], prefix: str, local_metadata: Dict[str, Any], *args: Any
    ) -> None:
        # All checks and conversions come before the first weight is copied, so that an error leaves the model whole.
        dtypes = {key: value.dtype for key, value in state_dict.items() if key.startswith(prefix)}
        convert_state_dict(state_dict, self, prefix)
        if local_metadata.get("assign_to_params_buffers"):  # all get the dtype of the weights, merged ones came in more
            dtype = next((dtype for dtype in dtypes.values() if dtype.is_floating_point), None)
            merged = [key for key in state_dict if key.startswith(prefix) and key not in dtypes]
            state_dict.update({key: state_dict[key].to(dtype) for key in merged})
        for name, tensor in self.state_dict(prefix=prefix).items():
            given = state_dict.get(name)
            if given is not None and given.shape != tensor.shape and not name.startswith(f"{prefix}head."):
                raise RuntimeError(
                    f"these weights are those of another RDPNet: '{name}' has the shape {tuple(given.shape)}, this "
                    f"model's is {tuple(tensor.shape)}; create the model with the width and in_chans of the weights"
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _checkpointed(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """``x`` through one module after another, each of which is recomputed in the backward pass."""
    for module in modules:
        # compiled, a recomputation has no side effects (but by torch 2.5), and torch takes no such context there
        others = {} if torch.compiler.is_compiling() else {"context_fn": partial(_contexts, module)}
        x = checkpoint(module, x, use_reentrant=False, **others)
    return x


def _contexts(module: nn.Module) -> Tuple[Any, Any]:
    return nullcontext(), _keeping_buffers(module)


@contextmanager
def _keeping_buffers(module: nn.Module) -> Iterator[None]:
    """Leave a module's buffers as they were: a batch that is recomputed would move running statistics a second time."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:  # the recomputation ends by an exception, as soon as it has all that is needed
        for buffer, value in before:
            buffer.data.copy_(value)


def convert_state_dict(state_dict: Dict[str, Any], model: nn.Module, prefix: str = "") -> Dict[str, Any]:
    """Bring weights into the form that the RDPNet blocks of ``model`` are in, and return them.

    Args:
        state_dict: weights in either form, changed in place.
        model: an RDPNet, or a model that has blocks of one.
        prefix: prefix of the model's entries.

    Raises:
        RuntimeError: the weights are in the deploy form and the model is not, or they do not fit the model's blocks.
    """
    for name, module in model.named_modules(prefix=prefix.removesuffix(".")):
        if isinstance(module, Reparameterizable):
            module.convert_state_dict(state_dict, f"{name}.")
    return state_dict


def name_classes(model: nn.Module, names: Optional[Sequence[str]]) -> None:
    """Put the names of the classes where timm has them, and take out what is said there of other weights.

    Args:
        model: a timm model, whose ``pretrained_cfg`` is changed; one without it is left as it is.
        names: of the classes; None, or another number of them than the model has, where they are unknown.
    """
    config = getattr(model, "pretrained_cfg", None)
    if config:
        config.update(_UNKNOWN_WEIGHTS)
        if names and len(names) == getattr(model, "num_classes", None):
            config.update(label_names=tuple(names), num_classes=len(names))


def require_same_function(
    source: str, checkpoint: Checkpoint, strides: Sequence[int], shuffle_groups: int, global_pool: Optional[str] = None
) -> None:
    """Refuse weights for an RDPNet that differs from theirs in what their shapes do not show.

    Args:
        source: of the weights, for the message.
        checkpoint: the weights; those that do not say what network they are of are not compared.
        strides: of the other network.
        shuffle_groups: of the other network; weights in the deploy form have their shuffle in them.
        global_pool: in front of the other network's classifier; None where it has none, or takes another pooling.

    Raises:
        RuntimeError: other strides, another channel shuffle or another pooling.
    """
    arch, args = checkpoint.arch or "", checkpoint.model_args
    if not arch.startswith("rdpnet_"):
        return
    expected = tuple(args.get("strides", CIFAR_STRIDES if arch.partition(".")[0].endswith("_cifar") else STRIDES))
    if tuple(strides) != expected:
        raise RuntimeError(
            f"cannot load '{source}': its weights are those of {arch} with the strides {expected}, and this model has "
            f"{tuple(strides)}: the shapes agree, the function does not. Create the model with the strides of the "
            f"weights, as timm.create_model('{arch}') does where nothing else is said"
        )
    expected = args.get("shuffle_groups", 2)
    is_train_form = any(".branches." in name for name in checkpoint.state_dict)
    if is_train_form and max(shuffle_groups, 1) != max(expected, 1):
        raise RuntimeError(
            f"cannot load '{source}': its weights are those of a network with shuffle_groups={expected}, and this "
            f"model has {shuffle_groups}: the shapes agree, the function does not. Create the model with "
            f"shuffle_groups={expected}"
        )
    expected = args.get("global_pool", "avg")
    if (
        global_pool is not None
        and "head.weight" in checkpoint.state_dict
        and _pooling(global_pool) != _pooling(expected)
    ):
        raise RuntimeError(
            f"cannot load '{source}': its classifier is of a network with global_pool='{expected}', and this model has "
            f"'{global_pool}': the shapes agree, the function does not. Create the model with global_pool='{expected}'"
        )


def _pooling(name: str) -> str:
    """Of timm's names for one function the plain one: 'fast' asks for another way to compute it."""
    return name.lower().removeprefix("fast") or "avg"


def _channels(base: int, width: float) -> int:
    channels = base * width
    if channels != int(channels) or channels < 1:
        raise ValueError(f"width must give a whole number of channels, got {width} * {base} = {channels}")
    return int(channels)


def _check_pooling(global_pool: str, num_classes: int) -> None:
    if num_classes > 0 and not global_pool:
        raise ValueError(
            f"global_pool='' leaves the classifier a map, and it takes pooled features: got num_classes={num_classes}; "
            "set num_classes=0 for maps, or name a pooling"
        )


def _check_output_stride(output_stride: Optional[int], strides: Tuple[int, ...]) -> int:
    """The stride not to be passed; the form's own where none is asked for."""
    own = 1
    for stride in strides:
        own *= stride
    possible = [stride for stride in (8, 16, 32) if stride <= own]
    if output_stride is not None and output_stride not in possible:
        raise ValueError(
            f"output_stride must be one of {possible} for this form, whose strides are {strides}, got {output_stride}"
        )
    return output_stride or own


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": ("stem.branches.conv3x3.conv", "stem.branches.conv1x1.conv"),
        "classifier": "head",
        "paper_name": "RDPNet: a single-path lightweight CNN with re-parameterization for CPU-type edge devices",
        "origin_url": "https://doi.org/10.1186/s13677-022-00330-5",
        "license": "apache-2.0",
        **kwargs,
    }


def _cifar_cfg(**kwargs: Any) -> Dict[str, Any]:
    cifar = dict(num_classes=10, input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0, mean=CIFAR_MEAN, std=CIFAR_STD)
    return _cfg(**{**cifar, **kwargs})


def _weights_cfgs() -> Dict[str, Dict[str, Any]]:
    """Weights that come with the package; CIFAR-10's stand for a bare name too, others for their tag alone."""
    cfgs = {}
    for name in weights.names():
        card = weights.card(name)
        cfgs[name] = _cifar_cfg(
            file=str(weights.FOLDER / f"{name}.safetensors"),
            num_classes=len(card["classes"]),
            label_names=tuple(card["classes"]),
            description=weights.description(card),
        )
    return {f"{name}*" if name.endswith(".c10") else name: cfg for name, cfg in cfgs.items()}


default_cfgs = generate_default_cfgs(
    {
        **_weights_cfgs(),
        "rdpnet_025.untrained": _cfg(),
        "rdpnet_050.untrained": _cfg(),
        "rdpnet_075.untrained": _cfg(),
        "rdpnet_100.untrained": _cfg(),
        "rdpnet_125.untrained": _cfg(),
        "rdpnet_150.untrained": _cfg(),
        "rdpnet_025_cifar.untrained": _cifar_cfg(),
        "rdpnet_050_cifar.untrained": _cifar_cfg(),
        "rdpnet_075_cifar.untrained": _cifar_cfg(),
        "rdpnet_100_cifar.untrained": _cifar_cfg(),
        "rdpnet_125_cifar.untrained": _cifar_cfg(),
        "rdpnet_150_cifar.untrained": _cifar_cfg(),
    }
)


def _full_precision(state_dict: Dict[str, Any]) -> Dict[str, Any]:
    """Half precision, in which weights are shipped, to float32: timm sums input channels in the dtype it is given."""
    halves = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in halves else tensor for name, tensor in state_dict.items()}


def checkpoint_filter_fn(state_dict: Dict[str, Any], model: nn.Module) -> Dict[str, Any]:
    """Pretrained weights, in whichever form they are, as ``model`` takes them; timm's name for this function."""
    return convert_state_dict(_full_precision(state_dict), model)


def _create_rdpnet(variant: str, pretrained: bool = False, **kwargs: Any) -> RDPNet:
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    if kwargs.get("inference_mode"):  # what timm adapts when pretrained weights have other input channels
        overlay["first_conv"] = "stem.reparam_conv"
    elif kwargs.get("single_branch"):
        overlay["first_conv"] = "stem.branches.conv3x3.conv"
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    others = any(overlay.get(source) for source in ("file", "url", "hf_hub_id", "state_dict"))
    if not pretrained or others or kwargs.get("num_classes", cfg.num_classes) != cfg.num_classes:
        overlay = {**_UNKNOWN_WEIGHTS, **overlay}
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        raise RuntimeError(
            f"there are no pretrained weights for {variant} yet. Create it with pretrained=False and train it (see "
            f"recipes/), load your own weights by rdpnet_timm.load_model('FILE') (timm's checkpoint_path=... does not "
            f"compare strides and shuffle), or take a model listed by timm.list_models('rdpnet*', pretrained=True)"
        )
    if pretrained and cfg.file and Path(cfg.file).parent == weights.FOLDER:
        weights.check(cfg.file)
        card = weights.card(cfg.file)
        if kwargs.get("single_branch"):
            raise RuntimeError(
                f"the weights of {card['model']} that come with the package are of the network with branches: create "
                "it without single_branch=True, or with random weights (pretrained=False)"
            )
    if pretrained and cfg.file and Path(cfg.file).is_file():  # what timm calls local-dir: is a folder
        told = read_checkpoint(cfg.file)
        require_same_function(cfg.file, told, kwargs.get("strides", STRIDES), kwargs.get("shuffle_groups", 2))
    return build_model_with_cfg(
        RDPNet,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        pretrained_cfg_overlay=overlay,
        feature_cfg={"out_indices": (0, 1, 2, 3, 4), "flatten_sequential": True, **kwargs.pop("feature_cfg", {})},
        **kwargs,
    )


def _create_rdpnet_cifar(variant: str, pretrained: bool = False, **kwargs: Any) -> RDPNet:
    return _create_rdpnet(variant, pretrained, **{"strides": CIFAR_STRIDES, **kwargs})


@register_model
def rdpnet_025(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-0.25x for 224x224 images."""
    return _create_rdpnet("rdpnet_025", pretrained, width=0.25, **kwargs)


@register_model
def rdpnet_050(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-0.5x for 224x224 images."""
    return _create_rdpnet("rdpnet_050", pretrained, width=0.5, **kwargs)


@register_model
def rdpnet_075(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-0.75x for 224x224 images."""
    return _create_rdpnet("rdpnet_075", pretrained, width=0.75, **kwargs)


@register_model
def rdpnet_100(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-1.0x for 224x224 images."""
    return _create_rdpnet("rdpnet_100", pretrained, width=1.0, **kwargs)


@register_model
def rdpnet_125(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-1.25x for 224x224 images."""
    return _create_rdpnet("rdpnet_125", pretrained, width=1.25, **kwargs)


@register_model
def rdpnet_150(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-1.5x for 224x224 images."""
    return _create_rdpnet("rdpnet_150", pretrained, width=1.5, **kwargs)


@register_model
def rdpnet_025_cifar(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-0.25x for 32x32 images."""
    return _create_rdpnet_cifar("rdpnet_025_cifar", pretrained, width=0.25, **kwargs)


@register_model
def rdpnet_050_cifar(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-0.5x for 32x32 images."""
    return _create_rdpnet_cifar("rdpnet_050_cifar", pretrained, width=0.5, **kwargs)


@register_model
def rdpnet_075_cifar(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-0.75x for 32x32 images."""
    return _create_rdpnet_cifar("rdpnet_075_cifar", pretrained, width=0.75, **kwargs)


@register_model
def rdpnet_100_cifar(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-1.0x for 32x32 images."""
    return _create_rdpnet_cifar("rdpnet_100_cifar", pretrained, width=1.0, **kwargs)


@register_model
def rdpnet_125_cifar(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-1.25x for 32x32 images."""
    return _create_rdpnet_cifar("rdpnet_125_cifar", pretrained, width=1.25, **kwargs)


@register_model
def rdpnet_150_cifar(pretrained: bool = False, **kwargs: Any) -> RDPNet:
    """RDPNet-1.5x for 32x32 images."""
    return _create_rdpnet_cifar("rdpnet_150_cifar", pretrained, width=1.5, **kwargs)
