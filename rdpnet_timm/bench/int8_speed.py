"""What each runtime makes of each width, in one interleaved run, beside what the machine can do at best.

``rdpnet bench int8-speed -o OUTPUT`` writes ``speed.md`` and ``speed.json``, after every width.
"""

import json
import tempfile
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from torch import Tensor, nn

from ..convert import reparameterize
from ..deploy.calibration import Preprocessing
from ..deploy.formats import (
    FORMATS,
    OPENVINO_BFLOAT16,
    OPENVINO_FLOAT32,
    Options,
    available_threads,
    onnx_session,
    openvino_has_bfloat16,
    openvino_model,
    to_onnx,
    to_openvino,
)
from ..deploy.normalize import BORDERS, fold_normalization
from ..deploy.quantize import quantize_onnx, quantize_openvino
from ..extras import require, require_all
from ..files import atomic_path, require_writable
from ..measure.forms import settle_norms
from ..measure.size import count
from ..measure.timing import Measurement, measure
from .backends import compiled, eager, pin_threads
from .report import UNFINISHED, conditions, record, require_unfinished

__all__ = ["CONTESTANTS", "Result", "operators", "run"]

WIDTHS = ("025", "050", "075", "100", "125", "150")
GEMM = 768  # three such matrices fit into the second level cache in INT8, and nearly in float32

CONTESTANTS = {
    "train": "PyTorch eager, train form",
    "deploy": "PyTorch eager, deploy form",
    "channels_last": "the same, channels_last",
    "compile": "torch.compile, frozen, channels_last",
    "pt2e": "PT2E INT8, torch.compile",
    "onnx": "ONNX Runtime float32",
    "onnx_int8": "ONNX Runtime INT8",
    "openvino": "OpenVINO float32",
    "openvino_bf16": "OpenVINO bfloat16",
    "openvino_int8": "OpenVINO INT8 (NNCF)",
    "openvino_qdq": "OpenVINO INT8 (ONNX Runtime's file)",
}
EAGER = (("train",), ("deploy",))
FLOAT, INT8 = ("onnx", "openvino"), ("onnx_int8", "openvino_int8", "openvino_qdq")
_NEEDED_BY = {  # packages
    "onnx": (*FLOAT, "openvino_bf16", *INT8),
    "onnxruntime": ("onnx", "onnx_int8", "openvino_qdq"),
    "openvino": ("openvino", "openvino_bf16", "openvino_int8", "openvino_qdq"),
    "nncf": ("openvino_int8",),
    "torchao": ("pt2e",),
}


class Result(NamedTuple):
    """One width with one number of threads.

    Attributes:
        model: timm name.
        threads: number of threads.
        macs: multiply-accumulates of one image, deploy form.
        measurement: times in ms; 'sgemm' and 'int8 gemm' among the contestants are ``GEMM``-sized matrix products.
    """

    model: str
    threads: int
    macs: int
    measurement: Measurement

    def rate(self, gemm: str) -> float:
        """GMAC/s of a matrix product, at its shortest time."""
        return GEMM**3 / self.measurement.minimum(gemm) / 1e6

    def bound(self, gemm: str) -> float:
        """Time in ms that the network's MACs take at this rate."""
        return self.macs / self.rate(gemm) / 1e6

    def fastest(self, names: Sequence[str]) -> str:
        """The contestant with the shortest time."""
        return min((name for name in names if name in self.measurement.samples), key=self.measurement.minimum)


