"""A trained detector or segmentor of OpenMMLab as the file that a device runs: a picture in, boxes or classes out.

What mmdet and mmseg do to a picture before their network, and what they do to its outputs, is part of the file: the
resize of the test pipeline, channel order, normalisation and padding; proposals, the choice of boxes and their
suppression. An operator that only one runtime has is not used.
"""

import logging
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import nn

from ..convert import reparameterize
from ..deploy.artifacts import HEADINGS, Exported, columns, file_names
from ..deploy.bias import correct_bias
from ..deploy.equalization import NotStraight, equalize
from ..deploy.formats import FORMATS, known_format, onnx_to_openvino, require_formats, trace_to_onnx
from ..deploy.quantize import quantize_onnx, quantize_openvino, weight_steps
from ..extras import require
from ..files import all_or_nothing
from ..measure.difference import evaluating
from ..measure.machine import has_vnni
from ..weights.reading import read_state_dict
from .agreement import Agreement, agreement, openmmlab_answers
from .config_reading import named_classes
from .detector import Detector
from .picture import picture_transforms, test_dataset
from .segmentor import Segmentor

__all__ = [
    "DENSE", "WholeNetwork", "build", "drawn_pictures", "dynamic_axes", "equalize_backbone", "export_openmmlab",
    "table", "traceable",
]  # fmt: skip

DENSE = ("backbone", "neck", "rpn_head", "bbox_head", "decode_head")  # what INT8 is for; choosing boxes stays in float
_LOGGER = logging.getLogger("rdpnet_timm")
_QUANTIZERS: Dict[str, Any] = {"onnx": quantize_onnx, "openvino": quantize_openvino}


@dataclass(kw_only=True)
class WholeNetwork(Exported):
    """An exported detector or segmentor, 'onnx' or 'openvino'; ``agreement``: with what OpenMMLab itself answers."""

    agreement: Agreement


