"""The command ``rdpnet``: parses, calls, prints. Each subcommand imports what it needs when it runs."""

import argparse
import sys
import traceback
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple, TypeAlias

from . import __version__
from .progress import drop_output
from .signals import handled

if TYPE_CHECKING:
    from torch import nn

    from .train.run import Run

__all__ = ["main"]


Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_subcommands(subcommands: Subcommands) -> None:
    """One ``_add_NAME`` function a subcommand, in the order of the help text."""
    _add_info(subcommands)
    _add_reparam(subcommands)
    _add_verify(subcommands)
    _add_train(subcommands)
    _add_evaluate(subcommands)
    _add_table(subcommands)
    _add_predict(subcommands)
    _add_export(subcommands)
    _add_bench(subcommands)
    _add_bench_int8_speed(subcommands)
    _add_bench_int8_accuracy(subcommands)
    _add_bench_whole_networks(subcommands)
    _add_bench_docs(subcommands)
    _add_demo(subcommands)
    _add_sample_voc(subcommands)
    _add_configs(subcommands)


def _count(text: str) -> int:
    """A number from 1, as an option's type."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got '{text}'")
    return number


def _add_info(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "info", help="parameters and MACs of both forms", description="Parameters and MACs beside the paper's figures."
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="timm names; by default all of RDPNet's")
    parser.add_argument(
        "--input-size", nargs=3, type=_count, metavar=("C", "H", "W"), help="by default the model's own"
    )
    parser.add_argument("--format", choices=("text", "markdown", "csv", "json"), default="text")
    parser.set_defaults(run=_info)


def _info(args: argparse.Namespace) -> None:
    from timm import list_models

    from .measure.size import render, table

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
        description="Compare a checkpoint with its deploy form, made here or read from a second checkpoint: their "
        "outputs on random images, and every converted part on an input of its own. Without a checkpoint, compare the "
        "forms of all of RDPNet's models, every batch norm random.",
    )
    _add_checkpoint_arguments(parser, nargs="?")
    parser.add_argument("deployed", nargs="?", metavar="DEPLOYED", help="a checkpoint in the deploy form")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative difference accepted [%(default)s]")
    parser.set_defaults(run=_verify)


def _verify(args: argparse.Namespace) -> None:
    from timm import list_models

    from .checkpoint import deploy_form_of, load_model
    from .convert import reparameterize
    from .measure.difference import compare_outputs, randomize_norms, verify

    if args.checkpoint is None:
        for name in list_models("rdpnet*"):
            model = randomize_norms(load_model(name, random_weights=True))
            for dtype in ("float", "double"):
                deployed = reparameterize(getattr(model, dtype)())
                # the parts are compared in float64 in either case
                verification = (verify if dtype == "float" else compare_outputs)(model, deployed)
                verification.require(args.tolerance)
                print(f"{name}: {verification}")
        return
    model = load_model(args.checkpoint, args.model, not args.no_ema)
    deployed = load_model(args.deployed, args.model) if args.deployed else deploy_form_of(model)
    verification = verify(model, deployed)
    if not verification.parts:
        both = f"'{args.checkpoint}' and '{args.deployed}' are" if args.deployed else f"'{args.checkpoint}' is"
        raise ValueError(
            f"nothing was compared: {both} in one form, and no part was converted; give the train form first, and its "
            "deploy form after it or nothing: rdpnet verify TRAINED [DEPLOYED]"
        )
    verification.require(args.tolerance)
    print(verification)


def _add_checkpoint_arguments(parser: argparse.ArgumentParser, nargs: Optional[str] = None) -> None:
    parser.add_argument(
        "checkpoint", nargs=nargs, metavar="CHECKPOINT", help="timm's .pth.tar, a state dict or .safetensors"
    )
    parser.add_argument("--model", metavar="NAME", help="timm name of the model, where the file does not say it")
    parser.add_argument("--no-ema", action="store_true", help="take the raw weights where there are averaged ones")


def _add_data(parser: argparse.ArgumentParser, nargs: Optional[str] = None) -> None:
    parser.add_argument(
        "data",
        nargs=nargs,
        metavar="DATA",
        help="a folder with torchvision's cifar-10-batches-py or cifar-100-python; one with train.parquet and "
        "test.parquet; one of pictures, train/CLASS/* and val/CLASS/* (or validation/, test/), scaled to the "
        "model's size; or 'digits' for those of scikit-learn",
    )
    parser.add_argument("--device", metavar="NAME", help="by default cuda where there is one, else cpu")


def _device(args: argparse.Namespace) -> str:
    """The device that was named, once a number has been there and back; else the one there is.

    Raises:
        ValueError: it cannot be used.
    """
    import torch

    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"cannot use the device '{name}' ({reason}); leave out --device, or name cpu") from None
    return name


class _Settings(argparse.Action):
    """``NAME=VALUE ...`` as a dict, each value read as Python where it is that; given again, it adds to it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Optional[str] = None) -> None:
        from ast import literal_eval

        settings = dict(getattr(namespace, self.dest))  # the default is everybody's
        for value in values:
            name, equals, text = value.partition("=")
            if not equals:
                raise argparse.ArgumentError(self, f"expected NAME=VALUE, got '{value}'")
            try:
                settings[name] = literal_eval(text)
            except (SyntaxError, ValueError):
                settings[name] = text
        setattr(namespace, self.dest, settings)


