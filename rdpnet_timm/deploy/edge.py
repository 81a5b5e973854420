"""The runtimes of phones and boards: ExecuTorch, LiteRT and ncnn. How a model is written for each, and run here.

What they need lies in an extra each, not in ``deploy``: together they are half a gigabyte, and LiteRT's converter wants
older packages than the rest. All three take one image at a time.
"""

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..extras import quiet, require

__all__ = [
    "NCNN_FLOAT32",
    "Options",
    "Runner",
    "load_executorch",
    "load_litert",
    "load_ncnn",
    "quantize_executorch",
    "quantize_litert",
    "to_executorch",
    "to_litert",
    "to_ncnn",
]

SMALLEST_SCALE = 2**-16  # of weights in ExecuTorch; a bias in its units and those of an activation must fit 32 bits

Runner = Callable[[np.ndarray], np.ndarray]
Options = Mapping[str, Any]

# By default ncnn stores activations and weights in half precision, which costs two digits: 4e-4 of the largest logit
# instead of 8e-6. Its other fast paths (Winograd, sgemm, packing) cost none.
NCNN_FLOAT32 = {"use_fp16_storage": False, "use_fp16_packed": False, "use_fp16_arithmetic": False}


def to_executorch(model: nn.Module, example: Tensor, path: Path, dynamic_batch: bool = False) -> None:
    """Write ExecuTorch's ``.pte``, everything that XNNPACK computes handed to XNNPACK."""
    require("executorch.exir", "export to ExecuTorch")
    with quiet():
        _write_program(torch.export.export(model, (example,)), path)


def quantize_executorch(model: nn.Module, example: Tensor, path: Path, images: np.ndarray) -> None:
    """Write an INT8 ``.pte`` by XNNPACK's quantiser: weights by channel, activations by tensor.

    Args:
        model: the float model.
        example: one image.
        path: the file.
        images: calibration images ``(N, C, H, W)`` as the model takes them.
    """
    purpose = "INT8 in ExecuTorch"
    quantizers = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", purpose)
    pt2e = require("torchao.quantization.pt2e.quantize_pt2e", purpose, "executorch")
    observers = require("torchao.quantization.pt2e", purpose, "executorch")
    with quiet(), torch.no_grad():
        config = quantizers.get_symmetric_quantization_config(is_per_channel=True)
        # its own smallest scale, 2**-12, leaves small rows few steps, those of a kernel for pixels of 0 to 255 first
        observer = observers.PerChannelMinMaxObserver.with_args(eps=SMALLEST_SCALE)
        config = replace(config, weight=replace(config.weight, observer_or_fake_quant_ctr=observer))
        quantizer = quantizers.XNNPACKQuantizer().set_global(config)
        prepared = pt2e.prepare_pt2e(torch.export.export(model, (example,)).module(), quantizer)
        for image in torch.from_numpy(images).split(1):
            prepared(image)
        _write_program(torch.export.export(pt2e.convert_pt2e(prepared), (example,)), path)