def export_openmmlab(
    config: Union[str, Path],
    output: Union[str, Path],
    checkpoint: Union[str, Path, None] = None,
    formats: Sequence[str] = ("onnx",),
    name: Optional[str] = None,
    size: Optional[Tuple[int, int]] = None,
    score_threshold: Optional[float] = None,
    logits: bool = False,
    class_names: Optional[Sequence[str]] = None,
    pictures: Optional[Sequence[np.ndarray]] = None,
    int8: bool = False,
    equalization: Optional[bool] = None,
    bias_correction: bool = True,
    reduce_range: Optional[bool] = None,
    tolerance: float = 0.01,
    int8_tolerance: float = 0.5,
    rounds: int = 20,
    overwrite: bool = False,
) -> List[WholeNetwork]:
    """Export a Faster R-CNN of mmdet or an encoder-decoder of mmseg; all files are written, or none.

    Args:
        config: of mmdet or mmseg.
        output: the folder to write to, made where needed.
        checkpoint: as mmengine saves it; without it the weights are random, whatever the config's ``init_cfg`` says: a
            file to time, which finds nothing.
        formats: of 'onnx', 'openvino'.
        name: of the files, without suffix; by default the config's.
        size: ``(H, W)`` of the pictures; by default each may have its own.
        score_threshold: boxes at or below it are left out; by default the config's.
        logits: of a segmentor, too.
        class_names: by default what the checkpoint says, or the config, or those of its type of dataset.
        pictures: real ones ``(H, W, 3)``, uint8, RGB, to compare with OpenMMLab on, and for INT8; drawn ones without.
        int8: write INT8 artefacts beside the float ones.
        equalization: equalise the backbone before INT8; by default where it is an RDPNet.
        bias_correction: correct biases for the rounding of the weights.
        reduce_range: INT8 weights of 7 bits; by default where this CPU has no VNNI.
        tolerance: share of boxes or pixels that may differ from OpenMMLab's, for float.
        int8_tolerance: share of boxes without one of their class near by, or of pixels with another class, for INT8.
        rounds: timed calls for each set of runtime options, at most.
        overwrite: replace artefacts of the same name.

    Raises:
        FileExistsError: there are artefacts of this name, and ``overwrite`` is False.
        Unsupported: a network, or a part of one, that cannot be exported; the message names it.
        ValueError: a format, a size, class names or a checkpoint that do not fit.
        RuntimeError: a file does not answer as OpenMMLab does.
        OSError: the config or the checkpoint is not there, or ``output`` cannot be written.
    """
    chosen = {each: known_format(each) for each in formats}
    if not chosen or set(chosen) - set(_QUANTIZERS):
        known = " or ".join(_QUANTIZERS)
        raise ValueError(f"a whole network is exported as {known}, got {', '.join(formats) or 'no format'}")
    require_formats(chosen, chosen if int8 else ())
    if size is not None and min(size) < 1:
        raise ValueError(f"pictures have a height and a width of at least 1, got {tuple(size)}")
    if score_threshold is not None and not 0 <= score_threshold < 1:
        raise ValueError(f"scores lie between 0 and 1, got the threshold {score_threshold}")
    if int8 and not pictures:
        raise ValueError("INT8 needs real pictures to measure activations on: give them (--calibration IMAGES)")
    wrong = [each.shape[:2] for each in pictures or () if size is not None and each.shape[:2] != tuple(size)]
    if wrong:
        raise ValueError(
            f"pictures are to have the size {tuple(size or ())} (height, width), and {len(wrong)} of those "
            f"given have another, the first {wrong[0]}: leave out --size, or give such pictures"
        )
    name = name or Path(config).stem
    present = [target for target in file_names(name, chosen.values(), int8) if (Path(output) / target).exists()]
    if present and not overwrite:
        raise FileExistsError(
            f"there is {' and '.join(present)} in '{output}': choose another folder or name, or --overwrite"
        )
    model, settings = build(config, checkpoint)
    if checkpoint is None:
        _LOGGER.warning("no checkpoint is given: the weights are random, and what is exported finds nothing")
    network = traceable(reparameterize(model), settings, score_threshold, logits)
    names = _class_names(model, settings, class_names)
    tests = list(pictures[:64]) if pictures else drawn_pictures(size or _usual_size(network))
    if score_threshold is not None and isinstance(network, Detector):
        model.roi_head.test_cfg.score_thr = score_threshold
    with evaluating(model):
        expected = [openmmlab_answers(model, settings)(picture) for picture in tests]
    with all_or_nothing(Path(output)) as folder, tempfile.TemporaryDirectory() as scratch:
        jobs: List[Tuple[str, Any, List[str], Dict[str, Any]]] = [("float32", network, list(chosen), {})]
        if int8 and pictures:
            reduced = not has_vnni() if reduce_range is None else reduce_range
            equalized, steps = _equalized(network, equalization)
            steps.update(bias_corrected=bias_correction, images=len(pictures), reduced_range=reduced)
            for rounding in dict.fromkeys(weight_steps(each, reduced) for each in chosen):
                ready = _corrected(equalized, pictures, rounding) if bias_correction else equalized
                jobs.append(
                    ("int8", ready, [each for each in chosen if weight_steps(each, reduced) == rounding], steps)
                )
        done = []
        for precision, each, format_names, steps in jobs:
            source = Path(scratch) / f"{precision}.onnx"
            with evaluating(each):
                trace_to_onnx(each, torch.from_numpy(tests[0]), source, each.outputs, dynamic_axes(each, size))
            for format_name, kind in ((known, chosen[known]) for known in format_names):
                path = folder / f"{name}{'-int8' * (precision == 'int8')}{kind.suffixes[0]}"
                if precision == "int8":
                    _QUANTIZERS[format_name](
                        source, path, list(pictures or ()), reduce_range=steps["reduced_range"], parts=DENSE
                    )
                elif format_name == "onnx":
                    path.write_bytes(source.read_bytes())
                else:
                    onnx_to_openvino(source, path)
                exported = _checked(path, format_name, precision, tests, expected)
                _require(exported, tolerance if precision == "float32" else int8_tolerance)
                # On more threads than one it may compute with the sizes of the picture before.
                kind = kind._replace(one_pool=format_name == "openvino" and size is None)
                exported.tune(kind, tests[0], rounds)
                framework = "mmdet" if isinstance(each, Detector) else "mmsegmentation"
                facts = _facts(exported, each, model, config, checkpoint, names, size, steps, bool(pictures))
                exported.describe(facts, ["torch", "timm", "mmengine", framework])
                done.append(exported)
    if checkpoint is not None and not any(each.agreement.compared for each in done):
        _LOGGER.warning(
            "neither OpenMMLab nor what was exported found a box in %d %s pictures, so nothing was compared: give "
            "pictures with objects (--calibration IMAGES)",
            len(tests),
            "given" if pictures else "drawn",
        )
    for exported in done:
        exported.moved(Path(output))
    return done


