"""What each table compares: networks, at which size, in which forms, beside which network of ours."""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Callable, Dict, List, Mapping, Optional, Tuple

import timm
from torch import Tensor, nn

from ..blocks import DepthBlock, PointBlock, RepVGGBlock
from ..convert import reparameterize
from ..measure.forms import deploy_form
from ..measure.published import ABLATIONS, IMAGENET, PAPER, PaperTable
from ..rdpnet import CIFAR_STRIDES
from . import peers

__all__ = ["DEPLOY", "TABLES", "TRAIN", "Comparison", "Entry", "Table"]

TRAIN, PAPER_DEPLOY, DEPLOY = "train form", "paper's deploy form", "deploy form"
MakeForm = Callable[[nn.Module, Tensor], nn.Module]

IMAGENET_SIZE, CIFAR_SIZE = (3, 224, 224), (3, 32, 32)
DETECTOR_SIZE = (3, 608, 800)  # a VOC picture of 500x375 at the detector's scale, padded to a multiple of 32
SEGMENTOR_SIZE = (3, 512, 512)
PICTURE_SIZE = (375, 500, 3)  # one of VOC's


@dataclass(frozen=True)
class Entry:
    """A network in a table.

    Attributes:
        name: as the tables print it, and as the paper's figures are found by.
        build: makes it in its train form, with random weights.
        size: ``(C, H, W)`` of the image it is timed with.
        x: where a plot of a sweep puts it; None elsewhere.
        series: the line of such a plot that it belongs to.
    """

    name: str
    build: Callable[[], nn.Module]
    size: Tuple[int, int, int] = IMAGENET_SIZE
    x: Optional[float] = None
    series: str = ""


@dataclass(frozen=True)
class Comparison:
    """Networks that take turns, and the one in whose latencies, in its last form, theirs are expressed.

    ``x_label`` names what a sweep varies.
    """

    title: str
    entries: Tuple[Entry, ...]
    reference: str
    x_label: str = ""


@dataclass(frozen=True)
class Table:
    """A table, or the table behind a figure.

    Attributes:
        name: the subcommand's argument.
        title: its heading.
        comparisons: what is measured, each on its own.
        whole: the same of whole networks, which take a picture ``(H, W, 3)``: their entries build OpenMMLab's networks
            as :mod:`.whole_networks` times them.
        forms: the forms in eager mode, the train form first, by name.
        runtime_forms: those that the other backends are given.
        note: what a reader should know.
        accuracy: accuracy in % by network, where latency is drawn against it.
    """

    name: str
    title: str
    comparisons: Tuple[Comparison, ...]
    forms: Mapping[str, MakeForm]
    runtime_forms: Tuple[str, ...] = (DEPLOY,)
    note: str = ""
    accuracy: Optional[Mapping[str, float]] = None
    whole: Tuple[Comparison, ...] = ()

    @property
    def paper(self) -> PaperTable:
        """The paper's figures, none where it has no such table."""
        return PAPER.get(self.name, PaperTable((), {}, ""))


def _as_built(model: nn.Module, _: Tensor) -> nn.Module:
    return model


def _paper_deploy_form(model: nn.Module, _: Tensor) -> nn.Module:
    """Every block merged on its own: shuffle and stride stay where they are in training."""
    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, (DepthBlock, PointBlock, RepVGGBlock)):
            module.reparameterize()
    return model


def _our_deploy_form(model: nn.Module, _: Tensor) -> nn.Module:
    return reparameterize(model)


_BOTH: Dict[str, MakeForm] = {TRAIN: _as_built, DEPLOY: deploy_form}
_DEPLOYED: Dict[str, MakeForm] = {DEPLOY: deploy_form}

