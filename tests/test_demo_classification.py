"""The demo: what it shows is what is so."""

from dataclasses import replace

import pytest
import timm

from rdpnet_timm.cli import main
from rdpnet_timm.demo import classification
from rdpnet_timm.train import RECIPES, read_data
from rdpnet_timm.weights.reading import read_checkpoint


@pytest.mark.slow
def test_the_classification_part_trains_compares_and_draws(tmp_path, capsys):
    result, found = classification.run(tmp_path, replace(RECIPES["demo"], epochs=0.05, ema=0.0), rounds=2)
    assert found.correct[0] == result.train_form.correct and found.total == 360
    printed = " ".join(capsys.readouterr().out.split())  # lines are wrapped to the terminal
    assert f"correct of {found.total}" in printed and "outputs differ by at most" in printed
    assert {path.name for path in tmp_path.iterdir()} == {
        "digits_deploy_form.safetensors",
        "digits_train_form.safetensors",
        "predictions.png",
        "training.png",
    }


def test_the_two_forms_of_shipped_weights_agree_on_every_picture(tmp_path):
    _, test = read_data("digits")
    test = replace(test, pixels=test.pixels[:40], labels=test.labels[:40])
    model = timm.create_model("rdpnet_025_cifar.digits", pretrained=True)
    found = classification.compare(model, test, tmp_path, rounds=2)
    assert found.disagreements == 0 and found.correct[0] == found.correct[1] > 30
    assert found.verification.relative < 1e-5
    assert found.parameters[0] == sum(parameter.numel() for parameter in model.parameters()) > found.parameters[1]
    assert found.bytes[0] > found.bytes[1] > 4 * found.parameters[1]
    for file in tmp_path.glob("*.safetensors"):
        assert read_checkpoint(file).classes == list(test.classes)


def test_an_output_that_cannot_be_written_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / "file")]) == 1
    assert "error: " in capsys.readouterr().err