def _pt2e(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """PyTorch's own INT8: quantised with the x86 quantizer, compiled by inductor."""
    require("torchao", "PT2E quantisation")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=True)  # the quantizer finds nothing in another one
        prepared = prepare_pt2e(exported.module(), quantizer)
        for seed in range(4):
            prepared(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
        return compiled(convert_pt2e(prepared), x)


def _write(deployed: nn.Module, x: Tensor, folder: Path, skip: Sequence[str] = ()) -> Dict[str, Path]:
    """The float and INT8 artefacts of a model, by contestant but ``skip``; ranges do not matter for the time."""
    wanted = {*FLOAT, "openvino_bf16", *INT8} - set(skip)
    if "openvino_bf16" in wanted and not openvino_has_bfloat16():
        wanted.remove("openvino_bf16")
    paths = {name: folder / f"{name}{'.xml' if name.startswith('openvino') else '.onnx'}" for name in (*FLOAT, *INT8)}
    images = np.random.default_rng(0).standard_normal((8, *x.shape[1:]), dtype=np.float32)
    if wanted & {"onnx", "onnx_int8", "openvino_qdq"}:
        to_onnx(deployed, x, paths["onnx"])
    if wanted & {"openvino", "openvino_bf16", "openvino_int8"}:
        to_openvino(deployed, x, paths["openvino"])
    if wanted & {"onnx_int8", "openvino_qdq"}:
        quantize_onnx(paths["onnx"], paths["onnx_int8"], images)
    if "openvino_int8" in wanted:
        quantize_openvino(paths["openvino"], paths["openvino_int8"], images)
    paths |= {"openvino_bf16": paths["openvino"], "openvino_qdq": paths["onnx_int8"]}
    return {name: path for name, path in paths.items() if name in wanted}


def _options(contestant: str) -> Options:
    """Runtime options, as :class:`.formats.Format` takes them."""
    if contestant.startswith("openvino"):
        return OPENVINO_BFLOAT16 if contestant == "openvino_bf16" else OPENVINO_FLOAT32
    return {}


def _runner(contestant: str, path: Path, threads: int, x: Tensor) -> Callable[[], object]:
    format_name = "openvino" if contestant.startswith("openvino") else "onnx"
    runner, image = FORMATS[format_name].load(path, threads, _options(contestant)), x.numpy()
    return lambda: runner(image)


def compare(name: str, threads: int, rounds: int, skip: Sequence[str] = ()) -> Tuple[Result, Dict[str, Any]]:
    """Measure one model with all contestants but ``skip``; also the time by operator of the INT8 artefacts."""
    pin_threads(threads)
    torch.manual_seed(0)
    model = timm.create_model(name)
    input_size = model.pretrained_cfg["input_size"]
    model = settle_norms(model, torch.randn(2, *input_size))
    deployed = reparameterize(model)
    x = torch.randn(1, *input_size)
    last = x.to(memory_format=torch.channels_last)
    deployed_last = reparameterize(model).to(memory_format=torch.channels_last)
    left, right = torch.randn(2, GEMM, GEMM)
    left8, right8 = torch.randint(-127, 128, (2, GEMM, GEMM), dtype=torch.int8)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = _write(deployed, x, Path(scratch), skip)
        contestants: Dict[str, Callable[[], object]] = {
            "train": eager(model, x),
            "deploy": eager(deployed, x),
            "channels_last": eager(deployed_last, last),
            **{key: _runner(key, path, threads, x) for key, path in paths.items()},
            "sgemm": lambda: left @ right,
            "int8 gemm": lambda: torch._int_mm(left8, right8),
        }
        if "compile" not in skip:
            contestants["compile"] = compiled(deployed_last, last)
        if "pt2e" not in skip:
            contestants["pt2e"] = _pt2e(deployed, x)
        contestants = {key: contestant for key, contestant in contestants.items() if key not in skip}
        result = Result(name, threads, count(deployed, input_size).macs, measure(contestants, rounds))
        by_operator = {key: operators(path, key, threads, x.numpy()) for key, path in paths.items()}
    return result, by_operator


def operators(path: Path, contestant: str, threads: int, image: np.ndarray, calls: int = 20) -> Dict[str, float]:
    """Shortest time in ms of each kind of operator, by the runtime's own counters, which cost time themselves."""
    if contestant.startswith("openvino"):
        return _openvino_operators(path, contestant, threads, image, calls)
    return _onnx_operators(path, threads, image, calls)


def _openvino_operators(path: Path, contestant: str, threads: int, image: np.ndarray, calls: int) -> Dict[str, float]:
    request = openvino_model(path, threads, {"PERF_COUNT": True, **_options(contestant)}).create_infer_request()
    shortest: Dict[str, Tuple[str, float]] = {}
    for _ in range(calls):
        request.infer({0: image})
        for node in request.profiling_info:
            time = node.real_time.total_seconds() * 1e3
            if time:
                before = shortest.get(node.node_name, ("", float("inf")))[1]
                shortest[node.node_name] = (f"{node.node_type} {node.exec_type}", min(time, before))
    return _summed(shortest)


def _onnx_operators(path: Path, threads: int, image: np.ndarray, calls: int) -> Dict[str, float]:
    session = onnx_session(path, threads, {}, profile=str(path.with_suffix("")))
    for _ in range(calls):
        session.run(None, {session.get_inputs()[0].name: image})
    shortest: Dict[str, Tuple[str, float]] = {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            if "Conv" in kind:
                kind += (
                    " depthwise" if "depth" in event["name"] else " pointwise" if "point" in event["name"] else " stem"
                )
            before = shortest.get(event["name"], ("", float("inf")))[1]
            shortest[event["name"]] = (kind, min(event["dur"] / 1e3, before))
    return _summed(shortest)


def _summed(shortest: Dict[str, Tuple[str, float]]) -> Dict[str, float]:
    total: Dict[str, float] = defaultdict(float)
    for kind, time in shortest.values():
        total[kind] += time
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def compare_borders(name: str, rounds: int, skip: Sequence[str] = (), threads: int = 1) -> Measurement:
    """Time the ways to fold normalisation into the stem, float32 and INT8, against normalised input."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = timm.create_model(name)
    preprocessing = Preprocessing.of(model)
    size, mean, std = preprocessing.input_size, preprocessing.mean, preprocessing.std
    deployed = reparameterize(settle_norms(model, torch.randn(2, *size)))
    pixels = torch.rand(1, *size)
    with tempfile.TemporaryDirectory() as scratch:
        contestants: Dict[str, Callable[[], object]] = {}
        for border in (None, *BORDERS):
            if border is None:
                variant, x = deployed, preprocessing.normalize(pixels)
            else:
                variant, x = fold_normalization(deployed, mean, std, 255, border, size[1:]), pixels * 255
            folder = Path(scratch) / str(border)
            folder.mkdir()
            paths = _write(variant.requires_grad_(False), x, folder, skip)
            for key, path in paths.items():
                contestants[f"{key}, {border or 'normalised before'}"] = _runner(key, path, threads, x)
        return measure(contestants, rounds)


def _report(results: List[Result], profiles: List[Tuple[str, Dict[str, Dict[str, float]]]]) -> str:
    """Everything as Markdown."""
    lines = ["## Shortest time of one image in ms", ""]
    for threads in sorted({result.threads for result in results}):
        chosen = [result for result in results if result.threads == threads]
        lines += [f"### {threads} thread{'s' * (threads > 1)}", ""]
        lines += ["| | " + " | ".join(result.model for result in chosen) + " |", "|---" * (len(chosen) + 1) + "|"]
        lines += [f"| {label} | " + " | ".join(map(cell, chosen)) + " |" for label, cell in _rows(chosen)] + [""]
    lines += ["## Where the time goes, ms by kind of operator", ""]
    for title, by_contestant in profiles:
        for key, times in by_contestant.items():
            parts = ", ".join(f"{kind} {time:.2f}" for kind, time in list(times.items())[:7])
            lines.append(f"- {title}, {CONTESTANTS[key]}: {sum(times.values()):.2f} in all; {parts}")
    return "\n".join(lines) + "\n"


def _rows(results: Sequence[Result]) -> List[Tuple[str, Callable[[Result], str]]]:
    """The table's rows: a label, and what it says of a result."""

    def time(key: str, result: Result) -> str:
        return f"{result.measurement.minimum(key):.2f}" if key in result.measurement.samples else ""

    def best(result: Result, names: Sequence[str]) -> float:
        return result.measurement.minimum(result.fastest(names))

    measured = [key for key in CONTESTANTS if any(key in result.measurement.samples for result in results)]
    # what a row is about, and of which contestants at least one has to be there
    about: List[Tuple[str, Sequence[Sequence[str]], Callable[[Result], str]]] = [
        ("MACs, M", (), lambda r: f"{r.macs / 1e6:.0f}"),
        ("sgemm, GMAC/s", (), lambda r: f"{r.rate('sgemm'):.0f}"),
        ("INT8 GEMM, GMAC/s", (), lambda r: f"{r.rate('int8 gemm'):.0f}"),
        ("bound by sgemm, ms", (), lambda r: f"{r.bound('sgemm'):.2f}"),
        ("bound by INT8 GEMM, ms", (), lambda r: f"{r.bound('int8 gemm'):.2f}"),
        (
            "**best float32, share of its bound**",
            (FLOAT,),
            lambda r: f"{100 * r.bound('sgemm') / best(r, FLOAT):.0f} %",
        ),
        ("best INT8, share of its bound", (INT8,), lambda r: f"{100 * r.bound('int8 gemm') / best(r, INT8):.0f} %"),
        ("**best INT8 against best float32**", (FLOAT, INT8), lambda r: f"{best(r, FLOAT) / best(r, INT8):.2f}x"),
        ("**eager, deploy against train form**", EAGER, lambda r: f"{best(r, EAGER[0]) / best(r, EAGER[1]):.2f}x"),
        ("the same by medians, 95 % interval", EAGER, lambda r: str(r.measurement.ratio("train", "deploy"))),
    ]
    return [
        *((CONTESTANTS[key], partial(time, key)) for key in measured),
        *((label, cell) for label, needed, cell in about if all(set(group) & set(measured) for group in needed)),
    ]


def run(
    output: Path,
    widths: Sequence[str] = WIDTHS,
    threads: Optional[Sequence[int]] = None,
    rounds: int = 30,
    skip: Sequence[str] = (),
    borders: bool = True,
    command: str = "",
) -> List[Result]:
    """Measure all widths and write ``speed.md`` and ``speed.json`` to the folder ``output``, anew after each width.

    Args:
        output: the folder, made where needed.
        widths: '025' to '150'.
        threads: numbers of threads; by default one, and one a core.
        rounds: timed calls of each contestant.
        skip: contestants to leave out, keys of :data:`CONTESTANTS`.
        borders: measure the ways to fold normalisation as well.
        command: what the user typed, for the record.

    Raises:
        ImportError: what a contestant needs is not installed.
        OSError: nothing can be written to ``output``, or a complete result is there.
    """
    wanted = set(CONTESTANTS) - set(skip)
    needed = [package for package, contestants in _NEEDED_BY.items() if wanted & set(contestants)]
    require_all(needed, "rdpnet bench int8-speed", "bench")
    require_unfinished(output / "speed.json")
    require_writable(output)
    facts: Dict[str, Any] = {**record(command), "rounds": rounds}
    results: List[Result] = []
    profiles: List[Tuple[str, Dict[str, Dict[str, float]]]] = []
    folding: Dict[str, Any] = {}

    def save(complete: bool = False) -> None:
        warning = "" if complete else f"{UNFINISHED}\n\n"
        text = f"{conditions(facts)}\n\n{warning}{_report(results, profiles)}"
        if folding:
            text += "\n## Normalisation inside the artefact, rdpnet_100, one thread, shortest time in ms\n\n"
            text += "\n".join(f"- {name}: {value:.2f}" for name, value in folding.items()) + "\n"
        measured = [dict(r._asdict(), measurement=r.measurement.to_dict()) for r in results]
        with atomic_path(output / "speed.md") as path:
            path.write_text(text, encoding="utf-8")
        whole = {**facts, "complete": complete, "results": measured, "operators": profiles, "borders": folding}
        with atomic_path(output / "speed.json") as path:
            path.write_text(json.dumps(whole, indent=1) + "\n")

    for count_ in threads or available_threads():
        for width in widths:
            result, by_operator = compare(f"rdpnet_{width}", count_, rounds, skip)
            results.append(result)
            profiles.append((f"{result.model}, {count_} thread{'s' * (count_ > 1)}", by_operator))
            save()
            times = ", ".join(f"{key} {result.measurement.minimum(key):.2f}" for key in result.measurement.samples)
            print(f"{result.model}, {count_} threads: {times}", flush=True)
    if borders and wanted & {*FLOAT, *INT8}:
        timed = compare_borders("rdpnet_100", rounds, skip)
        folding.update({name: timed.minimum(name) for name in timed.samples})
    save(complete=True)
    return results
