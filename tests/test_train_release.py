"""What a finished run leaves: weights, their card, pictures."""

import hashlib
import json
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from small_runs import MODEL, SHORT, random_images

from rdpnet_timm import reparameterize
from rdpnet_timm.checkpoint import save_model
from rdpnet_timm.train import Images, Recipe, Run, evaluate, train
from rdpnet_timm.train.plots import plot_predictions
from rdpnet_timm.train.release import release


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    data = random_images(count=50), random_images(count=10, seed=1)
    return data, train(Run(MODEL, SHORT, seed=3), data, tmp_path_factory.mktemp("whole"))


def test_a_released_file_has_the_accuracy_and_the_sum_on_its_card(finished, tmp_path):
    data, whole = finished
    path = tmp_path / "weights.safetensors"
    card = release(whole, Run(MODEL, SHORT, seed=3), data[1], path, "noise")
    assert card == json.loads((tmp_path / "weights.json").read_text())
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["recipe"]["epochs"] == card["epochs"] == 3 and card["seed"] == 3 and card["data"] == "noise"
    for form, inference_mode in (("train", False), ("deploy", True)):
        model = timm.create_model(
            MODEL,
            pretrained=True,
            pretrained_cfg_overlay=dict(file=str(path), num_classes=4),
            num_classes=4,
            inference_mode=inference_mode,
        )
        assert evaluate(model, data[1]).accuracy == card[f"accuracy_{form}_form"]


def test_weights_beyond_half_precision_are_released_in_float32(finished, tmp_path):
    from safetensors.torch import load_file

    data, whole = finished
    model = timm.create_model(MODEL, num_classes=4)
    model.load_state_dict(whole.model.state_dict())
    model.stem.branches["conv1x1"].norm.running_var.fill_(1e6)
    forms = evaluate(model, data[1]), evaluate(reparameterize(model), data[1])
    result = replace(whole, model=model, train_form=forms[0], deploy_form=forms[1])
    assert release(result, Run(MODEL, SHORT), data[1], tmp_path / "a.safetensors", "noise")["precision"] == "float32"
    assert all(tensor.dtype != torch.float16 for tensor in load_file(tmp_path / "a.safetensors").values())


def test_the_card_names_the_weights_that_a_run_began_with_though_the_file_is_another_by_then(tmp_path):
    images, begun_with = random_images(count=16), tmp_path / "w.safetensors"
    save_model(timm.create_model(MODEL), begun_with, MODEL, {})
    expected = hashlib.sha256(begun_with.read_bytes()).hexdigest()
    run = Run(MODEL, Recipe(epochs=1, batch_size=16), weights=str(begun_with))
    result = train(run, (images, images), tmp_path / "run", lambda *_: begun_with.unlink())
    card = release(result, run, images, tmp_path / "run" / "weights.safetensors", "noise")
    assert card["weights"] == f"w.safetensors, SHA-256 {expected}"


@pytest.mark.parametrize(("right", "wrong"), [(30, 0), (21, 9), (5, 0), (5, 2), (0, 30), (0, 1), (1, 0)])
def test_predictions_are_drawn_once_each_and_cells_without_one_stay_empty(tmp_path, monkeypatch, right, wrong):
    from matplotlib.figure import Figure

    class First(torch.nn.Module):
        """Takes every picture for one of the first class."""

        pretrained_cfg = dict(mean=(0.0,) * 3, std=(1.0,) * 3)

        def forward(self, x):
            return torch.tensor([[9.0, 0.0]]).repeat(len(x), 1)

    pixels = torch.arange(right + wrong, dtype=torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 4, 4, 3)
    images = Images(pixels, torch.tensor([0] * right + [1] * wrong), ("$a^$", "b"))
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    plot_predictions(First(), images, tmp_path / "predictions.png", "a name $x^$ is no formula")
    axes = figures[0].axes
    drawn = [int(axis.images[0].get_array().flat[0]) for axis in axes if axis.images]
    mistakes = min(wrong, 3)
    assert len(axes) == 24 and len(set(drawn)) == len(drawn) == min(right, 24 - mistakes) + mistakes
    assert sum(index >= right for index in drawn) == mistakes
    assert all(axis.axison == bool(axis.images) for axis in axes)
    assert Image.open(tmp_path / "predictions.png").format == "PNG"
