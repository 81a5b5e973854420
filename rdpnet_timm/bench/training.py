"""What training costs: a step of the train form either way, of the same network with single branches, of MobileOne."""

import os
import warnings
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ..allocator import keep_freed_memory
from ..blocks import SlicedConv2d
from ..extras import require_all
from ..measure.machine import has_bfloat16
from ..measure.size import count
from ..rdpnet import CIFAR_STRIDES, STRIDES
from . import peers
from .backends import pin_threads
from .report import Result, Start, entry_facts, measure_run
from .tables import CIFAR_SIZE, IMAGENET_SIZE, TRAIN, Entry

__all__ = ["SETTINGS", "Setting", "measure_training", "peak_of_step", "require_training", "select", "training_step"]

TRAINING_TITLE = "The cost of training"
TRAINING_NOTE = (
    "One step is forward, backward and SGD on one batch of random images, in channels_last; the allocator keeps freed "
    "memory. *single branches* is the same network with one convolution and one norm a block, *fused* and *branch by "
    "branch* are two ways to compute the same step of the train form (docs/train_step.md). Peak memory is what "
    "PyTorch's allocator holds on top of weights and momenta."
)
SINGLE = "single branches"


@dataclass(frozen=True)
class Setting:
    """What a run trains: RDPNet at a width, on images of a size, in a batch."""

    width: float
    size: Tuple[int, int, int]
    batch: int


SETTINGS = (
    *(Setting(width, CIFAR_SIZE, batch) for batch in (16, 32, 128) for width in (0.25, 1.0, 1.25)),
    *(Setting(width, IMAGENET_SIZE, 16) for width in (0.25, 1.0, 1.25)),
)
GPU_SETTINGS = (Setting(1.0, IMAGENET_SIZE, 128),)


def select(
    widths: Optional[Sequence[float]] = None,
    sizes: Optional[Sequence[int]] = None,
    batches: Optional[Sequence[int]] = None,
) -> Tuple[Setting, ...]:
    """Those of :data:`SETTINGS` with one of ``widths``, ``sizes`` (pixels along an edge) and ``batches``; None is any.

    Raises:
        ValueError: there is none.
    """
    found = tuple(
        each
        for each in SETTINGS
        if (widths is None or each.width in widths)
        and (sizes is None or each.size[1] in sizes)
        and (batches is None or each.batch in batches)
    )
    if not found:
        known = "; ".join(f"{each.size[1]} pixels, batch {each.batch}, width {each.width}" for each in SETTINGS)
        wanted = f"widths {widths or 'any'}, sizes {sizes or 'any'}, batches {batches or 'any'}"
        raise ValueError(f"no setting of training has {wanted}; there are: {known}")
    return found


def entries(setting: Setting, device: str = "cpu") -> List[Entry]:
    """The contestants of a run; MobileOne, the nearest relative with branches, beside the width of its cost.

    On a GPU eager PyTorch has no fused step.
    """
    is_small = setting.size == CIFAR_SIZE

    def rdpnet(**kwargs: Any) -> nn.Module:
        return peers.rdpnet(setting.width, strides=CIFAR_STRIDES if is_small else STRIDES, **kwargs)

    def mobileone() -> nn.Module:
        model = peers.timm_model("mobileone_s0")
        if is_small:
            return peers.cifar_form(model)
        for module in model.modules():  # torch's own end the process in channels_last, see SlicedConv2d
            if type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.in_channels < 16:
                module.__class__ = SlicedConv2d
        return model

    name = f"RDPNet-{setting.width}x"
    found = [
        Entry(f"{name}, {SINGLE}", lambda: rdpnet(single_branch=True, fused=False), setting.size),
        *([Entry(f"{name}, fused", rdpnet, setting.size)] if device == "cpu" else []),
        Entry(f"{name}, branch by branch", lambda: rdpnet(fused=False), setting.size),
    ]
    return found + ([Entry("MobileOne-S0", mobileone, setting.size)] if setting.width == 1 else [])