def build(config: Union[str, Path], checkpoint: Union[str, Path, None] = None) -> Tuple[Any, Any]:
    """The model of a config with the weights of a checkpoint, in its train form and evaluation mode; and the config.

    Without a checkpoint the weights are random: no ``init_cfg`` is followed, and nothing downloaded.

    Raises:
        FileNotFoundError: one of the two is not there.
        ValueError: the config is not mmdet's or mmseg's, or the checkpoint is not of this model.
    """
    config = Path(config)
    if not config.is_file():
        raise FileNotFoundError(f"no config at '{config}'")
    require("mmengine", "export of OpenMMLab's networks")
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    settings = Config.fromfile(config)
    scope = settings.get("default_scope") or _package(settings.get("model") or {})
    if "model" not in settings or scope not in ("mmdet", "mmseg"):
        raise ValueError(
            f"expected a config of mmdet or mmseg with a model in it, got '{config}' of {scope or 'no scope'}; "
            "a classifier is exported by its timm name or checkpoint"
        )
    settings.default_scope = scope
    require(scope, "export of this config")
    require(f"{scope}.utils", "export of this config").register_all_modules(init_default_scope=False)
    init_default_scope(scope)
    backbone = settings.model.get("backbone") or {}
    if backbone.get("pretrained") is True:  # a TimmBackbone's, which its constructor would download
        backbone["pretrained"] = False
    model = revert_sync_batchnorm(MODELS.build(settings.model))
    if checkpoint is not None:
        weights, meta = read_state_dict(checkpoint)
        _load(model, weights, Path(checkpoint), config)
        model.dataset_meta = (meta.get("meta") or {}).get("dataset_meta")
    return model.eval().requires_grad_(False), settings


def _package(model: Dict[str, Any]) -> str:
    """Whose a model is, by its type: a class, or a name with the scope before it."""
    kind = model.get("type", "")
    return str(getattr(kind, "__module__", kind)).split(".")[0]


def _load(model: nn.Module, weights: Dict[str, torch.Tensor], checkpoint: Path, config: Path) -> None:
    own = model.state_dict()
    missing, unknown = [key for key in own if key not in weights], [key for key in weights if key not in own]
    other = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if missing or unknown or other:
        examples = [f"'{keys[0]}' is {what}" for keys, what in ((missing, "missing"), (unknown, "unknown")) if keys]
        for key in other[:1]:
            examples.append(f"'{key}' is {tuple(weights[key].shape)} and not {tuple(own[key].shape)}")
        raise ValueError(
            f"'{checkpoint}' is no checkpoint of {config.name}: of {len(own)} weights {len(missing)} are missing and "
            f"{len(other)} have other shapes, and {len(unknown)} are unknown to it ({'; '.join(examples)}); give the "
            "config that it was trained with, which lies beside it in its work folder"
        )
    model.load_state_dict(weights)


def traceable(
    model: Any, settings: Any, score_threshold: Optional[float] = None, logits: bool = False
) -> Union[Detector, Segmentor]:
    """A model as one function of a picture; its modules are shared.

    Raises:
        Unsupported: the model, or its test pipeline, does something that is not known here.
    """
    _, resize = picture_transforms(settings)
    if settings.default_scope == "mmseg":
        if score_threshold is not None:
            raise ValueError("a segmentor has no boxes for a score threshold; leave out --score-threshold")
        return Segmentor(model, resize, logits).eval().requires_grad_(False)
    if logits:
        raise ValueError("a detector has scores and no logits; leave out --logits")
    return Detector(model, resize, score_threshold).eval().requires_grad_(False)


