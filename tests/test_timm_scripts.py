"""timm's public scripts, unedited, on a folder of digits; docs/timm.md says how to get them."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdpnet_timm.checkpoint import load_model

SCRIPTS = os.environ.get("RDPNET_TIMM_SCRIPTS")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("timm scripts"),
    pytest.mark.skipif(not SCRIPTS, reason="RDPNET_TIMM_SCRIPTS does not name a checkout of timm's repository"),
]

MODEL = ["--model", "rdpnet_025_cifar", "--num-classes", "10"]
LOADER = ["--device", "cpu", "--workers", "1", "--batch-size", "32"]
TRAIN = ["--opt", "sgd", "--lr", "0.1", "--warmup-epochs", "0", "--no-aug", "--log-interval", "1"]


def command(script, *arguments, launcher=()):
    return [sys.executable, *launcher, str(Path(SCRIPTS).resolve() / script), *map(str, arguments)]


def run(folder, script, *arguments, launcher=()):
    """Standard output and error of a script that must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        command(script, *arguments, launcher=launcher),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.returncode == 0, process.stdout[-5000:]
    return process.stdout


def result(output):
    return json.loads(output[output.index("--result\n") + len("--result\n") :])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """800 of scikit-learn's digits as 32x32 PNGs, 200 of them for validation."""
    datasets = pytest.importorskip("sklearn.datasets")
    root, digits = tmp_path_factory.mktemp("scripts"), datasets.load_digits()
    for index in range(800):
        target = root / "digits" / ("train" if index % 4 else "validation") / str(digits.target[index])
        target.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((digits.images[index] * 255 / 16).astype("uint8")).resize((32, 32))
        picture.convert("RGB").save(target / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def checkpoint(folder):
    """A training with an EMA and bfloat16 that was killed in its second epoch, resumed, and finished its third."""
    arguments = ["digits", *MODEL, *LOADER, *TRAIN, "--epochs", "3", "--model-ema", "--model-ema-decay", "0.9"]
    arguments += ["--amp", "--amp-dtype", "bfloat16", "--output", "output", "--experiment"]
    log = folder / "killed.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command("train.py", *arguments, "killed"), cwd=folder, stdout=stream, stderr=subprocess.STDOUT
        )
        while "Train: 1 [   2/" not in log.read_text():
            assert process.poll() is None, log.read_text()[-5000:]
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert "Train: 2" not in log.read_text()
    resumed = run(folder, "train.py", *arguments, "resumed", "--resume", "output/killed/last.pth.tar")
    assert "Train: 0" not in resumed
    assert sorted(epoch["epoch"] for epoch in result(resumed)) == [1, 2]  # train.py lists the best one first
    return folder / "output/resumed/last.pth.tar"


def accuracy_of(model, folder):
    """What validate.py must find, counted by hand: the pictures have the model's size already."""
    mean, std = (torch.tensor(model.pretrained_cfg[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    right = {"top1": 0, "top5": 0}
    files = sorted((folder / "digits" / "validation").glob("*/*.png"))
    for file in files:
        pixels = torch.from_numpy(np.asarray(Image.open(file))).permute(2, 0, 1) / 255
        with torch.no_grad():
            ranked = model.eval()(((pixels - mean) / std)[None])[0].argsort(descending=True).tolist()
        right["top1"] += int(file.parent.name) == ranked[0]
        right["top5"] += int(file.parent.name) in ranked[:5]
    return {name: round(100 * count / len(files), 4) for name, count in right.items()}


@pytest.mark.parametrize("weights", [[], ["--use-ema"]])
def test_validate_finds_the_same_accuracy_in_both_forms(folder, checkpoint, weights):
    def validate(*form):
        found = result(
            run(folder, "validate.py", "digits", *MODEL, *LOADER, "--checkpoint", checkpoint, *weights, *form)
        )
        return {name: found[name] for name in ("top1", "top5")}, found["param_count"]

    train_form, parameters = validate()
    assert train_form == accuracy_of(load_model(checkpoint, MODEL[1], use_ema=bool(weights)), folder)
    for form in (["--reparam"], ["--model-kwargs", "inference_mode=True"]):
        deploy_form, fewer = validate(*form)
        assert deploy_form == train_form
        assert fewer < parameters


def test_two_processes_train_with_torchrun_on_gloo(folder):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["digits", *MODEL, *LOADER, *TRAIN, "--epochs", "1", "--output", "output", "--experiment", "two"]
    output = run(folder, "train.py", *arguments, "--device-modules", "rdpnet_timm.ddp_on_cpu", launcher=launcher)
    assert "total 2" in output
    assert (folder / "output/two/last.pth.tar").exists()


@pytest.mark.parametrize("bench", ["infer", "train"])
def test_benchmark_measures_both_forms(folder, bench):
    arguments = ["--model", "rdpnet_025", "--device", "cpu", "--batch-size", "2", "--bench", bench]
    arguments += ["--num-warm-iter", "1", "--num-bench-iter", "10"]
    for form in ([], ["--reparam"]):
        assert result(run(folder, "benchmark.py", *arguments, *form))[f"{bench}_samples_per_sec"] > 0


def test_inference_writes_a_class_for_every_picture(folder, checkpoint):
    arguments = [
        *MODEL,
        *LOADER,
        "--checkpoint",
        checkpoint,
        "--results-dir",
        "inference",
        "--results-file",
        "found.csv",
    ]
    run(folder, "inference.py", "digits/validation", *arguments)
    rows = list(csv.reader((folder / "inference" / "found.csv").open()))
    assert len(rows) == 1 + 200


@pytest.mark.parametrize("form", [[], ["--reparam"]])
def test_onnx_export_agrees_with_torch_and_has_the_deploy_form_s_operators(folder, checkpoint, form):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    run(folder, "onnx_export.py", "model.onnx", *MODEL, "--checkpoint", checkpoint, "--check-forward", *form)
    operators = {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    assert ("Add" in operators) is not bool(form)
