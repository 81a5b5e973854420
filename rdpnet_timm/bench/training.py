"""What training costs: a step of the train form, of the same network with single branches, and of MobileNetV2."""

import warnings
from itertools import accumulate
from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ..blocks import DepthBlock, PointBlock, RepVGGBlock
from ..measure.size import count
from . import peers
from .backends import pin_threads
from .report import Result, Start, entry_facts, measure_run
from .tables import IMAGENET_SIZE, TRAIN, Entry

__all__ = ["measure_training", "peak_memory", "single_branch", "training_step"]

MULTI_BRANCH = "RDPNet-1.0x"
TRAINING_TITLE = "The cost of training"
TRAINING_NOTE = (
    "One step is forward, backward and SGD on one batch of random 224x224 images. Peak memory is what PyTorch's "
    "allocator holds on top of weights and momenta."
)
BATCH = {"cpu": 16, "cuda": 128}


def single_branch(model: nn.Module) -> nn.Module:
    """Leave, in place, the first branch of every block, the convolution of the deploy form with its norm."""
    for module in model.modules():
        if isinstance(module, (DepthBlock, PointBlock, RepVGGBlock)) and module.branches is not None:
            module.branches = nn.ModuleDict(dict([next(iter(module.branches.items()))]))
    return model


ENTRIES = (
    Entry(MULTI_BRANCH, lambda: peers.rdpnet(1.0)),
    Entry("RDPNet-1.0x with single branches", lambda: single_branch(peers.rdpnet(1.0))),
    Entry("MobileNetV2-1.0x", lambda: peers.mobilenet_v2(1.0)),
)


def training_step(model: nn.Module, batch: int, size: Sequence[int], device: str = "cpu") -> Callable[[], None]:
    """A function that does one step of SGD on one random batch ``(batch, C, H, W)``.

    The learning rate is 0, which costs as much as any other: a network that learns its one batch by heart has gradients
    so small that they are denormal numbers, with which a CPU computes ten times as long.
    """
    model.train().to(device)
    images, labels = torch.randn(batch, *size, device=device), torch.zeros(batch, dtype=torch.long, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def peak_memory(step: Callable[[], object], device: str = "cpu") -> int:
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


def measure_training(result: Result, threads: Sequence[int], start: Start, save: Callable[[], Any]) -> None:
    """Measure the three networks on the CPU, with each number of threads, and on a GPU where there is one."""
    runs = [("cpu", number) for number in threads] + ([("cuda", 1)] if torch.cuda.is_available() else [])
    size = (3, 64, 64) if result["quick"] else IMAGENET_SIZE
    for device, number in runs:
        batch = 2 if result["quick"] else BATCH[device]
        turn = start(f"training, {device}, {number} threads", len(result["runs"]), len(runs))
        pin_threads(number)
        steps, contestants = {}, {}
        for entry in ENTRIES:
            torch.manual_seed(0)
            model = entry.build()
            facts = entry_facts(entry, TRAIN, *count(model, size))
            steps[f"{entry.name}, {TRAIN}"] = step = training_step(model, batch, size, device)
            step()  # the optimizer makes its momenta in the first
            facts["extra"] = {"batch": batch, "peak MB": round(peak_memory(step, device) / 1e6)}
            contestants[f"{entry.name}, {TRAIN}"] = {**facts, "size": size}
        measure_run(
            result,
            steps,
            turn,
            comparison=f"{device}, batch {batch}",
            reference=f"{MULTI_BRANCH}, {TRAIN}",
            backend=device,
            threads=number,
            contestants=contestants,
            failures={},
            primed=False,
        )
        save()
