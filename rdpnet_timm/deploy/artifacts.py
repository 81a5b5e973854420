"""Export of a model: reparameterise, write, read back in the runtime, compare, and only then give it its name."""

import hashlib
import json
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Callable, Container, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from ..convert import reparameterize
from ..files import all_or_nothing, sha256
from ..measure.difference import Difference, evaluating
from ..measure.machine import has_vnni
from ..measure.timing import measure
from .bias import correct_bias
from .calibration import Calibration, Preprocessing, random_images
from .equalization import FEWEST_IMAGES, NotStraight, equalize, equalize_activations
from .formats import FORMATS, Format, Runner, available_threads, known_format, require_formats
from .normalize import fold_normalization
from .quantize import QUANTIZERS, weight_steps

__all__ = [
    "HEADINGS", "Artifact", "Exported", "Tuned", "columns", "export", "file_names", "spelled", "table", "tune",
    "version_of",
]  # fmt: skip


@dataclass(kw_only=True)
class Exported:
    """A network in a file, whatever it answers.

    Attributes:
        path: the main file; ``files`` has all of them, the JSON last.
        format: of :data:`.formats.FORMATS`.
        precision: 'float32' or 'int8'.
        size: of all files but the JSON, in bytes.
        threads: the fastest number of threads.
        options: the fastest runtime options.
        latency_ms: shortest time of one image with these.
        tried: shortest time in ms of one image by threads and options.
    """

    path: Path
    format: str
    precision: str
    threads: int = 1
    options: Dict[str, Any] = field(default_factory=dict)
    latency_ms: float = float("nan")
    tried: Dict[str, float] = field(default_factory=dict)
    size: int = field(init=False)
    files: List[Path] = field(init=False)

    def __post_init__(self) -> None:
        suffixes = FORMATS[self.format].suffixes
        stem = self.path.name.removesuffix(suffixes[0])
        self.files = [self.path.with_name(stem + suffix) for suffix in suffixes]
        self.size = sum(file.stat().st_size for file in self.files)

    def tune(self, kind: Format, image: np.ndarray, rounds: int) -> None:
        """Find the fastest threads and options, as :func:`tune` does."""
        self.threads, self.options, self.latency_ms, self.tried = tune(self.path, kind, image, rounds)

    def describe(self, facts: Dict[str, Any], packages: Sequence[str]) -> None:
        """Write the JSON beside the file: ``facts``, and what is known of every exported network.

        Args:
            facts: of the network.
            packages: what it was made with besides this package and those of the format.
        """
        names = ["rdpnet-timm", *packages, *FORMATS[self.format].packages]
        if (self.format, self.precision) == ("openvino", "int8"):
            names.append("nncf")
        known = {
            "runtime": {
                "threads": self.threads,
                "options": self.options,
                "latency_ms": self.latency_ms,
                "tried_ms": self.tried,
            },
            "size_bytes": self.size,
            "sha256": {file.name: sha256(file) for file in self.files},
            "versions": {package: version_of(package) for package in names},
        }
        sidecar = self.path.with_name(self.path.name + ".json")
        sidecar.write_text(json.dumps({**facts, **known}, indent=1) + "\n")
        self.files.append(sidecar)

    def moved(self, folder: Path) -> None:
        """Say that the files lie in another folder now."""
        self.files = [folder / file.name for file in self.files]
        self.path = self.files[0]

    def cells(self) -> List[str]:
        """Size, latency and what that was reached with, for a table on the screen; below :data:`HEADINGS`."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return [f"{self.size / 1e6:.2f}", f"{self.latency_ms:.2f}", f"{threads}, {spelled(self.options)}"]


HEADINGS = ["MB", "ms", "fastest with"]


@dataclass(kw_only=True)
class Artifact(Exported):
    """An exported classifier.

    Attributes:
        on_random: difference on random images.
        on_real: difference on calibration images, where given.
    """

    on_random: Difference
    on_real: Optional[Difference]


def export(
    model: nn.Module,
    output: Union[str, Path],
    formats: Union[str, Sequence[str]] = ("onnx",),
    name: Optional[str] = None,
    int8: bool = False,
    calibration: Optional[Calibration] = None,
    input_size: Optional[Sequence[int]] = None,
    dynamic_batch: bool = False,
    pixel_range: Optional[float] = None,
    border: str = "subtract",
    equalization: Optional[bool] = None,
    bias_correction: bool = True,
    reduce_range: Optional[bool] = None,
    class_names: Optional[Sequence[str]] = None,
    tolerance: float = 1e-4,
    int8_tolerance: float = 0.3,
    rounds: int = 20,
    overwrite: bool = False,
    report: Callable[[str], object] = lambda text: None,
) -> List[Artifact]:
    """Export a classification model in one or several formats; all of them succeed, or nothing is written.

    Args:
        model: any timm model, averaged, parallel or compiled ones included; its reparameterisable blocks are merged. It
            is left as it is.
        output: the folder to write to, made where needed.
        formats: one or several of 'onnx', 'openvino', 'torch-export', 'torchscript', 'executorch', 'litert', 'ncnn'.
        name: of the files, without suffix; by default the model's.
        int8: write INT8 artefacts beside the float ones; of the formats in :data:`.quantize.QUANTIZERS`.
        calibration: images for INT8, and for the comparison; random ones, with a warning, where INT8 has none.
        input_size: ``(C, H, W)``; by default that of the model's ``pretrained_cfg``.
        dynamic_batch: let the artefact take any number of images.
        pixel_range: let the artefact take plain pixels of 0 to this value, 1 or 255, and normalise them itself.
        border: how normalisation treats it, see :func:`~rdpnet_timm.deploy.normalize.fold_normalization`.
        equalization: equalise before INT8; by default where the model is a straight path.
        bias_correction: correct biases for the rounding of the weights.
        reduce_range: INT8 weights of 7 bits for 'onnx' and 'openvino', for x86 CPUs without VNNI, on which 8 bits
            overflow; by default where this CPU is one.
        class_names: in the order of the logits.
        tolerance: largest difference of a float artefact, as a fraction of the largest logit.
        int8_tolerance: the same for INT8, root mean squares; on the calibration images where given.
        rounds: timed calls for each set of runtime options, at most; the slow ones get fewer.
        overwrite: replace artefacts of the same name, and remove those which are of another model.
        report: is told what is being done.

    Raises:
        FileExistsError: there are artefacts of this name, and ``overwrite`` is False; those of the same weights in
            other formats may stay.
        ValueError: an unknown format, one without INT8 or batches, sizes or names that do not fit, no classifier.
        NotStraight: ``equalization`` is asked of a model which is no straight path.
        ImportError: a package is missing; the message names the line that installs it.
        OSError: ``output`` cannot be written.
        RuntimeError: an artefact differs from the model by more than is tolerated.
    """
    model, formats = unwrap_model(model), [formats] if isinstance(formats, str) else formats
    chosen = _chosen(formats, int8, dynamic_batch)
    if pixel_range not in (None, 1, 255):
        raise ValueError(f"pixels are of 0 to 1 or of 0 to 255, got {pixel_range}")
    if class_names is not None and len(class_names) != getattr(model, "num_classes", len(class_names)):
        raise ValueError(f"expected the names of {model.num_classes} classes, got {len(class_names)}")
    exact = deepcopy(model).cpu().double()  # in half precision, merged kernels would be rounded once more
    deployed = reparameterize(exact, inplace=True).float().eval().requires_grad_(False)
    preprocessing = Preprocessing.of(model, input_size)
    name = name or _name(model)
    targets = file_names(name, chosen.values(), int8)
    weights = _weights_sha256(deployed)
    stale = _stale(Path(output), name, weights, targets)
    present = {path.name for path in stale if path.suffix != ".json"}
    present |= {target for target in targets if (Path(output) / target).exists()}
    if present and not overwrite:
        raise FileExistsError(
            f"there is {' and '.join(sorted(present))} in '{output}', of this name or of another model: choose another "
            "folder or name, or --overwrite"
        )
    real = calibration is not None
    calibration = calibration and _images_of(calibration, preprocessing)
    tests = _test_images(preprocessing, calibration)
    if int8 and calibration is None:
        calibration = random_images(preprocessing)
        tests["random"] = calibration.pixels  # INT8 is accurate on the kind of image it was calibrated on

    def prepared(plain: nn.Module) -> nn.Module:
        if pixel_range is None:
            return plain
        return fold_normalization(
            plain, preprocessing.mean, preprocessing.std, pixel_range, border, preprocessing.input_size[1:]
        ).requires_grad_(False)

    def as_input(pixels: Tensor) -> Tensor:
        return preprocessing.normalize(pixels) if pixel_range is None else pixels * pixel_range

    try:
        with evaluating(deployed):
            logits = {kind: deployed(preprocessing.normalize(pixels)) for kind, pixels in tests.items()}
    except (AssertionError, RuntimeError) as error:  # timm's transformers are for one size
        raise ValueError(
            f"the model cannot take images of the size (C, H, W) = {preprocessing.input_size}: {error}"
        ) from error
    if not isinstance(logits["random"], Tensor):
        raise ValueError(
            f"expected a classifier, got a {type(model).__name__}, which returns a {type(logits['random']).__name__}"
        )
    expected = {kind: tensor.numpy() for kind, tensor in logits.items()}
    inputs = {kind: as_input(pixels).numpy() for kind, pixels in tests.items()}
    example = torch.from_numpy(inputs["random"][:1])
    with all_or_nothing(Path(output)) as folder:
        jobs: List[Tuple[str, str, Path, Dict[str, Any]]] = []
        float_model = prepared(deployed)
        for format_name, kind in chosen.items():
            path = folder / f"{name}{kind.suffixes[0]}"
            report(f"{format_name}: writing")
            kind.write(float_model, example, path, dynamic_batch)
            jobs.append((format_name, "float32", path, {}))
        if int8 and calibration is not None:
            images, count = as_input(calibration.pixels), len(calibration.pixels)
            report("INT8: equalising")
            enough = real and count >= FEWEST_IMAGES
            equalized, steps = _equalized(
                deployed, preprocessing.normalize(calibration.pixels) if enough else None, equalization
            )
            plain = prepared(equalized)
            reduce_range = not has_vnni() if reduce_range is None else reduce_range
            steps.update(bias_corrected=bias_correction, reduced_range=reduce_range)
            steps.update(calibration=calibration.source if real else "random", images=count)
            for format_name in (each for each in chosen if each in QUANTIZERS):
                report(f"{format_name}, int8: calibrating on {count} images")
                path = folder / f"{name}-int8{chosen[format_name].suffixes[0]}"
                to_quantize = plain
                if bias_correction:  # of the weights that are rounded: folded normalisation has made the first others
                    to_quantize = correct_bias(plain, images, steps=weight_steps(format_name, reduce_range))
                QUANTIZERS[format_name](to_quantize, example, path, images.numpy(), dynamic_batch, reduce_range)
                jobs.append((format_name, "int8", path, steps))
        artifacts = []
        for format_name, precision, path, steps in jobs:
            kind = chosen[format_name]
            report(f"{format_name}, {precision}: comparing with the model")
            artifact = _checked(kind, format_name, precision, path, inputs, expected, dynamic_batch)
            _require(artifact, tolerance if precision == "float32" else int8_tolerance)
            report(f"{format_name}, {precision}: timing threads and options")
            artifact.tune(kind, example.numpy(), rounds)
            names = class_names or _known_class_names(model)
            facts = _facts(model, artifact, preprocessing, pixel_range, dynamic_batch, names, steps)
            artifact.describe({**facts, "weights_sha256": weights}, ["torch", "timm"])
            artifacts.append(artifact)
    for path in stale:
        path.unlink(missing_ok=True)
    for artifact in artifacts:
        artifact.moved(Path(output))
    return artifacts


def _chosen(formats: Sequence[str], int8: bool, dynamic_batch: bool) -> Dict[str, Format]:
    """What was asked for, where it can be had; what is raised is told by :func:`export`."""
    chosen = {format_name: known_format(format_name) for format_name in formats}
    if not chosen:
        raise ValueError(f"no format was asked for; choose from {', '.join(FORMATS)}")
    if int8 and not set(chosen) & set(QUANTIZERS):
        raise ValueError(f"INT8 is for the formats {', '.join(QUANTIZERS)}, got {', '.join(chosen)}")
    single = [format_name for format_name, kind in chosen.items() if not kind.batches]
    if dynamic_batch and single:
        raise ValueError(f"{' and '.join(single)} take one image at a time: leave out the dynamic batch, or the format")
    require_formats(chosen, QUANTIZERS if int8 else ())
    return chosen


def file_names(name: str, formats: Iterable[Format], int8: bool) -> List[str]:
    """The files, but for the JSONs, that a network called ``name`` is exported to.

    Raises:
        ValueError: there is a folder in the name.
    """
    if Path(name).name != name or name == "..":
        raise ValueError(f"a name of files must have no folder in it, got '{name}': say the folder as output (-o)")
    ends = ("", "-int8")[: 1 + int8]
    return [f"{name}{end}{suffix}" for kind in formats for end in ends for suffix in kind.suffixes]


def table(artifacts: Sequence[Artifact]) -> str:
    """Differences, sizes and latencies, for the screen."""
    rows = [["file", "precision", "max on random", "max on real", "same class", *HEADINGS]]
    for artifact in artifacts:
        best = artifact.on_real or artifact.on_random
        rows.append(
            [
                artifact.path.name,
                artifact.precision,
                f"{artifact.on_random.largest:.1e}",
                f"{artifact.on_real.largest:.1e}" if artifact.on_real else "",
                f"{best.agreement:.1%} of {best.images}",
                *artifact.cells(),
            ]
        )
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the headings, one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in lines)


def _weights_sha256(model: nn.Module) -> str:
    """The sum of a model's weights in their order, which tells artefacts of one model from another's."""
    total = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        total.update(key.encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _stale(output: Path, name: str, weights: str, targets: Container[str]) -> List[Path]:
    """The files of artefacts in ``output`` that go by ``name``, are of other weights and would not be replaced."""
    found = []
    for kind in FORMATS.values():
        for end in ("", "-int8"):
            main = f"{name}{end}{kind.suffixes[0]}"
            try:
                facts = json.loads((output / f"{main}.json").read_text())
            except (OSError, ValueError):  # nothing there, or nothing of ours
                continue
            if main not in targets and isinstance(facts, dict) and facts.get("weights_sha256") != weights:
                files = [*(f"{name}{end}{suffix}" for suffix in kind.suffixes), f"{main}.json"]
                found += [output / file for file in files if (output / file).exists()]
    return found


def _name(model: nn.Module) -> str:
    # not the tag: it names weights, and these may be others
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__.lower()


def _images_of(calibration: Calibration, preprocessing: Preprocessing) -> Calibration:
    """The images in float32 on the CPU, once they are seen to be what this model is asked with."""
    pixels, source = calibration
    if not len(pixels) or pixels.shape[1:] != preprocessing.input_size:
        raise ValueError(
            f"the model takes images {preprocessing.input_size}, and the calibration images are {tuple(pixels.shape)}: "
            "load them with this model's preprocessing"
        )
    least, most = pixels.aminmax()
    # a bicubic filter may overshoot a little
    if not (pixels.is_floating_point() and least >= -0.25 and most <= 1.25):
        raise ValueError(
            f"calibration images are floating-point pixels of 0 to 1, not normalised, got {pixels.dtype} of {least:g} "
            f"to {most:g}: divide pixels of 0 to 255 by 255, and leave the normalisation to the export"
        )
    return Calibration(pixels.float().cpu(), source)


def _test_images(preprocessing: Preprocessing, calibration: Optional[Calibration]) -> Dict[str, Tensor]:
    """Pixels by kind: random ones, and real ones where there are."""
    images = {"random": torch.rand(4, *preprocessing.input_size, generator=torch.Generator().manual_seed(0))}
    if calibration is not None:
        images["real"] = calibration.pixels[:64]
    return images


def _equalized(
    deployed: nn.Module, images: Optional[Tensor], equalization: Optional[bool]
) -> Tuple[nn.Module, Dict[str, Any]]:
    """The same function with weights, and with ``images`` activations too, that bear INT8; and what was done to it."""
    if equalization is False:
        return deployed, {"equalized": False}
    try:
        model, sweeps, _ = equalize(deployed)
    except NotStraight as error:
        if equalization:
            raise
        return deployed, {"equalized": False, "not_equalized_because": str(error)}
    if images is not None:
        equalize_activations(model, images, inplace=True)
    return model, {"equalized": True, "sweeps": sweeps, "activations_equalized": images is not None}


def _run(runner: Runner, images: np.ndarray, batched: bool) -> np.ndarray:
    batches = [images] if batched else images[:, None]
    return np.concatenate([np.array(runner(np.ascontiguousarray(batch))) for batch in batches])


def _checked(
    kind: Format,
    format_name: str,
    precision: str,
    path: Path,
    inputs: Dict[str, np.ndarray],
    expected: Dict[str, np.ndarray],
    batched: bool,
) -> Artifact:
    runner = kind.load(path, 1, kind.options[0])
    difference = {name: Difference.between(expected[name], _run(runner, inputs[name], batched)) for name in inputs}
    random, real = difference["random"], difference.get("real")
    return Artifact(path=path, format=format_name, precision=precision, on_random=random, on_real=real)


def _require(artifact: Artifact, tolerance: float) -> None:
    found = {"random": artifact.on_random, "real": artifact.on_real}
    if artifact.precision == "int8":  # calibrated for the one kind of image, it owes nothing to the other
        found = {"real": artifact.on_real} if artifact.on_real else {"random": artifact.on_random}
    for images, difference in found.items():
        if difference is None:
            continue
        value = difference.rms if artifact.precision == "int8" else difference.largest
        if not value <= tolerance:
            raise RuntimeError(
                f"{artifact.path.name} differs from the model by {value:.2e} on {images} images, and the tolerance is "
                f"{tolerance:.0e}; nothing was written"
            )


class Tuned(NamedTuple):
    """``threads``, ``options``: the fastest; ``latency_ms``: with these; ``tried``: shortest times in ms by choice."""

    threads: int
    options: Dict[str, Any]
    latency_ms: float
    tried: Dict[str, float]


def tune(path: Path, kind: Format, image: np.ndarray, rounds: int, seconds: float = 3.0) -> Tuned:
    """Find the number of threads and the runtime options that an artefact is fastest with.

    Args:
        path: its main file.
        kind: its format.
        image: what it takes.
        rounds: timed calls of each choice, at most.
        seconds: about how long it may take; the slowest choices drop out at once.
    """
    choices = {
        f"{threads} thread{'s' * (threads > 1)}, {spelled(options)}": (threads, options)
        for threads in ([1] if kind.one_pool else available_threads())
        for options in kind.options
    }
    runners = {label: kind.load(path, *choice) for label, choice in choices.items()}
    contestants = {label: lambda run=run: run(image) for label, run in runners.items()}
    first = measure(contestants, 1, warmup=1, primed=False)
    contestants = {
        label: call
        for label, call in contestants.items()
        if first.minimum(label) < 5 * min(map(first.minimum, choices))
    }
    turn = 2 * sum(first.minimum(label) for label in contestants) / 1e3
    timed = measure(contestants, max(1, min(rounds, int(seconds / turn))), warmup=1)
    tried = {label: round(timed.minimum(label), 4) for label in contestants}
    fastest = min(contestants, key=timed.minimum)
    return Tuned(*choices[fastest], tried[fastest], tried)


def spelled(options: Dict[str, Any]) -> str:
    """Runtime options in one line."""
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "defaults"


def _known_class_names(model: nn.Module) -> Optional[Sequence[str]]:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    return names if names and len(names) == getattr(model, "num_classes", None) else None


def _facts(
    model: nn.Module,
    artifact: Artifact,
    preprocessing: Preprocessing,
    pixel_range: Optional[float],
    dynamic_batch: bool,
    class_names: Optional[Sequence[str]],
    steps: Dict[str, Any],
) -> Dict[str, Any]:
    """What the JSON beside an artefact says of the network."""
    return {
        "model": _name(model),
        "format": artifact.format,
        "precision": artifact.precision,
        "num_classes": getattr(model, "num_classes", None),
        "classes": list(class_names) if class_names is not None else None,
        "input": {
            "shape": ["batch" if dynamic_batch else 1, *preprocessing.input_size],
            "dtype": "float32",
            "layout": "NCHW",
            "values": "normalised" if pixel_range is None else f"plain pixels, 0 to {pixel_range:g}",
            "pixel_range": pixel_range,
        },
        "preprocessing": preprocessing._asdict(),
        "quantization": steps or None,
        "difference": {
            "on_random": artifact.on_random._asdict(),
            "on_real": artifact.on_real and artifact.on_real._asdict(),
        },
    }


def version_of(package: str) -> Optional[str]:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
