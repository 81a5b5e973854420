"""A folder of pictures by class is trained on like any other data, scaled to the model's size."""

import json
import shutil
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from rdpnet_timm.checkpoint import load_model
from rdpnet_timm.cli import main
from rdpnet_timm.deploy.calibration import Preprocessing, pictures_in
from rdpnet_timm.predict import classifier
from rdpnet_timm.train import RECIPES, Run, data, evaluate, train
from rdpnet_timm.train.data import Images, better_elsewhere, normalized, read_data, read_test
from rdpnet_timm.train.release import release
from rdpnet_timm.weights.reading import read_checkpoint

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
    with pytest.raises(ValueError, match=r"different classes: 2 and 2, only in train: red; only in test: green$"):
        read_data(str(folder))
    (folder / "val").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"train/CLASS/\* and val/CLASS/\*"):
        read_data(str(folder))
    (folder / "test").mkdir()
    with pytest.raises(ValueError, match=r"no pictures in '.*test'"):
        read_data(str(folder))


def test_pictures_of_one_class_are_refused_before_anything_is_written(folder, tmp_path, capsys):
    for part in ("train", "val"):
        shutil.rmtree(folder / part / "red")
    assert main(["train", str(folder), "-o", str(tmp_path / "run"), "--recipe", "digits"]) == 1
    assert "of one class, 'blue'" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_class_without_pictures_is_refused_in_training_and_what_is_not_read_is_counted(folder):
    for part in ("train", "val"):
        (folder / part / "green").mkdir()
    with pytest.raises(ValueError, match=r"no pictures of green in '.*train'"):
        read_data(str(folder))
    Image.new("RGB", (40, 40), "green").save(folder / "train" / "green" / "0.png")
    for index in range(3):
        Image.new("RGB", (40, 40), "green").save(folder / "val" / "green" / f"{index}.GIF")
    with pytest.warns(
        UserWarning, match=r"^(1 files in .*train.*: 1 \.txt|4 files in .*val.*: 3 \.gif, 1 \.txt)$"
    ) as told:
        train, test = read_data(str(folder))
    assert len(told) == 2 and len(train) == 25 and len(test) == 12
    assert train.classes == test.classes == ("blue", "green", "red"), "a test may lack one"


@pytest.mark.parametrize(("name", "options"), [("val", {}), ("validation", {}), ("test", {"val_split": "test"})])
def test_timms_script_finds_the_test_pictures_where_we_do(folder, name, options):
    (folder / "val").rename(folder / name)
    split = options.get("val_split", "validation")  # the script's own default
    dataset = timm.data.create_dataset("", root=str(folder), split=split)
    assert len(dataset) == len(read_data(str(folder))[1]) == 12


def test_a_folder_of_pictures_without_classes_is_not_taken_for_the_test_part(folder):
    expected = read_data(str(folder))[1].digest()
    (folder / "test").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "test" / "0.png")
    assert read_data(str(folder))[1].digest() == expected
    (folder / "test" / "blue").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "test" / "blue" / "0.png")
    (folder / "test" / "red").mkdir()
    assert len(read_data(str(folder))[1]) == 1


def test_hidden_pictures_are_left_out(folder):
    hidden = folder / "train" / "red" / ".thumbs"
    hidden.mkdir()
    (hidden / "0.png").write_text("no picture")
    (folder / "train" / "red" / ".1.png").write_text("no picture")
    assert len(read_data(str(folder))[0]) == 24


def test_an_evaluation_reads_the_test_part_alone(folder):
    preprocessing = Preprocessing.of(timm.create_model("rdpnet_025_cifar"))
    (folder / "train" / "red" / "bad.png").write_text("no picture")
    expected = read_test(str(folder), preprocessing)
    shutil.rmtree(folder / "train")
    for before, name in (("val", "val"), ("val", "validation"), ("validation", "test")):
        (folder / before).rename(folder / name)
        found = read_test(str(folder), preprocessing)
        assert len(found) == 12 and found.digest() == expected.digest()
    assert len(read_test("digits", preprocessing)) == 360
    with pytest.raises(FileNotFoundError, match="no data in"):
        read_data(str(folder))


