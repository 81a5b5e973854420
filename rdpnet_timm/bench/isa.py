"""CPU classes on one machine: OpenVINO held to an older instruction set, a process for each.

OpenVINO's kernels are oneDNN's, which obeys ``ONEDNN_MAX_CPU_ISA``. ONNX Runtime's obey nothing of the kind.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..deploy.formats import openvino_model
from ..measure.machine import cpu_flags
from .backends import Form, onnx_of, openvino_options

__all__ = ["CLASSES", "CpuClass", "crashing", "keep_kernels", "kernels", "require_class", "run_classes", "runnable"]

_FAMILIES = ("avx2", "avx512", "amx")  # as the names of kernels say them; VNNI they do not say
# end the process by a segmentation fault where a CPU with AVX-512 is held to AVX2 (OpenVINO 2026.4)
_CRASHING = ("EdgeNeXt-XXS",)


class CpuClass(NamedTuple):
    """A class: Linux's flag of a CPU that has it, oneDNN's name, the family that its kernels are named after."""

    flag: str
    onednn: str
    family: str


CLASSES = {
    "avx2": CpuClass("avx2", "AVX2", "avx2"),
    "avx2_vnni": CpuClass("avx_vnni", "AVX2_VNNI", "avx2"),
    "avx512_vnni": CpuClass("avx512_vnni", "AVX512_CORE_VNNI", "avx512"),
    "amx": CpuClass("amx_int8", "AVX512_CORE_AMX", "amx"),
}


def _family(limit: Optional[str]) -> Optional[str]:
    """The family of kernels of a class by oneDNN's name for it; None where there is no such class."""
    return next((each.family for each in CLASSES.values() if each.onednn == (limit or "").upper()), None)


def crashing(limit: Optional[str]) -> Tuple[str, ...]:
    """Networks that OpenVINO, held to ``limit``, oneDNN's name of a class, cannot run on this CPU without a crash."""
    return _CRASHING if _family(limit) == "avx2" and "avx512f" in cpu_flags() else ()


def runnable(names: Sequence[str]) -> List[str]:
    """Those of the classes that this machine has; the others are named on the screen.

    Raises:
        ValueError: a class of another name, or none that this machine has.
    """
    for name in names:
        if name not in CLASSES:
            raise ValueError(f"there is no CPU class '{name}'; choose from {', '.join(CLASSES)}")
    flags = cpu_flags()
    own = [name for name, each in CLASSES.items() if each.flag in flags]
    missing = [name for name in names if name not in own]
    if len(missing) == len(names):
        raise ValueError(
            f"this CPU has {', '.join(own) or 'none of the classes'}, and cannot be held to {', '.join(missing)}: a "
            "class above its own cannot be measured here"
        )
    for name in missing:
        print(f"{name}: left out, this CPU has {', '.join(own)} only", flush=True)
    return [name for name in names if name in own]


def run_classes(names: Sequence[str], arguments: Sequence[str], output: Path) -> None:
    """Run ``rdpnet bench`` once for each class, in a process of its own, into a folder of ``output`` of that name.

    A run that fails, as one in a precision that its class has not, leaves the others theirs. An interrupted one writes
    what it has before this one ends.

    Args:
        names: of :data:`CLASSES`.
        arguments: those of ``rdpnet bench`` but ``-o``, ``--backend`` and ``--isa``.
        output: the folder.

    Raises:
        RuntimeError: a run failed; what it said stands on the screen.
    """
    failed = []
    for name in runnable(list(dict.fromkeys(names))):
        command = [sys.executable, "-m", "rdpnet_timm.cli", "bench", *arguments]
        command += ["--backend", "openvino", "-o", str(output / name)]
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": CLASSES[name].onednn}
        print(f"{name}:", flush=True)
        if code := _run_to_its_end(command, environment):
            failed.append(f"the run held to {name} ended with status {code}")
    if failed:
        raise RuntimeError(f"{', '.join(failed)}: see above")


def _run_to_its_end(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command and give its status; where this process is told to end, the command ends in good order first.

    :func:`subprocess.run` would leave it a quarter of a second, in which no picture is drawn.
    """
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except BaseException as told:
        if not isinstance(told, KeyboardInterrupt):  # a terminal's Ctrl-C has reached the command as well
            process.terminate()
        process.wait()
        raise


def kernels(form: Form, precision: str) -> List[str]:
    """The names of the kernels that compute the convolutions, by OpenVINO's own counters."""
    settings = {"PERF_COUNT": True, **openvino_options(precision)}
    request = openvino_model(onnx_of(form, precision), 1, settings).create_infer_request()
    request.infer({0: form.x.numpy()})
    return sorted({node.exec_type for node in request.profiling_info if "Convolution" in node.node_type})


def keep_kernels(result: Dict[str, Any], comparison: str, form: Form, pairs: Sequence[Tuple[str, str]]) -> None:
    """Where OpenVINO is held to a class, check its kernels as :func:`require_class` and keep them in the result.

    Args:
        result: of :mod:`.report`; gets the names by comparison and precision.
        comparison: what is about to be measured.
        form: a network of it.
        pairs: backend and precision; only OpenVINO's obey a limit.
    """
    limit = result["machine"]["isa_limit"]
    precisions = [precision for backend, precision in pairs if backend == "openvino"]
    if limit and precisions:
        result.setdefault("kernels", {})[comparison] = require_class(limit, form, precisions)


def require_class(limit: str, form: Form, precisions: Sequence[str]) -> Dict[str, List[str]]:
    """Check that OpenVINO's kernels are of the class that it is held to, and give their names by precision.

    Args:
        limit: oneDNN's name of the class.
        form: the network to look at.
        precisions: in which.

    Raises:
        RuntimeError: a kernel is of a class above, or none is of the class itself.
    """
    found = {precision: kernels(form, precision) for precision in precisions}
    family = _family(limit)
    if family is None:  # a limit that the user has set without --isa
        return found
    names = [name for each in found.values() for name in each]
    above = [name for name in names if any(each in name for each in _FAMILIES[_FAMILIES.index(family) + 1 :])]
    # tiles multiply INT8 and bfloat16 only
    expected = "avx512" if family == "amx" and set(precisions) == {"float32"} else family
    if above or not any(expected in name for name in names):
        raise RuntimeError(
            f"OpenVINO was held to {limit}, and its convolutions run as {', '.join(names)}: these times would not be "
            "that class's"
        )
    return found
