"""Figures of others, to put beside what is measured: the paper's tables, and ImageNet accuracies as published."""

from typing import Any, Dict, NamedTuple, Optional, Tuple

__all__ = ["ABLATIONS", "IMAGENET", "PAPER", "PaperTable", "Published", "published_size"]


class PaperTable(NamedTuple):
    """One table of the paper: the headings of its columns, its rows by network, and what to know of it."""

    columns: Tuple[str, ...]
    rows: Dict[str, Tuple[Optional[float], ...]]
    note: str


_CIFAR_COLUMNS = ("M params", "M MACs", "CIFAR-10 %", "CIFAR-100 %", "CPU ms")
_I5 = "The paper's latencies are from an Intel i5-9400F, batch 1."
_RDPNET_CIFAR: Dict[str, Tuple[Optional[float], ...]] = {
    "RDPNet-0.25x": (0.20, 6.7, 89.7, 68.4, 11.79),
    "RDPNet-0.5x": (0.46, 21.9, 92.0, 70.5, 13.0),
    "RDPNet-0.75x": (0.80, 45.9, 92.4, 72.3, 13.75),
    "RDPNet-1.0x": (1.3, 78.5, 93.7, 73.8, 14.67),
    "RDPNet-1.25x": (1.86, 117.7, 94.5, 75.1, 16.76),
    "RDPNet-1.5x": (2.60, 164.3, 94.7, 75.6, 17.36),
}

# Xu, Zhao, Xu, "RDPNet", Journal of Cloud Computing 11:54, 2022, doi 10.1186/s13677-022-00330-5
PAPER: Dict[str, PaperTable] = {
    "table1": PaperTable(
        ("M params", "G MACs", "CUDA ms", "CPU ms"),
        {
            "VGG16": (138, 15.5, 467.0, 122.78),
            "ResNet18": (11.7, 1.8, 22.29, 65.58),
            "ResNet50": (25.6, 4.1, 85.55, 107.67),
            "MobileNetV3-small-1.0x": (3.6, 0.1, 20.31, 30.43),
            "MobileNetV2-1.0x": (3.5, 0.3, 38.29, 45.62),
            "ShuffleNetV2-1.5x": (3.5, 0.3, 28.31, 36.05),
            "RepVGG-A0": (7.0, 1.4, 4.83, 52.34),
            "RDPNet-1.0x": (1.3, 0.3, 12.45, 23.14),
        },
        f"{_I5} CUDA is an RTX 3060 Ti.",
    ),
    "table3": PaperTable(_CIFAR_COLUMNS, _RDPNET_CIFAR, _I5),
    "table4": PaperTable(
        _CIFAR_COLUMNS,
        {
            **_RDPNET_CIFAR,
            "MobileNetV1-0.25x": (0.24, 13.01, 90.4, 68.23, 14.18),
            "MobileNetV1-0.5x": (0.82, 47.21, 91.8, 70.8, 17.59),
            "MobileNetV1-0.75x": (1.82, 102.66, 92.7, 72.2, 18.71),
            "MobileNetV1-1.0x": (3.22, 179.34, 93.4, 73.4, 23.36),
            "MobileNetV2-0.25x": (0.25, 8.97, 89.9, 67.5, 25.60),
            "MobileNetV2-0.5x": (0.70, 27.32, 92.0, 72.5, 27.21),
            "MobileNetV2-0.75x": (1.63, 55.13, 93.1, 73.2, 37.13),
            "MobileNetV2-1.0x": (2.24, 92.40, 93.6, 74.9, 42.23),
            "MobileNetV3-small-0.35x": (0.31, 3.45, 88.8, 66.5, 21.48),
            "MobileNetV3-small-0.75x": (0.72, 11.40, 92.0, 70.4, 23.68),
            "MobileNetV3-large-0.75x": (1.73, 40.67, 93.7, 73.9, 33.54),
            "MobileNetV3-large-1.0x": (2.98, 68.45, 93.7, 75.2, 35.90),
        },
        f"{_I5} Its RDPNet rows are those of Table 3.",
    ),
    "table5": PaperTable(
        ("top-1 %", "top-5 %", "CPU ms"),
        {
            "MobileNetV2-0.5x": (65.03, 85.72, 38.52),
            "MobileNetV3-large-0.35x": (64.78, 83.56, 23.83),
            "ShuffleNetV2-0.5x": (61.32, 83.73, 25.58),
            "RDPNet-0.75x": (67.23, 88.93, 18.58),
            "MobileNetV1-1.0x": (70.99, 89.68, 40.76),
            "MobileNetV2-1.0x": (72.15, 90.65, 46.62),
            "MobileNetV3-small-1.25x": (70.67, 89.51, 37.08),
            "ShuffleNetV2-1.5x": (71.63, 90.15, 36.76),
            "RDPNet-1.25x": (73.65, 91.82, 23.60),
        },
        f"{_I5} Its latencies of MobileNetV3-large-0.35x and ShuffleNetV2-0.5x stand in no clear row there, and may be "
        "the other way round.",
    ),
    "table6": PaperTable(
        (),
        {},
        "The rows of the paper's Table 6 (mAP and latency) cannot be read in its published layout, so none is quoted.",
    ),
    "table7": PaperTable(
        ("mIoU", "CPU s"),
        {
            "MobileNetV2-0.5x": (0.708, 0.317),
            "MobileNetV3-large-0.35x": (0.693, 0.292),
            "RDPNet-0.75x": (0.721, 0.237),
            "MobileNetV2-1.0x": (0.711, 0.379),
            "MobileNetV3-small-1.25x": (0.768, 0.350),
            "RDPNet-1.25x": (0.782, 0.276),
        },
        f"{_I5} They are in seconds, presumably of the whole segmentor; the source's column is slightly scrambled.",
    ),
    "table8": PaperTable(
        ("CIFAR-100 %", "CPU ms"),
        {
            "identity in PW, no shuffle": (70.6, 12.43),
            "no identity, no shuffle": (71.3, 12.40),
            "identity in PW, shuffle": (72.5, 13.54),
            "no identity, shuffle (RDPNet)": (73.8, 14.67),
        },
        f"{_I5} The batch of 128 that the paper names here is that of training: its 14.67 ms is Table 3's at batch 1.",
    ),
}

