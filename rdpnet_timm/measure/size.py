"""Parameters and multiply-accumulates (MACs) of a model, counted by torch, beside the paper's figures."""

import json
from copy import deepcopy
from typing import List, NamedTuple, Optional, Sequence, Tuple

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..convert import reparameterize
from .difference import evaluating
from .published import published_size

__all__ = ["Complexity", "Row", "count", "count_macs", "render", "table"]


class Complexity(NamedTuple):
    """``params``: number of parameters; ``macs``: multiply-accumulates of one image."""

    params: int
    macs: int


def count_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products that ``model`` does for the input ``x``, in evaluation.

    torch's counter sees nothing else: a batch norm, an addition or a ReLU counts nothing.
    """
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def count(model: nn.Module, input_size: Sequence[int]) -> Complexity:
    """Count parameters, and the MACs of one image of ``input_size`` ``(C, H, W)``, as the model is: nothing is fused.

    A copy of the model runs on the meta device, so no arithmetic is done; what counts, see :func:`count_macs`.
    """
    macs = count_macs(deepcopy(model).to("meta"), torch.empty(1, *input_size, device="meta"))
    return Complexity(sum(parameter.numel() for parameter in model.parameters()), macs)


class Row(NamedTuple):
    """One model: its input size ``(C, H, W)``, both forms, and the paper's parameters (M) and FLOPs (M)."""

    model: str
    input_size: Tuple[int, ...]
    train: Complexity
    deploy: Complexity
    paper: Optional[Tuple[float, float]]


def table(models: Sequence[str], input_size: Optional[Sequence[int]] = None) -> List[Row]:
    """Count both forms of each model, at its own input size or at a given one; see :class:`Row`.

    The paper's figures stand only beside the sizes that they are for. The train form is as trained, the deploy form as
    :func:`rdpnet_timm.reparameterize` gives it; for a timm model without one the two are the same.

    Raises:
        RuntimeError: timm does not know a model, or the input size does not fit it; the message says which.
    """
    rows = []
    for name in models:
        model = timm.create_model(name, pretrained=False)
        own_size = tuple(model.pretrained_cfg["input_size"])
        size = tuple(input_size or own_size)
        paper = published_size(name) if size == own_size else None
        try:
            train, deploy = count(model, size), count(reparameterize(model), size)
        except (AssertionError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise RuntimeError(
                f"{name} takes no images (C, H, W) of {size}, its own are {own_size}: {reason}"
            ) from error
        rows.append(Row(name, size, train, deploy, paper))
    return rows


def render(rows: Sequence[Row], output_format: str = "text") -> str:
    """Write rows as ``text``, ``markdown``, ``csv`` or ``json``."""
    if output_format == "json":
        records = [{**row._asdict(), "train": row.train._asdict(), "deploy": row.deploy._asdict()} for row in rows]
        return json.dumps(records, indent=2)
    header = ["model", "input", "train params M", "deploy params M", "train MACs M", "deploy MACs M"]
    header += ["paper params M", "paper MFLOPs"]
    lines = [
        [
            row.model,
            "x".join(map(str, row.input_size)),
            f"{row.train.params / 1e6:.2f}",
            f"{row.deploy.params / 1e6:.2f}",
            f"{row.train.macs / 1e6:.1f}",
            f"{row.deploy.macs / 1e6:.1f}",
            *([f"{figure:g}" for figure in row.paper] if row.paper else ["", ""]),
        ]
        for row in rows
    ]
    if output_format == "csv":
        return "\n".join(",".join(line) for line in [header, *lines])
    if output_format == "markdown":
        rule = ["---"] * 2 + ["---:"] * (len(header) - 2)
        return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines])
    widths = [max(map(len, column)) for column in zip(header, *lines)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
        for line in [header, *lines]
    )
