"""``python -m rdpnet_timm.train``: train a model on small images, make a table of the paper, evaluate weights."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import List, Optional

import timm
import torch
from timm.utils import ParseKwargs

from ..checkpoint import load_model
from ..convert import reparameterize
from .data import read_data
from .plots import plot_history
from .progress import progress_bar
from .recipe import RECIPES
from .release import release
from .tables import TABLES, format_table, run_table
from .trainer import Run, evaluate, train


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        help="a folder with torchvision's cifar-10-batches-py or cifar-100-python, a folder with train.parquet and "
        "test.parquet, or 'digits' for those of scikit-learn",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def _add_run(subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subcommands.add_parser("run", help="train one model, from where it was stopped")
    _add_data(parser)
    parser.add_argument("--data-name", help="what card and picture call the data (default: the name of its folder)")
    parser.add_argument("--output", required=True, type=Path, help="folder for checkpoint, log, weights and their card")
    parser.add_argument("--model", default="rdpnet_025_cifar", help="a timm model (default: %(default)s)")
    parser.add_argument("--model-args", nargs="*", default={}, action=ParseKwargs, metavar="NAME=VALUE")
    parser.add_argument("--recipe", default="ours", choices=list(RECIPES), help="default: %(default)s")
    parser.add_argument("--epochs", type=float, help="in place of the recipe's")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument(
        "--compile", nargs="?", const="default", default="", metavar="MODE", help="torch.compile, in the given mode"
    )
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = RECIPES[args.recipe].with_settings(args.set)
    if args.epochs:
        recipe = replace(recipe, epochs=args.epochs)
    model_args = tuple(sorted(args.model_args.items()))
    run = Run(args.model, recipe, args.seed, model_args, args.device, args.amp, args.compile)
    data = read_data(args.data)
    args.output.mkdir(parents=True, exist_ok=True)
    with progress_bar(f"{args.model}, seed {args.seed}") as report:
        result = train(run, data, args.output, report)
    data_name = args.data_name or Path(args.data).resolve().name
    card = release(result, run, data[1], args.output / "weights.safetensors", data_name)
    plot_history(result.history, args.output / "training.png", f"{args.model} on {data_name}")
    print(f"train form {card['accuracy_train_form']:.2f} %, deploy form {card['accuracy_deploy_form']:.2f} % of")
    print(f"{card['test_images']} test images, in {card['seconds']} s; {args.output}/weights.safetensors")


def _add_table(subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subcommands.add_parser(
        "table", help="make all runs of a table of the paper, and print it", epilog="other options are those of 'run'"
    )
    parser.add_argument("number", type=int, choices=list(TABLES))
    parser.add_argument("--output", required=True, type=Path, help="folder for the folders of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--column", default="CIFAR-10 %", help="of the paper (default: %(default)s)")
    parser.add_argument("--print", action="store_true", help="print what there is, run nothing")
    parser.set_defaults(run=_table)


def _table(args: argparse.Namespace) -> None:
    try:
        if not args.print:
            run_table(args.number, args.output, args.seeds, args.rest, args.jobs)
    finally:
        print(format_table(args.number, args.output, args.column))


def _add_evaluate(subcommands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subcommands.add_parser("evaluate", help="accuracy of weights, in both forms")
    _add_data(parser)
    parser.add_argument("--model", default="rdpnet_025_cifar", help="a timm model, with the tag of its weights or not")
    parser.add_argument("--weights", help="a checkpoint; without it, the pretrained weights that come with the model")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> None:
    _, test = read_data(args.data)
    test = test.to(args.device)
    model = load_model(args.weights, args.model) if args.weights else timm.create_model(args.model, pretrained=True)
    model = model.to(device=args.device, memory_format=torch.channels_last)
    for name, form in (("train", model), ("deploy", reparameterize(model))):
        found = evaluate(form, test)
        print(f"{name} form: {found.correct} of {found.total} correct, {found.accuracy:.2f} %, loss {found.loss:.4f}")


def main(argv: Optional[List[str]] = None) -> int:
    """Run one subcommand; the exit status is 0 on success, 2 on wrong usage, 1 on any other error the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m rdpnet_timm.train", description="Train on small images (CIFAR, digits) that fit in memory."
    )
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(subcommands)
    _add_table(subcommands)
    _add_evaluate(subcommands)
    args, rest = parser.parse_known_args(argv)
    if rest and args.command != "table":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    try:
        args.run(args)
    except (ArithmeticError, ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"{parser.prog} {args.command}: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