_RDPNET = {name: float(name[:-1]) for name in ("0.25x", "0.5x", "0.75x", "1.0x", "1.25x", "1.5x")}
_NETWORKS: Dict[str, Callable[..., nn.Module]] = {
    **{f"RDPNet-{name}": partial(peers.rdpnet, width) for name, width in _RDPNET.items()},
    **{f"MobileNetV1-{width}x": partial(peers.mobilenet_v1, width) for width in (0.25, 0.5, 0.75, 1.0)},
    **{f"MobileNetV2-{width}x": partial(peers.mobilenet_v2, width) for width in (0.25, 0.5, 0.75, 1.0, 1.4)},
    **{
        f"MobileNetV3-{size}-{width}x": partial(peers.mobilenet_v3, size, width)
        for size in ("small", "large")
        for width in (0.35, 0.75, 1.0, 1.25)
    },
    **{f"ShuffleNetV2-{width}x": partial(peers.shufflenet_v2, width) for width in (0.5, 1.5)},
    "VGG16": partial(peers.timm_model, "vgg16"),
    "ResNet18": partial(peers.timm_model, "resnet18"),
    "ResNet50": partial(peers.timm_model, "resnet50"),
    "RepVGG-A0": partial(peers.timm_model, "repvgg_a0"),
}


def _entries(names: List[str]) -> Tuple[Entry, ...]:
    return tuple(Entry(name, _NETWORKS[name]) for name in names)


def _cifar(name: str) -> Entry:
    if name.startswith("RDPNet"):
        return Entry(name, partial(_NETWORKS[name], strides=CIFAR_STRIDES, num_classes=10), CIFAR_SIZE)
    return Entry(name, lambda: peers.cifar_form(_NETWORKS[name](num_classes=10)), CIFAR_SIZE)


def _trunk(name: str, size: Tuple[int, int, int], **kwargs: object) -> Entry:
    return Entry(name, lambda: peers.Trunk(_NETWORKS[name](**kwargs)), size)


def _segmentor_trunk(name: str) -> Entry:
    dilates: Dict[str, object] = {"dilated": True} if name.startswith("MobileNetV3") else {"output_stride": 16}
    return _trunk(name, SEGMENTOR_SIZE, **dilates)


# The configs of whole networks by the names of their backbones.
_CONFIGS = {
    "MobileNetV2-0.5x": "peers/{}_mobilenetv2_050_voc.py",
    "MobileNetV3-large-0.35x": "peers/{}_mobilenetv3_large_035_voc.py",
    "RDPNet-0.75x": "{}_rdpnet075_voc.py",
    "MobileNetV2-1.0x": "peers/{}_mobilenetv2_100_voc.py",
    "MobileNetV3-small-1.25x": "peers/{}_mobilenetv3_small_125_voc.py",
    "RDPNet-1.25x": "{}_rdpnet_voc.py",
}


def _whole(kind: str, name: str) -> Entry:
    def build() -> nn.Module:
        from .whole_networks import random_network  # OpenMMLab is wanted here and nowhere else

        return random_network(_CONFIGS[name].format(kind))

    return Entry(name, build, PICTURE_SIZE)


# Names as the tables print them, by timm's; the accuracies of published.py are found by the latter.
_MODERN = {
    "rdpnet_050": "RDPNet-0.5x",
    "rdpnet_075": "RDPNet-0.75x",
    "rdpnet_100": "RDPNet-1.0x",
    "rdpnet_125": "RDPNet-1.25x",
    "cpubone_nano": "CPUBone-nano",
    "cpubone_t0": "CPUBone-T0",
    "lcnet_050": "PP-LCNet-0.5x",
    "lcnet_075": "PP-LCNet-0.75x",
    "lcnet_100": "PP-LCNet-1.0x",
    "lcnet_150": "PP-LCNet-1.5x",
    "lcnetv2_small": "PP-LCNetV2-small",
    "lcnetv2_base": "PP-LCNetV2-base",
    "mobilenetv4_conv_small_050": "MobileNetV4-conv-small-0.5x",
    "mobilenetv4_conv_small": "MobileNetV4-conv-small",
    "mobileone_s0": "MobileOne-S0",
    "mobileone_s1": "MobileOne-S1",
    "repvit_m0_9": "RepViT-M0.9",
    "repghostnet_050": "RepGhostNet-0.5x",
    "repghostnet_080": "RepGhostNet-0.8x",
    "repghostnet_100": "RepGhostNet-1.0x",
    "starnet_s050": "StarNet-S050",
    "starnet_s100": "StarNet-S100",
    "starnet_s1": "StarNet-S1",
    "fasternet_t0": "FasterNet-T0",
    "tinynet_d": "TinyNet-D",
    "shvit_s1": "SHViT-S1",
    "edgenext_xx_small": "EdgeNeXt-XXS",
    "fastvit_t8": "FastViT-T8",
    "mobilenetv2_100": "MobileNetV2-1.0x",
    "mobilenetv3_small_100": "MobileNetV3-small-1.0x",
    "mobilenetv3_large_100": "MobileNetV3-large-1.0x",
}