def _add_train(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "train",
        help="train on small images that fit in memory",
        description="Train a model on small images (CIFAR, digits, your own) that fit in memory, from where it was "
        "stopped. For everything else there is timm's train.py, which takes the models by name.",
    )
    _add_data(parser)
    _add_train_options(parser)
    parser.set_defaults(run=_train)


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-name", metavar="TEXT", help="what card and picture call the data [its folder's name]")
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="folder for checkpoint, log, weights and their card"
    )
    parser.add_argument("--model", default="rdpnet_025_cifar", metavar="NAME", help="a timm model [%(default)s]")
    parser.add_argument("--model-args", nargs="*", default={}, action=_Settings, metavar="NAME=VALUE")
    parser.add_argument(
        "--weights", default="", metavar="FILE_OR_NAME", help="begin with a checkpoint, or with a timm name's weights"
    )
    parser.add_argument("--recipe", default="ours", metavar="NAME", help="ours, paper, short, digits, demo [ours]")
    parser.add_argument("--epochs", type=float, metavar="N", help="in place of the recipe's")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="NAME=VALUE", help="other settings of the recipe"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument(
        "--compile", nargs="?", const="default", default="", metavar="MODE", help="torch.compile, in the given mode"
    )
    parser.add_argument("--threads", type=_count, metavar="N", help="CPU threads")


def _train(args: argparse.Namespace) -> None:
    from pathlib import Path

    from .extras import require_all

    require_all(("matplotlib", "rich"), "rdpnet train", "train")
    import torch

    from .measure.machine import require_threads
    from .train.data import better_elsewhere, read_data
    from .train.progress import progress_bar
    from .train.release import finish
    from .train.trainer import train

    run = _run_of(args)
    if args.threads is not None:
        require_threads(args.threads)
        torch.set_num_threads(args.threads)
    data, output = read_data(args.data, run.image_size), Path(args.output)
    for hint in better_elsewhere(data[0]):
        print(f"rdpnet train: {hint}", file=sys.stderr)
    with progress_bar(f"{args.model}, seed {args.seed}") as report:
        result = train(run, data, output, report)
    data_name = args.data_name or Path(args.data).resolve().name
    card = finish(result, run, data[1], output, data_name)
    print(f"train form {card['accuracy_train_form']:.2f} %, deploy form {card['accuracy_deploy_form']:.2f} % of")
    print(f"{card['test_images']} test images, in {card['seconds']} s; {output}/weights.safetensors")


def _run_of(args: argparse.Namespace) -> "Run":
    """What the options of ``rdpnet train`` say."""
    from dataclasses import replace

    from .train.recipe import recipe_named
    from .train.run import Run

    recipe = recipe_named(args.recipe).with_settings(args.set)
    if args.epochs is not None:
        recipe = replace(recipe, epochs=args.epochs)
    if recipe.small_epochs >= recipe.epochs:
        raise ValueError(
            f"all {recipe.epochs:g} epochs would be on images shrunk to {recipe.small_size} pixels (small_epochs="
            f"{recipe.small_epochs:g}), and the network is then asked about whole ones: leave some for these "
            f"(--set small_epochs={recipe.epochs / 2:g})"
        )
    model_args = tuple(sorted(args.model_args.items()))
    return Run(args.model, recipe, args.seed, model_args, _device(args), args.amp, args.compile, args.weights)


