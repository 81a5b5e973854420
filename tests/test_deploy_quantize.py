"""The quantisers of files: what they round weights to, and what they need of the process."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from rdpnet_timm.deploy.bias import correct_bias
from rdpnet_timm.deploy.formats import known_format
from rdpnet_timm.deploy.quantize import QUANTIZERS, weight_steps

pytest.importorskip("onnxruntime")
pytest.importorskip("nncf")


@pytest.mark.parametrize("reduce_range", [False, True], ids=["8 bits", "7 bits"])
@pytest.mark.parametrize("format_name", ["onnx", "openvino"])
def test_corrected_biases_take_back_the_mean_error_that_the_runtime_makes(format_name, reduce_range, tmp_path):
    conv = nn.Conv2d(64, 32, 1).eval().requires_grad_(False)
    images = torch.rand(32, 64, 8, 8) + 1  # of a mean far from zero
    kind = known_format(format_name)

    def mean_error(model):
        path = tmp_path / f"int8{kind.suffixes[0]}"
        QUANTIZERS[format_name](model, images[:1], path, images.numpy(), False, reduce_range)
        run = kind.load(path, 1, kind.options[0])
        found = np.concatenate([run(image[None]) for image in images.numpy()])
        return np.abs((found - conv(images).numpy()).mean((0, 2, 3))).mean()

    before = mean_error(conv)
    after = mean_error(correct_bias(conv, images, steps=weight_steps(format_name, reduce_range)))
    assert after < before / 4, (before, after)


@pytest.mark.slow
def test_openvinos_quantiser_may_be_the_first_to_use_it_in_a_process(tmp_path):
    code = """
        import sys
        from pathlib import Path
        import numpy as np, torch
        from rdpnet_timm.deploy.formats import to_onnx
        from rdpnet_timm.deploy.quantize import quantize_openvino
        folder = Path(sys.argv[1])
        to_onnx(torch.nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 8, 8), folder / "float.onnx", False)
        quantize_openvino(folder / "float.onnx", folder / "int8.xml", np.random.rand(2, 3, 8, 8).astype(np.float32))
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert (tmp_path / "int8.bin").exists()
