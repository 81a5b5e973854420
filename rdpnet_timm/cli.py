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
    _add_export(subcommands)
    _add_bench(subcommands)
    _add_sample_voc(subcommands)


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
        help="how far the train and the deploy form differ",
        description="Compare a checkpoint with its deploy form, made here or read from a second checkpoint. Without a "
        "checkpoint, compare the forms of all of RDPNet's models, every batch norm random.",
    )
    _add_checkpoint_arguments(parser, nargs="?")
    parser.add_argument("deployed", nargs="?", metavar="DEPLOYED", help="a checkpoint in the deploy form")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative difference accepted [%(default)s]")
    parser.set_defaults(run=_verify)


def _verify(args: argparse.Namespace) -> None:
    from timm import list_models

    from .checkpoint import load_model
    from .convert import reparameterize
    from .verify import randomize_norms, verify

    if args.checkpoint is None:
        for name in list_models("rdpnet*"):
            model = randomize_norms(load_model(name))
            for dtype in ("float", "double"):
                verification = verify(getattr(model, dtype)(), reparameterize(model))
                verification.require(args.tolerance)
                print(f"{name}: {verification}")
        return
    model = load_model(args.checkpoint, args.model, not args.no_ema)
    deployed = load_model(args.deployed, args.model) if args.deployed else reparameterize(model)
    verification = verify(model, deployed)
    verification.require(args.tolerance)
    print(verification)


def _add_checkpoint_arguments(parser: argparse.ArgumentParser, nargs: Optional[str] = None) -> None:
    parser.add_argument(
        "checkpoint", nargs=nargs, metavar="CHECKPOINT", help="timm's .pth.tar, a state dict or .safetensors"
    )
    parser.add_argument("--model", metavar="NAME", help="timm name of the model, where the file does not say it")
    parser.add_argument("--no-ema", action="store_true", help="take the raw weights where there are averaged ones")


def _add_export(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "export",
        help="write ONNX, OpenVINO, torch.export, TorchScript, float and INT8",
        description="Reparameterise a model, export it, read it back in its runtime and compare: an artefact that "
        "differs is not written. A JSON file beside each one says what it is and how it runs fastest.",
    )
    parser.add_argument("model", metavar="MODEL_OR_CHECKPOINT", help="a timm name, or a checkpoint")
    parser.add_argument("--model", dest="arch", metavar="NAME", help="timm name, where the checkpoint does not say it")
    parser.add_argument("-o", "--output", required=True, metavar="DIR")
    parser.add_argument(
        "--format",
        nargs="+",
        default=["onnx"],
        metavar="FORMAT",
        dest="formats",
        help="onnx, openvino, torch-export, torchscript [onnx]",
    )
    parser.add_argument("--name", help="of the files; by default the model's")
    parser.add_argument("--int8", action="store_true", help="INT8 artefacts as well, of onnx and openvino")
    parser.add_argument("--calibration", metavar="IMAGES", help="a folder of images, or a parquet file of encoded ones")
    parser.add_argument("--calibration-images", type=int, default=300, metavar="N", help="at most [%(default)s]")
    parser.add_argument("--input-size", nargs=3, type=int, metavar=("C", "H", "W"), help="by default the model's own")
    parser.add_argument("--dynamic-batch", action="store_true", help="take any number of images")
    parser.add_argument(
        "--normalize", nargs="?", type=float, const=1.0, metavar="WHITE",
        help="the artefact normalises: it takes plain pixels of 0 to 1, or of 0 to WHITE (255)",
    )  # fmt: skip
    parser.add_argument(
        "--equalize", action=argparse.BooleanOptionalAction,
        help="equalise before INT8; by default where the model is one straight path",
    )  # fmt: skip
    parser.add_argument("--bias-correction", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--classes", metavar="FILE", help="class names for the JSON, one a line")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the largest logit, float [%(default)s]")
    parser.add_argument("--int8-tolerance", type=float, default=0.3, help="root mean square, INT8 [%(default)s]")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    from pathlib import Path

    from .checkpoint import load_model
    from .deploy.calibration import Preprocessing, load_images
    from .deploy.export import export, table
    from .deploy.formats import known_format

    for name in args.formats:
        known_format(name)
    class_names = Path(args.classes).read_text().splitlines() if args.classes else None
    model = load_model(args.model, args.arch)
    calibration = None
    if args.calibration:
        calibration = load_images(args.calibration, Preprocessing.of(model, args.input_size), args.calibration_images)
    artifacts = export(
        model,
        args.output,
        args.formats,
        args.name,
        args.int8,
        calibration,
        args.input_size,
        args.dynamic_batch,
        args.normalize,
        equalization=args.equalize,
        bias_correction=args.bias_correction,
        class_names=class_names,
        tolerance=args.tolerance,
        int8_tolerance=args.int8_tolerance,
    )
    print(table(artifacts))


def _add_bench(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "bench",
        help="measure the paper's tables on this machine",
        description="Measure the paper's tables, and RDPNet among today's networks, on this machine.",
    )
    parser.add_argument(
        "tables",
        nargs="+",
        metavar="TABLE",
        help="table1, table3, table4, table5, table6, table7, table8, figure2, modern, scaling, training, or all",
    )
    parser.add_argument(
        "--backend", nargs="+", metavar="NAME", help="eager, compile, onnxruntime, openvino [all but the slow compile]"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1], metavar="N", help="each is measured [1]")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="timed calls of each network [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="two rounds, few networks: see that everything works")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for .md, .csv, .json and .png")
    parser.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> None:
    import shlex
    from pathlib import Path

    from .bench.run import BACKENDS, NAMES, run

    names = NAMES if "all" in args.tables else args.tables
    command = shlex.join(["rdpnet", *sys.argv[1:]])
    run(names, Path(args.output), args.backend or BACKENDS, args.threads, args.rounds, args.quick, command)


def _add_sample_voc(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "sample-voc",
        help="draw a small data set in the layout of PASCAL VOC",
        description="Draw DIR/VOCdevkit with VOC2007 and VOC2012 in the official layout, to run mm_configs/ on.",
    )
    parser.add_argument("folder", metavar="DIR", help="where VOCdevkit is made; an existing one is never overwritten")
    parser.add_argument("--images", type=int, default=180, help="pictures in each year [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same pictures [%(default)s]")
    parser.set_defaults(run=_sample_voc)


def _sample_voc(args: argparse.Namespace) -> None:
    from pathlib import Path

    from .sample_voc import make_sample_voc

    devkit = make_sample_voc(Path(args.folder), args.images, args.seed)
    print(f"{devkit}: VOC2007 and VOC2012, {args.images} drawn pictures each; now: VOCDEVKIT={devkit} mim train ...")


def main(argv: Optional[List[str]] = None) -> int:
    """Run one subcommand; the exit status is 0 on success, 2 on wrong usage, 1 on any other error the user can mend."""
    parser = argparse.ArgumentParser(prog="rdpnet", description="RDPNet: inspect, convert, export and measure models.")
    _add_subcommands(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except BrokenPipeError:  # the reader of our output, `head` for one, has seen enough
        sys.stderr.close()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"rdpnet {args.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"rdpnet {args.command}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
