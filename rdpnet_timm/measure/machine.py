"""On what a measurement was made."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, FrozenSet

import torch

__all__ = ["cores", "cpu_flags", "describe", "has_bfloat16", "has_vnni", "memory", "require_threads"]

# oneDNN's names of instruction sets without VNNI, and of those with it that do not multiply bfloat16
_BELOW_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")
_BELOW_BFLOAT16 = ("AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE_VNNI")
_X86 = ("amd64", "i386", "i686", "x86", "x86_64")  # as systems name it
# what decides about INT8 and bfloat16, by Linux's flags
_EXTENSIONS = {"VNNI": {"avx_vnni", "avx512_vnni"}, "BF16": {"avx512_bf16", "bf16"}, "AMX": {"amx_int8"}}

_CGROUP = Path("/sys/fs/cgroup")  # a container's limits, by the second version of control groups or the first

_PACKAGES = (
    "rdpnet-timm", "torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "nncf", "torchao", "executorch",
    "ai-edge-litert", "ncnn", "numpy",
)  # fmt: skip


def _cpu_info() -> Dict[str, str]:
    """What Linux says of the first CPU, by its own names; nothing on another system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    facts: Dict[str, str] = {}
    for name, colon, value in (line.partition(":") for line in lines):
        if colon:
            facts.setdefault(name.strip(), value.strip())
    return facts


def _cpu_model() -> str:
    info = _cpu_info()
    if "model name" in info:
        return info["model name"]
    if platform.system() == "Darwin":  # where Python knows no more than "arm"
        with suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    if "CPU part" not in info:  # no Linux
        return platform.processor() or platform.machine()
    with suppress(OSError, subprocess.SubprocessError):  # an Arm CPU is a number there, which lscpu has a name for
        shown = subprocess.run(["lscpu"], env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, timeout=10)
        models = (line.partition(":")[2].strip() for line in shown.stdout.splitlines() if line.startswith("Model name"))
        if model := next((model for model in models if model.strip("-")), None):
            return model
    return f"{platform.machine()}, CPU implementer {info.get('CPU implementer')}, part {info['CPU part']}"


def cpu_flags() -> FrozenSet[str]:
    """The CPU's instruction sets as Linux names them; none on another system."""
    info = _cpu_info()
    return frozenset(info.get("flags", info.get("Features", "")).split())


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself: a runtime may offer it all the same, and compute in float32.

    A limit set by ``ONEDNN_MAX_CPU_ISA`` counts.
    """
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}) and not _is_held_to(*_BELOW_VNNI, *_BELOW_BFLOAT16)


def has_vnni() -> bool:
    """Whether INT8 products are summed in 32 bits: x86 without VNNI sums pairs in 16, which overflow.

    A limit set by ``ONEDNN_MAX_CPU_ISA`` counts; a CPU that is not x86 has no such pairs. Without Linux nobody says
    what an x86 has: then it has none.
    """
    if platform.machine().lower() not in _X86:
        return True
    return bool(cpu_flags() & {"avx_vnni", "avx512_vnni"}) and not _is_held_to(*_BELOW_VNNI)


def _is_held_to(*limits: str) -> bool:
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in limits


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def cores() -> int:
    """Cores that this process may use: those it may run on, or as many as a container's quota keeps at work."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"):
        with suppress(OSError, ValueError):  # not there, or "max"
            quota, period = (int(n) for name in files for n in (_CGROUP / name).read_text().split())
            if quota > 0:  # -1 is none
                there = min(there, max(1, quota // period))
    return there


def memory() -> int:
    """Bytes of memory for this process: the machine's, or a container's limit; very many where neither is told."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # no POSIX
        there = 1 << 62
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # not there, or "max"
            there = min(there, int((_CGROUP / limit).read_text()))
    return there


def require_threads(*threads: int) -> None:
    """Check numbers of threads: with more of them than cores, runtimes wait for one another, some without end.

    Raises:
        ValueError: there are none, or one is not 1 to :func:`cores`.
    """
    if not threads or not 1 <= min(threads) <= max(threads) <= cores():
        raise ValueError(
            f"--threads must be 1 to {cores()}, the cores here, got {' '.join(map(str, threads)) or 'none'}"
        )


def describe() -> Dict[str, Any]:
    """CPU, cores for this process, instruction sets, GPU if any, system, and versions of what is measured."""
    flags = cpu_flags()
    extensions = [name for name, having in _EXTENSIONS.items() if flags & having]
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "isa_limit": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "capability": ", ".join([torch.backends.cpu.get_cpu_capability(), *extensions]),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "versions": {"python": sys.version.split()[0], **{package: _version(package) for package in _PACKAGES}},
    }