def training_step(
    model: nn.Module, batch: int, size: Sequence[int], device: str = "cpu", precision: torch.dtype = torch.float32
) -> Callable[[], None]:
    """A function that does one step of SGD on one random batch ``(batch, C, H, W)`` in channels_last.

    With a ``precision`` other than float32 the forward pass runs under autocast.

    The learning rate is 0, which costs as much as any other: a network that learns its one batch by heart has gradients
    so small that they are denormal numbers, with which a CPU computes ten times as long.
    """
    model.train().to(device, memory_format=torch.channels_last)
    images = torch.randn(batch, *size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def peak_of_step(step: Callable[[], object], device: str = "cpu") -> int:
    """Bytes that PyTorch's allocator hands out for ``step()`` and holds at the same time, at the most.

    What was allocated before, as weights and momenta are after a first step, is not counted.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        warnings.simplefilter("ignore")
        step()
    # a CPU's allocator keeps no peak of its own, but reports every block to the profiler
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def _precisions(device: str) -> List[torch.dtype]:
    """float32, and bfloat16 where the processor multiplies in it."""
    knows = device == "cuda" or has_bfloat16()
    return [torch.float32, torch.bfloat16] if knows else [torch.float32]


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def require_training(precisions: Sequence[str]) -> None:
    """Check that training can be measured.

    Raises:
        ImportError: Numba is missing, without which the fused step is computed branch by branch.
        ValueError: the CPU multiplies in none of ``precisions``, or is held to a class (:mod:`.isa`).
    """
    require_all(("numba",), "the table training", "bench")
    if limit := os.environ.get("ONEDNN_MAX_CPU_ISA"):
        raise ValueError(
            f"training cannot be held to {limit}, which of the kernels of a train step holds only some: leave --isa "
            "away, or unset ONEDNN_MAX_CPU_ISA"
        )
    names = [_name(each) for each in _precisions("cpu")]
    if not set(names) & set(precisions):
        raise ValueError(
            f"training is measured in {' and '.join(names)} on this CPU, got --precision {' '.join(precisions)}"
        )


def measure_training(
    result: Result,
    threads: Sequence[int],
    start: Start,
    save: Callable[[], Any],
    settings: Sequence[Setting] = SETTINGS,
    precisions: Sequence[str] = ("float32", "bfloat16"),
) -> None:
    """Measure ``settings`` on the CPU, with each number of threads, and beside all of them one on a GPU, if any.

    Of ``precisions`` are measured those that the device multiplies in. A quick run takes the first setting.
    """
    keep_freed_memory()
    chosen = {device: [each for each in _precisions(device) if _name(each) in precisions] for device in ("cpu", "cuda")}
    runs = [("cpu", *run) for run in product(chosen["cpu"], threads, settings[:1] if result["quick"] else settings)]
    if torch.cuda.is_available() and not result["quick"] and settings == SETTINGS:
        runs += [("cuda", *run) for run in product(chosen["cuda"], (1,), GPU_SETTINGS)]
    for device, precision, number, setting in runs:
        title = f"{device}, {setting.size[1]}x{setting.size[2]}, RDPNet-{setting.width}x, batch {setting.batch}"
        if precision != torch.float32:  # a table of its own: memory differs, and the precisions take no turns
            title += f", {_name(precision)}"
        turn = start(f"{title}, {number} threads", len(result["runs"]), len(runs))
        pin_threads(number)
        steps, contestants = {}, {}
        for entry in entries(setting, device):
            torch.manual_seed(0)
            model = entry.build()
            facts = entry_facts(entry, TRAIN, *count(model, entry.size))
            steps[f"{entry.name}, {TRAIN}"] = step = training_step(model, setting.batch, entry.size, device, precision)
            step()  # the optimizer makes its momenta in the first, and the fused step is compiled
            facts["extra"] = {"batch": setting.batch, "peak MB": round(peak_of_step(step, device) / 1e6)}
            contestants[f"{entry.name}, {TRAIN}"] = facts
        measure_run(
            result,
            steps,
            turn,
            comparison=title,
            reference=f"RDPNet-{setting.width}x, {SINGLE}, {TRAIN}",
            backend=device,
            precision=_name(precision),
            threads=number,
            contestants=contestants,
            failures={},
            primed=False,
        )
        save()