def _add_evaluate(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "evaluate",
        help="accuracy of weights on small images, in both forms",
        description="Accuracy in both forms on the test images of DATA, of which no others are read.",
    )
    _add_data(parser)
    parser.add_argument("--model", metavar="NAME", help="a timm model, with the tag of its weights or not [the file's]")
    parser.add_argument(
        "--weights", metavar="FILE", help="a checkpoint; without it, the weights that come with the model"
    )
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> None:
    import torch

    from .convert import reparameterize
    from .deploy.calibration import Preprocessing
    from .train.data import read_test, require_classes
    from .train.evaluation import evaluate

    model = _model_with_weights(args)
    test = read_test(args.data, Preprocessing.of(model)).to(_device(args))
    require_classes(test, model.pretrained_cfg.get("label_names"), args.weights or args.model or "rdpnet_025_cifar")
    model = model.to(device=_device(args), memory_format=torch.channels_last)
    deployed = reparameterize(model)
    forms = {"train": model, "deploy": deployed}
    if list(model.state_dict()) == list(deployed.state_dict()):
        del forms["train"]  # nothing was merged: the weights are of the deploy form
    for which, form in forms.items():
        found = evaluate(form, test)
        print(f"{which} form: {found.correct} of {found.total} correct, {found.accuracy:.2f} %, loss {found.loss:.4f}")


def _add_table(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "table",
        help="train all networks of the paper's Table 3 or 8",
        description="Make all runs of a table of the paper, those that are finished left out, and print it.",
        epilog="all other options are those of 'rdpnet train'",
    )
    parser.add_argument("number", type=int, choices=(3, 8))
    parser.add_argument("data", nargs="?", metavar="DATA", help="as 'rdpnet train' takes it")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the folders of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="runs at the same time")
    parser.add_argument("--rows", type=_count, metavar="N", help="run the table's first N rows only [all]")
    parser.add_argument("--model", metavar="NAME", help="of Table 8's rows [rdpnet_100_cifar, as the paper]")
    parser.add_argument("--column", metavar="TEXT", help="of the paper, 'CIFAR-10 %%' or 'CIFAR-100 %%' [the data's]")
    parser.add_argument("--print", action="store_true", help="print what there is, run nothing")
    parser.set_defaults(run=_table, takes_rest=True)


def _options_of_runs(args: argparse.Namespace) -> Tuple[List[str], argparse.Namespace]:
    """What ``rdpnet table`` hands on to the ``rdpnet train`` of each run, and what that says."""
    parser = argparse.ArgumentParser(prog="rdpnet table")
    _add_data(parser, nargs="?")
    _add_train_options(parser)
    options = [*([args.data] if args.data else []), *args.rest]
    return options, parser.parse_args([*options, "--output", args.output])


def _table(args: argparse.Namespace) -> None:
    from dataclasses import replace
    from pathlib import Path

    from .extras import require_all
    from .train.data import read_data
    from .train.tables import accuracy_column, format_table, networks, run_table

    options, trained = _options_of_runs(args)
    if trained.model_args or trained.weights:
        raise ValueError("a table's networks are its own, from the first step: leave out --model-args and --weights")
    output, column = Path(args.output), args.column
    accuracy_column(args.number, column)  # refuses what is none
    first = next(iter(networks(args.number, args.model).values()))
    if not args.print:
        if trained.data is None:
            raise ValueError("name the data: rdpnet table NUMBER DATA -o DIR; with --print nothing is run")
        require_all(("matplotlib", "rich"), "rdpnet table", "train")
        run = replace(_run_of(trained), model=first.model)
        data = read_data(trained.data, run.image_size)
        column = accuracy_column(args.number, args.column, len(data[1].classes))
        name = trained.data_name or Path(trained.data).resolve().name
        try:
            run_table(args.number, output, args.seeds, options, run, data, args.jobs, args.model, name, args.rows)
        except RuntimeError:
            print(format_table(args.number, output, column, args.model))
            raise
    print(format_table(args.number, output, column, args.model))


