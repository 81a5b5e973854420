"""Images per second on all cores: what a server asks for, where latency does not matter."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch

from ..deploy.formats import openvino_model
from ..measure import machine
from ..measure.forms import deploy_form, settle_norms
from ..measure.size import count
from . import backends, isa
from .report import Result, Start, entry_facts, measure_runs
from .tables import DEPLOY, TABLES

__all__ = ["THROUGHPUT_NOTE", "THROUGHPUT_TITLE", "measure_throughput", "streaming"]

BATCH = 8
THROUGHPUT_TITLE = "Throughput: images per second on all cores, 224x224"
THROUGHPUT_NOTE = (
    f"Streams: a stream for each core, each with one thread and one image at a time. Batch {BATCH}: one call of all "
    f"cores for {BATCH} images. The networks are those of Table 5."
)
Pair = Tuple[str, str]


def streaming(pairs: Sequence[Pair]) -> List[Pair]:
    """Those of ``pairs`` whose backend can be measured so: ONNX Runtime's and OpenVINO's.

    Raises:
        ValueError: neither of the two is among them.
    """
    found = [pair for pair in pairs if pair[0] in ("onnxruntime", "openvino")]
    if not found:
        raise ValueError("throughput is measured on onnxruntime and openvino: name one of them with --backend")
    return found


def measure_throughput(result: Result, pairs: Sequence[Pair], start: Start, save: Callable[[], Any]) -> None:
    """Measure the networks of Table 5 on ONNX Runtime and OpenVINO, in each precision; ``pairs`` as :func:`streaming`.

    Raises:
        ValueError: as :func:`streaming`.
    """
    pairs = streaming(pairs)
    entries = {entry.name: entry for comparison in TABLES["table5"].comparisons for entry in comparison.entries}
    chosen = ["MobileNetV2-0.5x", "RDPNet-0.75x"] if result["quick"] else list(entries)
    reference = "RDPNet-0.75x" if result["quick"] else "RDPNet-1.25x"
    cores = machine.cores()
    forms, facts = {}, {}
    start("throughput: building", 0, 2)
    for name in chosen:
        torch.manual_seed(0)
        x = backends.images_like((3, 112, 112), 4)
        module = deploy_form(settle_norms(entries[name].build(), x), x)
        key = f"{name}, {DEPLOY}"
        forms[key] = backends.Form(module, backends.images_like((3, 224, 224), BATCH), dynamic=True)
        facts[key] = entry_facts(entries[name], DEPLOY, *count(module, (3, 224, 224)))
    snr = {(pair, key): _snr(pair, form) for pair in pairs for key, form in forms.items()}
    modes: Dict[str, Tuple[Callable[..., Callable[[], object]], int]] = {
        "streams": (_streams, BATCH * cores),
        f"batch {BATCH}": (_batch, BATCH),
    }
    for mode, (make, images) in modes.items():
        turn = start(f"throughput, {mode}", len(result["runs"]) // len(pairs), len(modes))
        functions: Dict[Pair, Dict[str, Callable[[], object]]] = {}
        runs: Dict[Pair, Dict[str, Any]] = {}
        for pair in pairs:
            functions[pair] = {key: make(*pair, form, cores) for key, form in forms.items()}
            runs[pair] = dict(
                comparison=mode,
                reference=f"{reference}, {DEPLOY}",
                backend=pair[0],
                precision=pair[1],
                threads=cores,
                contestants={
                    key: {**each, "extra": {"batch": images}, "snr_db": snr[pair, key]} for key, each in facts.items()
                },
                failures={},
            )
        isa.keep_kernels(result, mode, forms[f"{reference}, {DEPLOY}"], pairs)
        measure_runs(result, functions, turn, runs)
        save()


def _snr(pair: Pair, form: backends.Form) -> float:
    return round(backends.signal_to_noise(form, backends.runner(pair[0], form, 1, pair[1])), 1)


def _batch(backend: str, precision: str, form: backends.Form, cores: int) -> Callable[[], object]:
    return backends.prepare(backend, form, cores, precision)


def _streams(backend: str, precision: str, form: backends.Form, cores: int) -> Callable[[], object]:
    images: List[np.ndarray] = [image.numpy() for image in form.x.split(1)] * cores
    if backend == "openvino":
        return _openvino_streams(precision, form, cores, images)
    run = backends.runner(backend, form, 1, precision)  # a session may be called by several threads at once
    pool = ThreadPoolExecutor(cores)
    return lambda: list(pool.map(run, images))


def _openvino_streams(
    precision: str, form: backends.Form, cores: int, images: Sequence[np.ndarray]
) -> Callable[[], object]:
    import openvino

    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": cores, **backends.openvino_options(precision)}
    model = openvino_model(backends.onnx_of(form, precision), cores, settings, (1, *form.x.shape[1:]))
    queue = openvino.AsyncInferQueue(model, cores)

    def run() -> None:
        for image in images:
            queue.start_async({0: image})
        queue.wait_all()

    return run
