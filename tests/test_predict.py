"""Pictures are classified as the model classifies them, named, drawn; what cannot be read is named in a line."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.utils import ModelEmaV3

from rdpnet_timm.checkpoint import save_model
from rdpnet_timm.cli import main
from rdpnet_timm.predict import Prediction, classifier, draw


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    paths = []
    for index, shape in enumerate([(40, 61, 3), (32, 32, 3), (300, 90), (20, 20, 4), (33, 50, 3)]):
        paths.append(tmp_path / f"picture {index}.png")
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    return paths


def test_shipped_weights_answer_with_their_classes_as_the_train_form_does(pictures):
    model = timm.create_model("rdpnet_025_cifar", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=model), is_training=False)
    found = map(classifier(model, top=10), pictures)
    names = model.pretrained_cfg["label_names"]
    for path, (shown, chances) in zip(pictures, found):
        with torch.no_grad():
            expected = model(transform(Image.open(path).convert("RGB"))[None])[0].softmax(0)
        assert shown == path and [chance for _, chance in chances] == sorted((c for _, c in chances), reverse=True)
        for name, chance in chances:
            assert chance == pytest.approx(expected[names.index(name)].item(), abs=1e-5)


@pytest.mark.parametrize("wrap", [ModelEmaV3, torch.nn.DataParallel, torch.compile])
def test_a_wrapped_model_answers_as_the_one_in_it(wrap, pictures):
    model = timm.create_model("rdpnet_025_cifar", pretrained=True)
    assert classifier(wrap(model))(pictures[0]) == classifier(model)(pictures[0])


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_a_model_of_another_precision_answers(dtype, pictures):
    model = timm.create_model("rdpnet_025_cifar", pretrained=True)
    found = classifier(model.to(dtype))(pictures[0]).chances
    assert next(model.parameters()).dtype == dtype
    for (name, chance), expected in zip(found, classifier(model.float())(pictures[0]).chances):
        assert (name, chance) == (expected[0], pytest.approx(expected[1], abs=1e-5)), "its weights were rounded again"


@pytest.mark.parametrize("kwargs", [{"num_classes": 0}, {"features_only": True}])
def test_what_is_no_classifier_is_refused(kwargs):
    with pytest.raises(ValueError, match="expected a classifier, got"):
        classifier(timm.create_model("rdpnet_025_cifar", **kwargs))


def test_the_command_prints_a_line_a_picture_and_draws_them(pictures, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["predict", *map(str, pictures), "--save", str(sheet), "--top", "2"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert captured.err == "" and len(lines) == 5
    classes = timm.get_pretrained_cfg("rdpnet_025_cifar").label_names
    for path, line in zip(pictures, lines):
        told = line.removeprefix(f"{path}: ").split(", ")
        assert len(told) == 2 and all(part.rpartition(" ")[0] in classes and part.endswith("%") for part in told), line
    drawn = Image.open(sheet)
    assert drawn.width > 3 * 224 and drawn.height > 2 * 224
    assert len(set(drawn.crop((8, 8, 100, 100)).getdata())) > 100, "the first picture is in its place"


def test_many_pictures_are_drawn_in_a_sheet_that_a_format_can_hold(pictures, tmp_path):
    draw([Prediction(pictures[3], [("cat", 0.9)])] * 300, tmp_path / "sheet.png", lines=1)
    assert max(Image.open(tmp_path / "sheet.png").size) < 6000, "WebP holds 16383 pixels, JPEG 65500"


def test_a_checkpoint_answers_with_its_own_classes_or_their_numbers(pictures, tmp_path, capsys):
    model = timm.create_model("rdpnet_025_cifar", num_classes=3, in_chans=1)
    for name, classes in (("named", ("left", "right", "none")), ("unnamed", None)):
        save_model(model, tmp_path / f"{name}.safetensors", "rdpnet_025_cifar", {}, classes)
        assert main(["predict", str(pictures[0]), "--weights", str(tmp_path / f"{name}.safetensors")]) == 0
        line = capsys.readouterr().out
        assert all(f" {word} " in line for word in classes or ("class 0", "class 1", "class 2")), line
    assert main(["predict", str(pictures[0]), "--model", "rdpnet_025_cifar.digits"]) == 0


def test_what_is_no_picture_is_named_in_a_line_and_the_others_are_answered(pictures, tmp_path, capsys):
    cut = tmp_path / "cut.png"
    cut.write_bytes(pictures[0].read_bytes()[:200])
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    for path, message in (
        (cut, f"cannot read the image '{cut}'"),
        (text, f"cannot read the image '{text}'"),
        (tmp_path / "absent.png", "no picture at"),
    ):
        sheet = tmp_path / "sheet.png"
        assert main(["predict", str(pictures[0]), str(path), str(pictures[1]), "--save", str(sheet)]) == 1
        captured = capsys.readouterr()
        assert message in captured.err and len(captured.err.splitlines()) == 1
        assert [line.partition(": ")[0] for line in captured.out.splitlines()] == [str(each) for each in pictures[:2]]
        sheet.unlink()
        assert main(["predict", str(path), "--save", str(sheet)]) == 1 and not sheet.exists()
        capsys.readouterr()


def test_answers_are_printed_as_they_come(pictures, monkeypatch, capsys):
    printed = []

    def classifier(model, top):
        return lambda path: printed.append(capsys.readouterr().out) or path

    monkeypatch.setattr("rdpnet_timm.predict.classifier", classifier)
    assert main(["predict", *map(str, pictures[:2])]) == 0
    assert printed == ["", f"{pictures[0]}\n"]


def test_a_folder_stands_for_its_pictures_without_the_hidden_ones(pictures, tmp_path, capsys):
    (tmp_path / ".thumbs").mkdir()
    for hidden in (".thumbs/small.png", ".hidden.png"):
        (tmp_path / hidden).write_bytes(pictures[0].read_bytes())
    (tmp_path / "folder.png").mkdir()
    assert main(["predict", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(path) for path in pictures]
    assert main(["predict", str(tmp_path / "folder.png")]) == 1
    assert "no pictures in the folder" in capsys.readouterr().err


def test_what_cannot_come_to_an_end_is_refused_before_the_first_answer(pictures, tmp_path, capsys):
    for options, message in (
        (["--model", "rdpnet_100"], "no pretrained weights"),
        (["--weights", str(tmp_path / "absent.pth")], f"no checkpoint at '{tmp_path / 'absent.pth'}'"),
        (["--save", str(tmp_path / "sheet.xyz")], "sheet.xyz': expected a suffix such as .png"),
        (["--save", str(tmp_path / "sheet")], "sheet': expected a suffix such as .png"),
        (["--save", str(tmp_path / "." / pictures[0].name)], "picture 0.png' is one of the pictures, and would be"),
        (["--save", str(tmp_path / "absent" / "sheet.png")], f"there is no folder '{tmp_path / 'absent'}'"),
    ):
        assert main(["predict", str(pictures[0]), *options]) == 1
        captured = capsys.readouterr()
        assert message in captured.err and len(captured.err.splitlines()) == 1 and not captured.out
    assert not (tmp_path / "sheet").exists()
    before = pictures[0].read_bytes()
    with pytest.raises(ValueError, match="is one of the pictures"):
        draw([Prediction(pictures[0], [("cat", 1.0)])], pictures[0])
    assert pictures[0].read_bytes() == before