def _add_predict(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "predict",
        help="classify pictures",
        description="Classify pictures of any size, with the weights that come with a model or with a checkpoint.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, or a folder of them")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a timm model, with the tag of its weights or not [rdpnet_025_cifar, or the file's]",
    )
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint in place of the model's own weights")
    parser.add_argument("--top", type=_count, default=5, metavar="N", help="classes to name [%(default)s]")
    parser.add_argument("--save", metavar="FILE", help="a picture of the pictures and their classes (.png, .jpg, ...)")
    parser.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> int:
    from pathlib import Path

    from .deploy.calibration import pictures_in
    from .predict import classifier, draw, require_drawable

    paths = []
    for path in map(Path, args.images):
        found = pictures_in(path) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"no pictures in the folder '{path}'")
        paths += found
    if args.save:
        require_drawable(args.save, paths)
    classify, predictions = classifier(_model_with_weights(args), args.top), []
    for path in paths:
        try:
            prediction = classify(path)
        except (OSError, ValueError) as error:  # the others are answered all the same
            print(f"rdpnet predict: error: {error}", file=sys.stderr)
            continue
        print(prediction, flush=True)
        predictions.append(prediction)
    if args.save and predictions:
        draw(predictions, args.save)
    return 0 if len(predictions) == len(paths) else 1


def _model_with_weights(args: argparse.Namespace) -> "nn.Module":
    """The model of ``--weights``, a file, or that of ``--model`` with its own.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError, ValueError: as :func:`load_model`.
    """
    from pathlib import Path

    from .checkpoint import load_model

    if not args.weights:
        return load_model(args.model or "rdpnet_025_cifar")
    if not Path(args.weights).is_file():
        raise FileNotFoundError(f"no checkpoint at '{args.weights}'")
    return load_model(args.weights, args.model)


def _add_export(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "export",
        help="write ONNX, OpenVINO, ExecuTorch, LiteRT, ncnn, torch.export, TorchScript, float and INT8",
        description="Reparameterise a model, export it, read it back in its runtime and compare: an artefact that "
        "differs is not written. A JSON file beside each one says what it is and how it runs fastest.",
    )
    parser.add_argument(
        "source", metavar="MODEL", help="a timm name, a checkpoint, or the config (.py) of a detector or segmentor"
    )
    parser.add_argument("--model", metavar="NAME", help="timm name, where the checkpoint does not say it")
    parser.add_argument("--checkpoint", metavar="FILE", help="the weights of a detector or segmentor [random ones]")
    parser.add_argument("--random-weights", action="store_true", help="for a name without weights, to time it")
    parser.add_argument("-o", "--output", required=True, metavar="DIR")
    parser.add_argument(
        "--format",
        nargs="+",
        default=["onnx"],
        metavar="FORMAT",
        dest="formats",
        help="onnx, openvino, torch-export, torchscript, executorch, litert, ncnn [onnx]",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace artefacts of the same name")
    parser.add_argument("--name", help="of the files; by default the model's")
    parser.add_argument(
        "--int8", action="store_true", help="INT8 artefacts as well, of onnx, openvino, executorch and litert"
    )
    parser.add_argument("--calibration", metavar="IMAGES", help="a folder of images, or a parquet file of encoded ones")
    parser.add_argument("--calibration-images", type=_count, default=300, metavar="N", help="at most [%(default)s]")
    parser.add_argument(
        "--input-size", nargs=3, type=_count, metavar=("C", "H", "W"), help="by default the model's own"
    )
    parser.add_argument("--dynamic-batch", action="store_true", help="take any number of images")
    parser.add_argument(
        "--normalize", nargs="?", type=float, const=1.0, choices=(1, 255), metavar="WHITE",
        help="the artefact normalises: it takes plain pixels of 0 to 1, or of 0 to WHITE (255)",
    )  # fmt: skip
    parser.add_argument(
        "--equalize", action=argparse.BooleanOptionalAction,
        help="equalise before INT8; by default where the model is one straight path",
    )  # fmt: skip
    parser.add_argument("--bias-correction", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--reduce-range", action=argparse.BooleanOptionalAction,
        help="INT8 weights of 7 bits, for x86 without VNNI, where 8 overflow; by default where this CPU is one",
    )  # fmt: skip
    parser.add_argument("--classes", metavar="FILE", help="class names for the JSON, one a line")
    parser.add_argument(
        "--tolerance", type=float,
        help="float: of the largest logit [1e-4]; of a detector or segmentor, boxes or pixels that differ [0.01]",
    )  # fmt: skip
    parser.add_argument(
        "--int8-tolerance", type=float,
        help="INT8: root mean square [0.3]; of a detector or segmentor, boxes without one near by [0.5]",
    )  # fmt: skip
    whole = parser.add_argument_group("detectors and segmentors")
    whole.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="of the pictures; by default any")
    whole.add_argument("--score-threshold", type=float, metavar="SCORE", help="leave out boxes below [the config's]")
    whole.add_argument("--logits", action="store_true", help="a segmentor's logits beside its classes")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    from .checkpoint import load_model
    from .deploy.artifacts import export, table
    from .deploy.calibration import Preprocessing, load_images
    from .deploy.formats import known_format, require_formats
    from .deploy.quantize import QUANTIZERS
    from .files import read_lines
    from .progress import status

    for name in args.formats:
        known_format(name)
    require_formats(args.formats, QUANTIZERS if args.int8 else ())
    class_names = read_lines(args.classes) if args.classes else None
    if args.source.endswith(".py"):
        _export_openmmlab(args, class_names)
        return
    model = load_model(args.source, args.model, random_weights=args.random_weights)
    calibration = None
    if args.calibration:
        calibration = load_images(args.calibration, Preprocessing.of(model, args.input_size), args.calibration_images)
    with status() as report:
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
            reduce_range=args.reduce_range,
            class_names=class_names,
            tolerance=1e-4 if args.tolerance is None else args.tolerance,
            int8_tolerance=0.3 if args.int8_tolerance is None else args.int8_tolerance,
            overwrite=args.overwrite,
            report=report,
        )
    print(table(artifacts))