def _write_program(program: Any, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


_executorch_threads = 0  # of the process's one pool; 0 before the first program


def load_executorch(path: Path, threads: int, options: Options) -> Runner:
    """A function from one image ``(1, C, H, W)`` to its logits.

    Raises:
        RuntimeError: another number of threads than that of the first program in this process: its pool is one, and
            whatever was loaded before keeps a pointer to it.
    """
    global _executorch_threads
    runtime = require("executorch.runtime", "running ExecuTorch programs").Runtime.get()
    from executorch.extension.pybindings import portable_lib

    if _executorch_threads not in (0, threads):
        raise RuntimeError(
            f"ExecuTorch has {_executorch_threads} threads in this process, and they cannot become {threads}: run "
            "each number of threads in a process of its own"
        )
    if not _executorch_threads:
        portable_lib._unsafe_reset_threadpool(threads)
        _executorch_threads = threads
    method = runtime.load_program(path).load_method("forward")
    return lambda images: method.execute([torch.from_numpy(images)])[0].numpy()


def to_litert(model: nn.Module, example: Tensor, path: Path, dynamic_batch: bool = False) -> None:
    """Write LiteRT's ``.tflite``; its input is ``(1, C, H, W)`` as everywhere here, and it transposes itself."""
    litert = require("litert_torch", "export to LiteRT")
    with quiet():
        litert.convert(model, (example,)).export(str(path))


def quantize_litert(model: nn.Module, example: Tensor, path: Path, images: np.ndarray) -> None:
    """Write an INT8 ``.tflite``: weights by channel, activations by tensor, images and logits in float32.

    Args:
        model: the float model.
        example: one image.
        path: the file.
        images: calibration images ``(N, C, H, W)`` as the model takes them.
    """
    require("ai_edge_quantizer", "INT8 in LiteRT")
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    recipes = recipe_manager.RecipeManager()
    recipes.load_quantization_recipe(recipe.static_wi8_ai8())
    for end in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        recipes.add_quantization_config(".*", end, algorithm_key=recipe.AlgorithmName.NO_QUANTIZE)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float.tflite"
        to_litert(model, example, source)
        with quiet():
            ((key, signature),) = Interpreter(str(source)).get_signature_list().items()
            name = signature["inputs"][0]
            made = quantizer.Quantizer(str(source), recipes.get_quantization_recipe())
            # its own choice, a moving average over images, cuts off what most images have
            ranges = calibrator.Calibrator(source.read_bytes(), num_threads=1, qsv_update_func=min_max_update)
            ranges.calibrate({key: [{name: image} for image in images[:, None]]}, recipes)
            made.quantize(ranges.get_model_qsvs(), enable_progress_report=False).export_model(str(path), overwrite=True)


def load_litert(path: Path, threads: int, options: Options) -> Runner:
    """A function from one image ``(1, C, H, W)`` to its logits."""
    interpreters = require("ai_edge_litert.interpreter", "running LiteRT models")
    interpreter = interpreters.Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (image,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(image["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(logits["index"])

    return run


def to_ncnn(model: nn.Module, example: Tensor, path: Path, dynamic_batch: bool = False) -> None:
    """Write ncnn's ``.ncnn.param`` and ``.ncnn.bin`` with float32 weights, by way of pnnx.

    Raises:
        RuntimeError: pnnx cannot convert the model; the message is its own.
    """
    pnnx = require("pnnx", "export to ncnn")
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
        traced = Path(folder) / "model.pt"
        torch.jit.save(torch.jit.trace(model, example), traced)
        command = [pnnx.EXEC_PATH, str(traced), f"inputshape={list(example.shape)}f32".replace(" ", ""), "fp16=0"]
        files = {"ncnnparam": path, "ncnnbin": _weights_of(path)}
        command += [f"{key}={file.resolve()}" for key, file in files.items()]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or not all(file.is_file() for file in files.values()):
        raise RuntimeError(f"pnnx cannot convert the model for ncnn: {(done.stdout.strip() or '?').splitlines()[-1]}")


def _weights_of(path: Path) -> Path:
    return path.with_suffix(".bin")


def load_ncnn(path: Path, threads: int, options: Options) -> Runner:
    """A function from one image ``(1, C, H, W)`` to its logits.

    Raises:
        RuntimeError: ncnn has no layer for something in the model.
    """
    ncnn = require("ncnn", "running ncnn models")
    net = ncnn.Net()
    net.opt.num_threads = threads
    for name, value in options.items():
        setattr(net.opt, name, value)
    if net.load_param(str(path)) or net.load_model(str(_weights_of(path))):
        raise RuntimeError(f"ncnn cannot load '{path.name}': it has no layer for something in this model")

    def run(images: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(images[0]))
        return np.array(extractor.extract("out0")[1])[None]

    return run
