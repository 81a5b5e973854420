"""``python -m rdpnet_timm.train``: train one model on small images."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from .data import read_data
from .recipe import RECIPES
from .trainer import Run, train


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rdpnet_timm.train",
        description="Train a model on small images (CIFAR, digits) that fit in memory.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="torchvision's CIFAR folder, a folder of parquets, or 'digits'")
    parser.add_argument("--output", required=True, type=Path, help="folder for checkpoint, log and weights")
    parser.add_argument("--model", default="rdpnet_025_cifar", help="a timm model")
    parser.add_argument("--recipe", default="ours", choices=list(RECIPES))
    parser.add_argument("--epochs", type=float, help="instead of the recipe's")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--compile", nargs="?", const="default", default="", metavar="MODE", help="torch.compile")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Train as the arguments say."""
    args = _parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = RECIPES[args.recipe].with_settings(args.set)
    if args.epochs:
        recipe = replace(recipe, epochs=args.epochs)
    run = Run(args.model, recipe, args.seed, (), args.device, args.amp, args.compile)

    def report(step: int, steps: int, record: Dict[str, Any]) -> None:
        if record:
            print(record, flush=True)

    result = train(run, read_data(args.data), args.output, report)
    print(result.train_form, result.deploy_form)
    from safetensors.torch import save_file
    from .trainer import write_atomically

    write_atomically(args.output / "weights.safetensors", lambda p: save_file({k: v.contiguous() for k, v in result.model.state_dict().items()}, p))
    return 0


if __name__ == "__main__":
    sys.exit(main())