def _export_openmmlab(args: argparse.Namespace, class_names: Optional[List[str]]) -> None:
    from .deploy.calibration import load_pictures
    from .openmmlab.export import export_openmmlab, table

    networks = export_openmmlab(
        args.source,
        args.output,
        args.checkpoint,
        args.formats,
        args.name,
        tuple(args.size) if args.size else None,
        args.score_threshold,
        args.logits,
        class_names,
        load_pictures(args.calibration, args.calibration_images) if args.calibration else None,
        args.int8,
        equalization=args.equalize,
        bias_correction=args.bias_correction,
        reduce_range=args.reduce_range,
        overwrite=args.overwrite,
        tolerance=0.01 if args.tolerance is None else args.tolerance,
        int8_tolerance=0.5 if args.int8_tolerance is None else args.int8_tolerance,
    )
    print(table(networks))


_BENCH = ("int8-speed", "int8-accuracy", "whole-networks", "docs")  # commands of two words


def _table_name(text: str) -> str:
    """What is no command, as an argument's type."""
    if text in _BENCH:
        raise argparse.ArgumentTypeError(f"'{text}' is a command, its name comes right behind: rdpnet bench {text} ...")
    return text


def _add_bench(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "bench",
        help="measure the paper's tables on this machine",
        description="Measure the paper's tables, and RDPNet among today's networks, on this machine.",
        epilog=f"further commands, each with --help of its own: {', '.join(f'rdpnet bench {name}' for name in _BENCH)}",
    )
    parser.add_argument(
        "tables",
        nargs="+",
        type=_table_name,
        metavar="TABLE",
        help="table1, table3, table4, table5, table6, table7, table8, figure2, modern, scaling, training, "
        "throughput, or all",
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        metavar="NAME",
        help="eager, compile, onnxruntime, openvino, executorch, litert, ncnn [eager, onnxruntime, openvino]",
    )
    parser.add_argument(
        "--precision", nargs="+", metavar="NAME", help="float32, bfloat16, int8 [all that backend and CPU have]"
    )
    parser.add_argument(
        "--isa",
        nargs="+",
        metavar="CLASS",
        help="hold OpenVINO to a CPU class, a process for each: avx2, avx2_vnni, avx512_vnni, amx",
    )
    parser.add_argument("--threads", nargs="+", type=_count, default=[1], metavar="N", help="each is measured [1]")
    parser.add_argument(
        "--widths", nargs="+", type=float, metavar="WIDTH", help="of training: 0.25, 1.0, 1.25, each is measured [all]"
    )
    parser.add_argument("--sizes", nargs="+", type=_count, metavar="PIXELS", help="of training: 32, 224 [all]")
    parser.add_argument("--batches", nargs="+", type=_count, metavar="N", help="of training: 16, 32, 128 [all]")
    parser.add_argument(
        "--rounds", type=_count, default=30, metavar="N", help="timed calls of each network [%(default)s]"
    )
    parser.add_argument("--quick", action="store_true", help="two rounds, few networks: see that everything works")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="DIR",
        help="folder for .md, .csv, .json and .png; a complete result there is not replaced",
    )
    parser.add_argument("--recorded-command", help=argparse.SUPPRESS)  # what the user typed, in the processes of --isa
    parser.set_defaults(run=_bench)


