"""On what a measurement was made."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict

import torch

__all__ = ["describe"]

_PACKAGES = ("rdpnet-timm", "torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "numpy")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


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
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "versions": {"python": sys.version.split()[0], **{package: _version(package) for package in _PACKAGES}},
    }
