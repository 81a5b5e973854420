"""On what a measurement was made."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, FrozenSet

import torch

__all__ = ["cpu_flags", "describe", "has_bfloat16", "has_vnni"]

_PACKAGES = ("rdpnet-timm", "torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "numpy")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def cpu_flags() -> FrozenSet[str]:
    """The CPU's instruction sets as Linux names them; none on another system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, ()))


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself: a runtime may offer it all the same, and compute in float32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def has_vnni() -> bool:
    """Whether INT8 products are summed in 32 bits: x86 without VNNI sums pairs in 16, which overflow.

    A limit set by ``ONEDNN_MAX_CPU_ISA`` counts; a CPU that is not x86 has no such pairs.
    """
    flags = cpu_flags()
    held_below = os.environ.get("ONEDNN_MAX_CPU_ISA", "") in ("SSE41", "AVX", "AVX2", "AVX512_CORE")
    return "sse2" not in flags or (bool(flags & {"avx_vnni", "avx512_vnni"}) and not held_below)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def describe() -> Dict[str, Any]:
    """CPU, cores, vector instructions as PyTorch uses them, GPU if any, system, and versions of what is measured."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "isa_limit": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "versions": {"python": sys.version.split()[0], **{package: _version(package) for package in _PACKAGES}},
    }