def _command_line() -> str:
    """What the user typed, for the record."""
    import shlex

    return shlex.join(["rdpnet", *sys.argv[1:]])


def _bench(args: argparse.Namespace) -> None:
    from pathlib import Path

    from .bench.backends import PRECISIONS
    from .bench.isa import run_classes
    from .bench.run import BACKENDS, run
    from .bench.training import select

    precisions, command = args.precision or PRECISIONS, args.recorded_command or _command_line()
    if args.isa:
        arguments = [*args.tables, "--precision", *precisions, "--threads", *map(str, args.threads)]
        arguments += ["--recorded-command", command]
        arguments += ["--rounds", str(args.rounds), *(["--quick"] if args.quick else [])]
        run_classes(args.isa, arguments, Path(args.output))
        return
    run(
        args.tables,
        Path(args.output),
        args.backend or BACKENDS,
        args.threads,
        args.rounds,
        args.quick,
        command,
        precisions,
        select(args.widths, args.sizes, args.batches),
    )


_OUTPUT = "folder for {0}.md and {0}.json; a complete result there is not replaced"


def _add_bench_int8_speed(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "bench int8-speed",
        help="every width in every runtime and precision, beside the machine's bound",
        description="What each runtime makes of each width, in float and INT8, beside what the machine can do at best.",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help=_OUTPUT.format("speed"))
    parser.add_argument(
        "--widths",
        nargs="+",
        choices=("025", "050", "075", "100", "125", "150"),
        metavar="WIDTH",
        help="025 to 150 [all]",
    )
    parser.add_argument("--threads", nargs="+", type=_count, metavar="N", help="each is measured [one, and one a core]")
    parser.add_argument("--rounds", type=_count, default=30, metavar="N", help="timed calls of each [%(default)s]")
    parser.add_argument(
        "--skip",
        nargs="+",
        default=(),
        choices=(
            "train", "deploy", "channels_last", "compile", "pt2e", "onnx", "onnx_int8", "openvino", "openvino_bf16",
            "openvino_int8", "openvino_qdq",
        ),
        metavar="NAME",
        help="contestants to leave out: %(choices)s",
    )  # fmt: skip
    parser.add_argument("--no-borders", action="store_true", help="leave the folding of normalisation out")
    parser.set_defaults(run=_bench_int8_speed)


def _bench_int8_speed(args: argparse.Namespace) -> None:
    from pathlib import Path

    from .bench.int8_speed import WIDTHS, run
    from .measure.machine import require_threads

    if args.threads:
        require_threads(*args.threads)
    borders = not args.no_borders
    run(Path(args.output), args.widths or WIDTHS, args.threads, args.rounds, args.skip, borders, _command_line())


def _add_bench_whole_networks(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "bench whole-networks",
        help="exported detectors and segmentors beside PyTorch",
        description="Score, boxes and latency on one thread of exported detectors or segmentors, beside both forms in "
        "PyTorch, on the test data of a config.",
    )
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="what was exported")
    parser.add_argument("artifacts", nargs="+", metavar="FILE", help=".onnx, for both runtimes, or OpenVINO's .xml")
    parser.add_argument("--pictures", type=_count, metavar="N", help="at most, the first ones [all]")
    parser.add_argument("--rounds", type=_count, default=20, metavar="N", help="timed calls of each [%(default)s]")
    parser.add_argument("-o", "--output", metavar="FILE", help="the figures as JSON")
    parser.set_defaults(run=_bench_whole_networks)