def _class_names(model: Any, settings: Any, given: Optional[Sequence[str]]) -> Optional[List[str]]:
    count = model.roi_head.bbox_head.num_classes if hasattr(model, "roi_head") else model.decode_head.num_classes
    names, source = given, "given"
    if names is None:
        names, source = (getattr(model, "dataset_meta", None) or {}).get("classes"), "in the checkpoint"
    if names is None:
        dataset = test_dataset(settings)
        names, source = named_classes(dataset), "in the config's metainfo"
        by_itself = _classes_of_type(dataset, settings)
        if names is None and len(by_itself) == count:
            names = by_itself
    if names is not None and len(names) != count:
        raise ValueError(
            f"the network has {count} classes, and there are {len(names)} names {source}, beginning with "
            f"{', '.join(map(str, names[:3]))}: give a file with {count} of them, one a line (--classes FILE)"
        )
    return None if names is None else [str(name) for name in names]


def _classes_of_type(dataset: Any, settings: Any) -> Sequence[str]:
    kind = dataset.get("type")
    if isinstance(kind, str):
        kind = import_module(f"{settings.default_scope}.registry").DATASETS.get(kind)
    return getattr(kind, "METAINFO", {}).get("classes", ())


def drawn_pictures(size: Tuple[int, int], count: int = 4) -> List[np.ndarray]:
    """Shapes on a smooth ground under noise, always the same, ``(H, W, 3)`` uint8."""
    random = np.random.default_rng(0)
    height, width = size
    pictures = []
    for _ in range(count):
        ground = torch.from_numpy(random.random((1, 3, 5, 5)))
        picture = torch.nn.functional.interpolate(ground, size=size, mode="bilinear")[0].permute(1, 2, 0).numpy() * 255
        for _ in range(6):
            top, left = int(random.integers(height)), int(random.integers(width))
            bottom, right = (length // 8 + int(random.integers(1 + length // 3)) for length in size)
            picture[top : top + bottom, left : left + right] = random.integers(0, 256, 3)
        picture += random.uniform(-12, 12, picture.shape)  # or places that look alike would tie, and any could win
        pictures.append(picture.clip(0, 255).round().astype(np.uint8))
    return pictures


def _usual_size(network: Union[Detector, Segmentor]) -> Tuple[int, int]:
    resize = network.picture.resize
    return (min(resize.height, 640), min(resize.width, 640)) if resize else (256, 320)


def dynamic_axes(network: Union[Detector, Segmentor], size: Optional[Tuple[int, int]]) -> Dict[str, Dict[int, str]]:
    """The dimensions that are not fixed, as :func:`trace_to_onnx` takes them, with pictures of a size or of any."""
    sides = {"image": {0: "height", 1: "width"}} if size is None else {}
    if isinstance(network, Detector):
        return {**sides, **{name: {0: "found"} for name in network.outputs}}
    if size is not None:
        return {}
    return {**sides, "classes": {0: "height", 1: "width"}, "logits": {1: "height", 2: "width"}}


def equalize_backbone(backbone: Any) -> None:
    """Equalise an RDPNet in its deploy form, in place, between one map that it returns and the next.

    A map is read by more than one layer, so its channels keep their ranges.

    Raises:
        NotStraight: the backbone is another network.
    """
    from .backbone import RDPNet

    if not isinstance(backbone, RDPNet):
        raise NotStraight(
            f"the backbone is a {type(backbone).__name__}: only an RDPNet is known to be one straight path"
        )
    modules: List[nn.Module] = []
    for index, module in enumerate([backbone.stem, *backbone.stages]):
        modules.append(module)
        if index in backbone.out_indices:
            equalize(nn.Sequential(*modules), inplace=True)
            modules = []


def _equalized(network: Any, equalization: Optional[bool]) -> Tuple[Any, Dict[str, Any]]:
    """The same function with a backbone that bears INT8, and what was done to it."""
    if equalization is False:
        return network, {"equalized": False}
    equalized = deepcopy(network)
    try:
        equalize_backbone(equalized.backbone)
    except NotStraight as error:
        if equalization:
            raise
        return network, {"equalized": False, "not_equalized_because": str(error)}
    return equalized, {"equalized": True}


def _corrected(network: Any, pictures: Sequence[np.ndarray], steps: float) -> Any:
    return correct_bias(network, [torch.from_numpy(picture) for picture in pictures], steps=steps)


def _checked(
    path: Path, format_name: str, precision: str, tests: Sequence[np.ndarray], expected: Sequence[List[np.ndarray]]
) -> WholeNetwork:
    kind = FORMATS[format_name]
    assert kind.load_all is not None
    run = kind.load_all(path, 1, kind.options[0])
    answers = [[np.array(each) for each in run(picture)] for picture in tests]
    found = agreement(expected, answers)
    return WholeNetwork(path=path, format=format_name, precision=precision, agreement=found)


def _require(exported: WholeNetwork, tolerance: float) -> None:
    found = exported.agreement
    differing = 1 - (found.same if exported.precision == "float32" else found.near)
    if not differing <= tolerance:
        raise RuntimeError(
            f"{exported.path.name} does not answer as OpenMMLab does: {differing:.1%} of {found.compared} {found.unit} "
            f"in {found.pictures} pictures differ, and the tolerance is {tolerance:.1%}; nothing was written"
        )


def _facts(
    exported: WholeNetwork,
    network: Union[Detector, Segmentor],
    model: Any,
    config: Union[str, Path],
    checkpoint: Union[str, Path, None],
    names: Optional[List[str]],
    size: Optional[Tuple[int, int]],
    steps: Dict[str, Any],
    real: bool,
) -> Dict[str, Any]:
    """What the JSON beside an artefact says of the network."""
    picture = network.picture
    if isinstance(network, Detector):
        outputs = {
            "boxes": "(N, 4) float32: left, top, right, bottom in pixels of the picture that was given",
            "scores": "(N,) float32, best first",
            "labels": "(N,) int64, counted from 0",
        }
        choice: Dict[str, Any] = {
            "score_threshold": network.score_threshold,
            "overlap_threshold": float(network.rcnn_cfg.nms["iou_threshold"]),
            "at_most": int(network.rcnn_cfg.max_per_img) if network.rcnn_cfg.max_per_img > 0 else None,
        }
    else:
        outputs = {"classes": "(H, W) uint8, counted from 0, at the size of the picture that was given"}
        if "logits" in network.outputs:
            outputs["logits"] = "(classes, H, W) float32, at the size of the picture that was given"
        choice = {}
    return {
        "network": type(model).__name__,
        "backbone": type(model.backbone).__name__,
        "config": Path(config).name,
        "weights": "random" if checkpoint is None else Path(checkpoint).name,
        "format": exported.format,
        "precision": exported.precision,
        "classes": names,
        "input": {
            "name": "image",
            "shape": [*(size or ("height", "width")), 3],
            "dtype": "uint8",
            "layout": "HWC",
            "values": "RGB, 0 to 255, as decoded and turned as its camera says",
        },
        "outputs": outputs,
        **choice,
        "inside": {
            "resize": str(picture.resize) if picture.resize else None,
            "channels": "RGB" if picture.rgb else "BGR",
            "mean": picture.mean.flatten().tolist(),
            "std": picture.std.flatten().tolist(),
            "padded_to_multiples_of": picture.divisor,
        },
        "quantization": steps or None,
        "agreement": {**exported.agreement._asdict(), "on": "real pictures" if real else "drawn pictures"},
    }


def table(networks: Sequence[WholeNetwork]) -> str:
    """Agreement, sizes and latencies, for the screen."""
    rows = [["file", "precision", f"the same {networks[0].agreement.unit}", "near", *HEADINGS]]
    for each in networks:
        found = each.agreement
        rows.append(
            [
                each.path.name,
                each.precision,
                f"{found.same:.2%} of {found.compared}",
                f"{found.near:.2%}",
                *each.cells(),
            ]
        )
    return columns(rows)