def _known_modern() -> List[Tuple[str, str]]:
    """The networks of today that this version of timm has."""
    return [(timm_name, name) for timm_name, name in _MODERN.items() if timm.is_model(timm_name)]


def _modern(timm_name: str, name: str) -> Entry:
    resolution = IMAGENET[timm_name].resolution if timm_name in IMAGENET else 224
    return Entry(name, partial(peers.timm_model, timm_name), (3, resolution, resolution))


def _modern_note() -> str:
    by_source: Dict[str, List[str]] = {}
    for name, figure in IMAGENET.items():
        resolution = "" if figure.resolution == 224 else f", {figure.resolution}x{figure.resolution}"
        by_source.setdefault(figure.source, []).append(f"{_MODERN[name]} ({figure.recipe}{resolution})")
    sources = "".join(f"\n- {source}: {', '.join(names)}" for source, names in by_source.items())
    return (
        "Accuracies are others' figures, from training recipes of very different length and kind; each network is "
        f"timed at the resolution of its figure, one without a figure is timed only. Sources, and recipes:\n{sources}"
    )


def _stacks(title: str, channels: int, size: int, separable: bool) -> Comparison:
    kinds = {"straight": 0, "residual, 2 layers": 2, "residual, 3 layers": 3}
    entries = tuple(
        Entry(
            f"{kind}, depth {depth}",
            partial(peers.stack, depth, per_block, channels, separable),
            (channels, size, size),
            depth,
            kind,
        )
        for depth in (4, 7, 10, 13, 16, 19, 22, 25)
        for kind, per_block in kinds.items()
    )
    return Comparison(f"{title}, {channels} channels, {size}x{size}", entries, "straight, depth 25", "layers")


def _widths() -> Comparison:
    families: Dict[str, List[float]] = {
        "RDPNet": list(_RDPNET.values()),
        "MobileNetV2": [0.25, 0.5, 0.75, 1.0, 1.4],
        "MobileNetV3-large": [0.35, 0.75, 1.0, 1.25],
    }
    entries = tuple(
        Entry(f"{family}-{width}x", _NETWORKS[f"{family}-{width}x"], IMAGENET_SIZE, width, family)
        for family, widths in families.items()
        for width in widths
    )
    return Comparison("Width at 224x224", entries, "RDPNet-1.0x", "width multiplier")


def _resolutions() -> Comparison:
    entries = tuple(
        Entry(f"{name} at {size}", _NETWORKS[name], (3, size, size), size, name)
        for name in ("RDPNet-1.0x", "MobileNetV2-1.0x", "MobileNetV3-large-1.0x")
        for size in (96, 128, 160, 192, 224, 256, 320, 384)
    )
    return Comparison("Resolution at width 1.0", entries, "RDPNet-1.0x at 224", "resolution, pixels")


def _groups(entry: Callable[[str], Entry], a: List[str], b: List[str], of: str = "") -> Tuple[Comparison, ...]:
    """The paper's two groups, ours the last of each; ``of`` says what of the networks it is."""
    return tuple(
        Comparison(title + of, tuple(map(entry, names)), names[-1]) for title, names in (("Group A", a), ("Group B", b))
    )


_DETECTORS = (["MobileNetV3-large-0.35x", "RDPNet-0.75x"], ["MobileNetV3-small-1.25x", "RDPNet-1.25x"])
_SEGMENTORS = (
    ["MobileNetV2-0.5x", "MobileNetV3-large-0.35x", "RDPNet-0.75x"],
    ["MobileNetV2-1.0x", "MobileNetV3-small-1.25x", "RDPNet-1.25x"],
)
_WHOLE_NOTE = (
    " Whole networks, in the runtimes alone: what `rdpnet export` writes of the configs in `mm_configs`, resize and "
    "choice of boxes included, for a picture of 500x375. Their weights are random, which is good for times and nothing "
    "else: what INT8 and bfloat16 cost them is measured on trained weights, by `rdpnet bench whole-networks`."
)