def _bench_whole_networks(args: argparse.Namespace) -> None:
    from pathlib import Path

    import torch

    from .bench.whole_networks import as_json, compare, table
    from .files import atomic_path, require_writable

    torch.set_num_threads(1)
    if args.output:
        require_writable(Path(args.output).parent)
    rows = compare(args.config, args.checkpoint, args.artifacts, args.pictures, args.rounds)
    print(table(rows), flush=True)
    if args.output:
        with atomic_path(args.output) as path:
            path.write_text(as_json(rows))


def _add_bench_int8_accuracy(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "bench int8-accuracy",
        help="what INT8 costs in accuracy, by runtime",
        description="What INT8 costs in accuracy, by runtime, and what equalisation and bias correction win back.",
    )
    parser.add_argument("source", metavar="MODEL_OR_CHECKPOINT")
    parser.add_argument("--model", metavar="NAME", help="timm name of the model, where the file does not say it")
    parser.add_argument("--data", required=True, metavar="DATA", help="as 'rdpnet train' takes it")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help=_OUTPUT.format("accuracy"))
    parser.add_argument("--calibration-images", type=_count, default=300, metavar="N", help="[%(default)s]")
    parser.add_argument("--test-images", type=_count, metavar="N", help="N of them, spread evenly [all]")
    parser.add_argument("--threads", type=_count, default=1, metavar="N", help="[%(default)s]")
    parser.set_defaults(run=_bench_int8_accuracy)


def _bench_int8_accuracy(args: argparse.Namespace) -> None:
    from pathlib import Path

    import torch

    from .bench.int8_accuracy import measure_accuracy
    from .measure.machine import require_threads

    require_threads(args.threads)
    torch.set_num_threads(args.threads)
    measure_accuracy(
        args.source,
        args.data,
        Path(args.output),
        args.model,
        args.calibration_images,
        args.threads,
        args.test_images,
        _command_line(),
    )


def _add_bench_docs(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "bench docs",
        help="write the documentation's pages of tables from results",
        description="Write a page TABLE.md and its picture into PAGES for every result in DIR.",
    )
    parser.add_argument("folder", metavar="DIR", help="what 'rdpnet bench' wrote")
    parser.add_argument("pages", metavar="PAGES", help="folder for the pages, made where needed")
    parser.set_defaults(run=_bench_docs)


def _bench_docs(args: argparse.Namespace) -> None:
    from pathlib import Path

    from .bench.docs import update

    for page in update(Path(args.folder), Path(args.pages)):
        print(page)


def _add_demo(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "demo",
        help="train, reparameterise and compare a classifier, a detector and a segmentor, in minutes",
        description="Train a classifier on handwritten digits, a detector and a segmentor on drawn pictures; "
        "reparameterise, compare and draw them. It needs no network.",
    )
    parser.add_argument("-o", "--output", default="demo", metavar="DIR", help="pictures and weights [%(default)s]")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    from pathlib import Path

    from .demo.run import run

    run(Path(args.output))


def _add_sample_voc(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "sample-voc",
        help="draw a small data set in the layout of PASCAL VOC",
        description="Draw DIR/VOCdevkit with VOC2007 and VOC2012 in the official layout, to run mm_configs/ on.",
    )
    parser.add_argument("folder", metavar="DIR", help="where VOCdevkit is made; an existing one is never overwritten")
    parser.add_argument("--images", type=_count, default=180, help="pictures in each year [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same pictures [%(default)s]")
    parser.set_defaults(run=_sample_voc)


def _sample_voc(args: argparse.Namespace) -> None:
    from pathlib import Path

    from .demo.sample_voc import make_sample_voc

    devkit = make_sample_voc(Path(args.folder), args.images, args.seed)
    print(f"{devkit}: VOC2007 and VOC2012, {args.images} pictures each, of drawn shapes that stand for VOC's classes")


def _add_configs(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "configs",
        help="copy the OpenMMLab configs and the recipes for timm's train.py",
        description="Copy the configs to DIR/mm_configs and the recipes to DIR/recipes; existing ones stay untouched.",
    )
    parser.add_argument("folder", nargs="?", default=".", metavar="DIR", help="where the two folders go [%(default)s]")
    parser.set_defaults(run=_configs)


def _configs(args: argparse.Namespace) -> None:
    from pathlib import Path

    from .files import copy_configs

    print(*copy_configs(Path(args.folder)), sep="\n")