def as_predict_reads(model, path):
    """The normalised pixels that ``rdpnet predict`` gives a model for a picture."""
    asked = []
    with mock.patch("rdpnet_timm.predict.reparameterize", lambda model, inplace: Recorder(asked)):
        classifier(model)(path)
    return asked[0]


class Recorder(torch.nn.Linear):
    def __init__(self, asked):
        super().__init__(1, 1)
        self.asked = asked

    def forward(self, x):
        self.asked.append(x)
        return torch.zeros(len(x), 2)


@pytest.mark.parametrize(
    ("name", "size"), [("rdpnet_025", (64, 64)), ("rdpnet_025_cifar", (32, 32)), ("resnet10t", (40, 40))], ids=str
)
def test_predict_and_evaluate_see_what_was_trained_on(folder, tmp_path, name, size):
    for index in range(2, 12):
        for colour in COLOURS:
            next((folder / "train" / colour).rglob(f"{index}.png")).unlink()
    data = read_data(str(folder), size)
    run = Run(name, replace(RECIPES["digits"], batch_size=4, epochs=1, warmup_epochs=0, crop_padding=0))
    path = tmp_path / "run" / "weights.safetensors"
    card = release(train(run, data, tmp_path / "run"), run, data[1], path, "pictures")
    assert card["model_args"] == {}, "what the run was told"
    overlay = read_checkpoint(path).model_args.get("pretrained_cfg_overlay", {})
    assert (overlay == {}) == (name == "rdpnet_025_cifar"), "only what differs is written"
    unfinished, finished = read_checkpoint(tmp_path / "run" / "checkpoint.pt"), read_checkpoint(path)
    assert unfinished[1:] == finished[1:], "a run that goes on says the same of itself"
    model = load_model(path)
    assert torch.equal(read_test(str(folder), Preprocessing.of(model)).pixels, data[1].pixels)
    assert evaluate(model, data[1]).accuracy == card["accuracy_train_form"]
    pictures = [*pictures_in(folder / "val" / "blue"), *pictures_in(folder / "val" / "red")]
    mean, std = (model.pretrained_cfg[each] for each in ("mean", "std"))
    seen = normalized(data[1].pixels.permute(0, 3, 1, 2), mean, std)
    assert torch.allclose(torch.cat([as_predict_reads(model, picture) for picture in pictures]), seen, atol=1e-5)


def test_an_evaluation_of_other_weights_reads_as_predict_does(folder):
    model = timm.create_model("resnet10t")  # bilinear, and crops to 0.95
    model.pretrained_cfg["input_size"] = (3, 48, 48)
    found = read_test(str(folder), Preprocessing.of(model)).pixels.permute(0, 3, 1, 2)
    mean, std = (model.pretrained_cfg[each] for each in ("mean", "std"))
    for pixels, picture in zip(found, pictures_in(folder / "val" / "blue")):
        assert torch.allclose(normalized(pixels[None], mean, std), as_predict_reads(model, picture), atol=1e-5)


def test_more_than_fits_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(data, "memory", lambda: 2**20)
    with pytest.raises(ValueError, match=r"24 pictures of 224x224.*timm's train\.py.*--val-split test"):
        read_data(str(folder), (224, 224))


def test_large_or_many_pictures_are_said_to_be_better_off_with_timms_script():
    def hints(count, side):
        pixels = torch.empty(1, dtype=torch.uint8).expand(count, side, side, 3)
        return better_elsewhere(Images(pixels, torch.zeros(count), ("a",)))

    assert hints(50_000, 32) == []
    assert "224x224" in hints(10, 224)[0] and "--val-split test" in hints(10, 224)[0]
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
