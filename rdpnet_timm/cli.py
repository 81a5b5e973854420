"""The command ``rdpnet``: parses, calls, prints. Each subcommand imports what it needs when it runs."""

import argparse
import sys
from typing import List, Optional, TypeAlias

__all__ = ["main"]


Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_subcommands(subcommands: Subcommands) -> None:
    """One ``_add_NAME`` function a subcommand, in the order of the help text."""
    _add_info(subcommands)
    _add_reparam(subcommands)
    _add_verify(subcommands)


def _add_info(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "info", help="parameters and MACs of both forms", description="Parameters and MACs beside the paper's figures."
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="timm names; by default all of RDPNet's")
    parser.add_argument("--input-size", nargs=3, type=int, metavar=("C", "H", "W"), help="by default the model's own")
    parser.add_argument("--format", choices=("text", "markdown", "csv", "json"), default="text")
    parser.set_defaults(run=_info)


def _info(args: argparse.Namespace) -> None:
    from timm import list_models

    from .info import render, table

    print(render(table(args.models or list_models("rdpnet*"), args.input_size), args.format))


def _add_reparam(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "reparam",
        help="convert a checkpoint to the deploy form",
        description="Convert a train-form checkpoint to the deploy form, and print how far their outputs differ.",
    )
    _add_checkpoint_arguments(parser)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="a .safetensors or .pth file")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative difference accepted [%(default)s]")
    parser.set_defaults(run=_reparam)


def _reparam(args: argparse.Namespace) -> None:
    from .checkpoint import convert_checkpoint

    verification = convert_checkpoint(
        args.checkpoint, args.output, args.model, not args.no_ema, args.overwrite, args.tolerance
    )
    print(f"{args.output}: {verification}")


def _add_verify(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "verify",
        help="how far a checkpoint's train and deploy form differ",
        description="Compare a checkpoint with its deploy form, made here or read from a second checkpoint.",
    )
    _add_checkpoint_arguments(parser)
    parser.add_argument("deployed", nargs="?", metavar="DEPLOYED", help="a checkpoint in the deploy form")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative difference accepted [%(default)s]")
    parser.set_defaults(run=_verify)


def _verify(args: argparse.Namespace) -> None:
    from .checkpoint import load_model
    from .convert import reparameterize
    from .verify import verify

    model = load_model(args.checkpoint, args.model, not args.no_ema)
    deployed = load_model(args.deployed, args.model) if args.deployed else reparameterize(model)
    verification = verify(model, deployed)
    verification.require(args.tolerance)
    print(verification)


def _add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a .pth.tar of timm, a state dict, a .safetensors file"
    )
    parser.add_argument("--model", metavar="NAME", help="timm name of the model, where the file does not say it")
    parser.add_argument("--no-ema", action="store_true", help="take the raw weights where there are averaged ones")


def main(argv: Optional[List[str]] = None) -> int:
    """Run one subcommand; the exit status is 0 on success, 2 on wrong usage, 1 on any other error the user can mend."""
    parser = argparse.ArgumentParser(prog="rdpnet", description="RDPNet: inspect, convert, export and measure models.")
    _add_subcommands(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"rdpnet {args.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"rdpnet {args.command}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