def _told(error: Exception) -> str:
    """An error in a line; those that no part of this package raises on purpose, by their kind as well."""
    message = str(error)
    if message.startswith("Unknown model"):  # timm's own words
        message += "; for the names see timm.list_models('rdpnet*')"
    if isinstance(error, (ArithmeticError, ImportError, OSError, RuntimeError, ValueError)) and message:
        return message
    return f"{type(error).__name__}: {message} (this should not happen: with --debug the command says where it does)"


def _end(number: int, _: object) -> None:
    """Handle a signal as an exception, so that what was begun is cleaned up; who handles it otherwise, may."""
    raise SystemExit(128 + number)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What the words behind ``rdpnet`` say.

    Raises:
        SystemExit: with status 2, they cannot be; with status 0, they ask for help or the version.
    """
    parser = argparse.ArgumentParser(
        prog="rdpnet", description="RDPNet: inspect, convert, train, export and measure models."
    )
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_subcommands(subcommands)
    parser.add_argument("--version", action="version", version=f"rdpnet-timm {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from; for any command")
    words = [word for word in argv if word != "--debug"]
    if " ".join(words[:2]) in subcommands.choices:  # a command of two words
        words = [" ".join(words[:2]), *words[2:]]
    args, rest = parser.parse_known_args(words)
    args.rest, args.debug = rest, "--debug" in argv  # in front of the command or behind it
    if rest and not hasattr(args, "takes_rest"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    _require_needs(args, subcommands.choices[args.command])
    return args


def _is_config(args: argparse.Namespace) -> bool:
    return args.source.endswith(".py")


# By command: options, when they do something, and what for.
_NEEDS: Dict[str, List[Tuple[str, Callable[[argparse.Namespace], object], str]]] = {
    "verify": [("--model --no-ema", lambda args: args.checkpoint, "a CHECKPOINT")],
    "export": [
        ("--checkpoint --size --score-threshold --logits", _is_config, "the config (.py) of a detector or segmentor"),
        (
            "--model --random-weights --input-size --dynamic-batch --normalize",
            lambda args: not _is_config(args),
            "a classifier: others take a --checkpoint or random weights, one picture of any size or of --size, and "
            "normalise it themselves",
        ),
        ("--equalize --bias-correction --reduce-range --int8-tolerance", lambda args: args.int8, "--int8"),
        ("--calibration-images", lambda args: args.calibration, "--calibration"),
    ],
    "bench": [
        (
            "--widths --sizes --batches",
            lambda args: {"training", "all"} & set(args.tables) and not args.isa,
            "the table training, which --isa leaves out",
        ),
        ("--backend", lambda args: set(args.tables) != {"training"}, "other tables than training, which is PyTorch's"),
        ("--threads", lambda args: set(args.tables) != {"throughput"}, "other tables than throughput, on all cores"),
        (
            "--isa",
            lambda args: "training" not in args.tables and args.backend in (None, ["openvino"]),
            "openvino, which alone can be held to a CPU class: no other --backend, and not the table training",
        ),
    ],
}


def _require_needs(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse options that would do nothing; ``parser`` is that of the subcommand."""
    for options, is_met, need in _NEEDS.get(args.command, ()):
        names = {option: option[2:].replace("-", "_") for option in options.split()}
        given = [option for option, name in names.items() if getattr(args, name) != parser.get_default(name)]
        if given and not is_met(args):
            parser.error(f"{' and '.join(given)}: only with {need}")


def main(argv: Optional[List[str]] = None) -> int:
    """Run one subcommand; the exit status is 0 on success, and 1 on an error that the user can mend.

    Raises:
        SystemExit: as :func:`parse`.
    """
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        with handled(_end, "SIGTERM", "SIGHUP"):  # the latter of a terminal that closes
            status = int(args.run(args) or 0)
            print(end="", flush=True)
            return status
    except BrokenPipeError:  # the reader of our output, `head` for one, has seen enough
        return 0
    except Exception as error:
        print(f"rdpnet {args.command}: error: {_told(error)}", file=sys.stderr)
        if args.debug:
            traceback.print_exc()
        return 1
    except KeyboardInterrupt as interrupted:
        print(f"rdpnet {args.command}: interrupted", file=sys.stderr)
        told = interrupted.__cause__
        return int(told.code or 0) if isinstance(told, SystemExit) else 130
    finally:
        try:
            print(end="", flush=True)
        except OSError:  # Python would try again as it ends, and make that status 120
            drop_output(sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
