"""A folder of pictures by class is trained on like any other data, scaled to the model's size."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rdpnet_timm.cli import main
from rdpnet_timm.train import data
from rdpnet_timm.train.data import Images, better_elsewhere, read_data

COLOURS = {"blue": (30, 60, 220), "red": (220, 40, 30)}


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 6)):
        for name, colour in COLOURS.items():
            (tmp_path / "pictures" / part / name / "deeper").mkdir(parents=True)
            for index in range(count):
                height, width = random.integers(20, 90, 2)
                noise = random.integers(-30, 30, (height, width, 3)) + colour
                where = tmp_path / "pictures" / part / name / ("deeper" if index % 2 else ".")
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(where / f"{index}.png")
        (tmp_path / "pictures" / part / "blue" / "notes.txt").write_text("no picture")
        (tmp_path / "pictures" / part / ".cache").mkdir()
    return tmp_path / "pictures"


def test_pictures_of_any_size_are_read_by_class_and_scaled(folder):
    train, test = read_data(str(folder), (24, 40))
    assert train.classes == test.classes == ("blue", "red")
    assert train.pixels.shape == (24, 24, 40, 3) and test.pixels.shape == (12, 24, 40, 3)
    for images in (train, test):
        for pixels, label in zip(images.pixels, images.labels):
            mean = pixels.double().mean((0, 1))
            assert (mean.argmax() == 0) == (images.classes[label] == "red"), "labels are those of the folders"
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 255  # what a crop to the middle keeps
    for part in ("train", "val"):
        Image.fromarray(wide).save(folder / part / "blue" / "!first.png")
    assert read_data(str(folder), (10, 10))[0].pixels[0].min() == 255


def test_what_is_wrong_with_a_folder_is_said(folder):
    (folder / "train" / "red" / "bad.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"cannot read the image '.*bad\.png'"):
        read_data(str(folder))
    (folder / "train" / "red" / "bad.png").unlink()
    (folder / "val" / "red").rename(folder / "val" / "green")
    with pytest.raises(ValueError, match="different classes"):
        read_data(str(folder))
    (folder / "val").rename(folder / "validation")
    with pytest.raises(FileNotFoundError, match=r"train/CLASS/\* and test/CLASS/\*"):
        read_data(str(folder))
    (folder / "test").mkdir()
    with pytest.raises(ValueError, match=r"no pictures in '.*test'"):
        read_data(str(folder))


def test_more_than_fits_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(data, "memory", lambda: 2**20)
    with pytest.raises(ValueError, match=r"24 pictures of 224x224.*timm's train\.py"):
        read_data(str(folder), (224, 224))


def test_large_or_many_pictures_are_said_to_be_better_off_with_timms_script():
    def hints(count, side):
        pixels = torch.empty(1, dtype=torch.uint8).expand(count, side, side, 3)
        return better_elsewhere(Images(pixels, torch.zeros(count), ("a",)))

    assert hints(50_000, 32) == []
    assert "224x224" in hints(10, 224)[0] and "train.py" in hints(10, 224)[0]
    assert "GiB" in hints(500_000, 32)[0]


@pytest.mark.slow
def test_the_commands_train_on_a_folder_evaluate_and_predict(folder, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--recipe", "digits", "--epochs", "2", "--set", "batch_size=8", "warmup_epochs=0"]
    assert main(["train", str(folder), "-o", str(out), *options]) == 0, capsys.readouterr().err
    card = json.loads((out / "weights.json").read_text())
    assert card["classes"] == ["blue", "red"] and card["training_images"] == 24 and card["test_images"] == 12
    capsys.readouterr()
    weights = ["--weights", str(out / "weights.safetensors")]
    assert main(["evaluate", str(folder), *weights]) == 0
    assert f"of 12 correct, {card['accuracy_train_form']:.2f} %" in capsys.readouterr().out
    picture = next((folder / "val" / "red").glob("*.png"))
    assert main(["predict", str(picture), *weights]) == 0
    assert "red " in capsys.readouterr().out