# The rows of Table 8, by what makes each of RDPNet.
ABLATIONS: Dict[str, Dict[str, Any]] = {
    "identity in PW, no shuffle": dict(pointwise_identity=True, shuffle_groups=0),
    "no identity, no shuffle": dict(shuffle_groups=0),
    "identity in PW, shuffle": dict(pointwise_identity=True),
    "no identity, shuffle (RDPNet)": dict(shuffle_groups=2),
}


def published_size(model: str) -> Optional[Tuple[float, float]]:
    """Parameters (M) and FLOPs (M) that the paper gives for one of its networks by timm's name, None where it does not.

    Those of the CIFAR form are Table 3's, those of the ImageNet form Table 1's, which has width 1 only.
    """
    width = {f"rdpnet_{float(row[7:-1]) * 100:03.0f}": row for row in _RDPNET_CIFAR}.get(model.removesuffix("_cifar"))
    if width is None:
        return None
    if model.endswith("_cifar"):
        params, flops = PAPER["table3"].rows[width][:2]
    else:
        params, gigaflops = PAPER["table1"].rows.get(width, (None, None))[:2]
        flops = None if gigaflops is None else gigaflops * 1e3
    return None if params is None or flops is None else (params, flops)


class Published(NamedTuple):
    """An ImageNet-1k accuracy as published: top-1 in %, at which resolution, by whom and how trained."""

    top1: float
    resolution: int
    source: str
    recipe: str


def _timm(top1: float, recipe: str, resolution: int = 224) -> Published:
    return Published(top1, resolution, "timm 1.0.31, results/results-imagenet.csv", recipe)


_AUTHORS = "the authors'"
_PAPER_RECIPE = "SGD, cosine, resize and flip; epochs not given"
_PADDLE = "the authors' model zoo, github.com/PaddlePaddle/PaddleClas"
_CPUBONE = "the authors' README, github.com/altair199797/CPUBone"

# By timm's name. Where timm has several weights: those at the resolution of training, without a larger pretraining set.
IMAGENET: Dict[str, Published] = {
    "rdpnet_075": Published(67.23, 224, "the paper, Table 5", _PAPER_RECIPE),
    "rdpnet_125": Published(73.65, 224, "the paper, Table 5", _PAPER_RECIPE),
    "cpubone_nano": Published(72.67, 224, _CPUBONE, _AUTHORS),
    "cpubone_t0": Published(74.85, 224, _CPUBONE, _AUTHORS),
    "lcnet_050": _timm(63.138, "timm, RandAugment (ra2)"),
    "lcnet_075": _timm(68.786, "timm, RandAugment (ra2)"),
    "lcnet_100": _timm(72.130, "timm, RandAugment (ra2)"),
    "lcnet_150": Published(73.71, 224, _PADDLE, _AUTHORS),
    "lcnetv2_base": Published(77.04, 224, _PADDLE, f"{_AUTHORS}, not distilled"),
    "mobilenetv4_conv_small_050": _timm(64.778, "timm, 3000 epochs (e3000_r224)"),
    "mobilenetv4_conv_small": _timm(73.756, "timm, 2400 epochs (e2400_r224)"),
    "mobileone_s0": _timm(71.398, f"{_AUTHORS} (apple)"),
    "mobileone_s1": _timm(75.760, f"{_AUTHORS} (apple)"),
    "repvit_m0_9": _timm(78.652, f"{_AUTHORS}, 300 epochs, distilled"),
    "repghostnet_050": _timm(66.978, _AUTHORS),
    "repghostnet_080": _timm(72.240, _AUTHORS),
    "repghostnet_100": _timm(74.208, _AUTHORS),
    "starnet_s1": _timm(73.532, _AUTHORS),
    "fasternet_t0": _timm(71.732, _AUTHORS),
    "tinynet_d": _timm(66.936, _AUTHORS, 152),
    "shvit_s1": _timm(72.780, _AUTHORS),
    "edgenext_xx_small": _timm(71.132, _AUTHORS, 256),
    "fastvit_t8": _timm(76.184, f"{_AUTHORS} (apple), not distilled", 256),
    "mobilenetv2_100": _timm(72.910, "timm, RandAugment (ra)"),
    "mobilenetv3_small_100": _timm(67.636, "timm, LAMB"),
    "mobilenetv3_large_100": _timm(75.784, "timm, RandAugment (ra)"),
}