TABLES: Dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "table1",
            "Table 1: kinds of networks, 224x224",
            (Comparison("224x224", _entries(list(PAPER["table1"].rows)), "RDPNet-1.0x"),),
            _BOTH,
        ),
        Table(
            "table3",
            "Table 3: RDPNet for CIFAR, 32x32",
            (Comparison("32x32", tuple(map(_cifar, PAPER["table3"].rows)), "RDPNet-1.0x"),),
            _BOTH,
        ),
        Table(
            "table4",
            "Table 4: MobileNets for CIFAR, 32x32",
            (Comparison("32x32", tuple(map(_cifar, PAPER["table4"].rows)), "RDPNet-1.0x"),),
            _BOTH,
            note="The peers' first two strided convolutions have stride 1, as is usual for CIFAR.",
        ),
        Table(
            "table5",
            "Table 5: ImageNet, 224x224",
            _groups(
                lambda name: Entry(name, _NETWORKS[name]),
                ["MobileNetV2-0.5x", "MobileNetV3-large-0.35x", "ShuffleNetV2-0.5x", "RDPNet-0.75x"],
                [
                    "MobileNetV1-1.0x",
                    "MobileNetV2-1.0x",
                    "MobileNetV3-small-1.25x",
                    "ShuffleNetV2-1.5x",
                    "RDPNet-1.25x",
                ],
            ),
            _BOTH,
            accuracy={name: row[0] for name, row in PAPER["table5"].rows.items() if row[0]},
        ),
        Table(
            "table6",
            "Table 6: Faster R-CNN, backbones and whole",
            _groups(lambda name: _trunk(name, DETECTOR_SIZE), *_DETECTORS, ": backbones, 608x800"),
            _BOTH,
            note="A VOC picture of 500x375 is 608x800 at the detector's scale (1000, 600), padded to a multiple of 32. "
            "A backbone is everything in front of the classifier's pooling." + _WHOLE_NOTE + " Every detector is "
            "brought to as many boxes: 1000 proposals, 300 candidates above the threshold.",
            whole=_groups(partial(_whole, "faster_rcnn"), *_DETECTORS, ": whole Faster R-CNN"),
        ),
        Table(
            "table7",
            "Table 7: DeepLabV3+, backbones and whole",
            _groups(_segmentor_trunk, *_SEGMENTORS, ": backbones, 512x512, output stride 16"),
            _BOTH,
            note="A backbone is everything in front of the classifier's pooling." + _WHOLE_NOTE,
            whole=_groups(partial(_whole, "deeplabv3plus"), *_SEGMENTORS, ": whole DeepLabV3+"),
        ),
        Table(
            "table8",
            "Table 8: what identity, shuffle and stride cost, RDPNet-1.0x, 32x32",
            (
                Comparison(
                    "32x32",
                    tuple(
                        Entry(
                            name,
                            partial(peers.rdpnet, 1.0, strides=CIFAR_STRIDES, num_classes=100, **kwargs),
                            CIFAR_SIZE,
                        )
                        for name, kwargs in ABLATIONS.items()
                    ),
                    "no identity, shuffle (RDPNet)",
                ),
            ),
            {TRAIN: _as_built, PAPER_DEPLOY: _paper_deploy_form, DEPLOY: _our_deploy_form},
            (TRAIN, PAPER_DEPLOY, DEPLOY),
            note="The paper's deploy form merges each block and leaves shuffle and stride where training has them; "
            "ours folds the shuffle into the pointwise weight and moves the stride to the depthwise convolution.",
        ),
        Table(
            "figure2",
            "Figure 2: straight and residual stacks",
            (
                _stacks("Dense 3x3 layers", 64, 56, separable=False),
                _stacks("Separable layers", 256, 14, separable=True),
            ),
            {DEPLOY: _as_built},
            note="Layers without norms. The paper gives neither channels nor map sizes; these are ours.",
        ),
        Table(
            "modern",
            "RDPNet among today's networks",
            (Comparison("Batch 1", tuple(_modern(*item) for item in _known_modern()), "RDPNet-1.25x"),),
            _BOTH,
            note=_modern_note(),
            accuracy={_MODERN[name]: figure.top1 for name, figure in IMAGENET.items()},
        ),
        Table("scaling", "Latency against MACs, width and resolution", (_widths(), _resolutions()), _DEPLOYED),
    )
}
