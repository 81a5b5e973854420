"""The training itself, and the command."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest
import timm
import torch
import torch.nn.functional as F
from small_runs import MODEL, parquet_folder, random_images, weights

from rdpnet_timm.cli import _Settings, main
from rdpnet_timm.train import RECIPES, Recipe, Run, train


@pytest.mark.slow
def test_a_tiny_set_is_learnt_by_heart(tmp_path):
    images = random_images(count=16, size=12, classes=4)
    recipe = Recipe(epochs=45, batch_size=16, learning_rate=0.05, flip=False)
    result = train(Run(MODEL, recipe), (images, images), tmp_path)
    losses = [record["train_loss"] for record in result.history]
    assert losses[-1] < 0.2 < 1.0 < losses[0]
    assert result.history[-1]["train_accuracy"] == 100
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == result.history


@pytest.mark.parametrize("goes_with_errors", [False, True])  # as in `2>&1 | head`
def test_a_reader_that_goes_does_not_end_the_training(tmp_path, goes_with_errors):
    data, out = parquet_folder(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "rdpnet_timm.cli", "train", data, "-o", str(out), "--recipe", "digits"]
    command += ["--epochs", "2", "--set", "batch_size=10", "warmup_epochs=0"]
    errors = subprocess.STDOUT if goes_with_errors else subprocess.PIPE
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    process.stdout.close()
    error = "" if goes_with_errors else process.stderr.read()
    assert process.wait() == 0 and error.startswith("" if goes_with_errors else "nobody reads the output"), error
    assert len((out / "log.jsonl").read_text().splitlines()) == 2 and (out / "weights.safetensors").exists()


def test_settings_given_twice_add_up(tmp_path, capsys):
    words = ["train", "digits", "-o", str(tmp_path / "out"), "--set", "epochs=2", "--set", "batch_size=0"]
    assert main([*words, "--model-args", "a=1", "--model-args", "b=2", "c=x"]) == 1
    assert "batch_size must be" in capsys.readouterr().err
    parsed = []
    parser = argparse.ArgumentParser()
    for name in ("--model-args", "--others"):
        parser.add_argument(name, nargs="*", default={}, action=_Settings)
    for words in (["--model-args", "a=1", "--model-args", "b=2", "c=x"], []):
        parsed.append(parser.parse_args(words))
    assert [each.model_args for each in parsed] == [{"a": 1, "b": 2, "c": "x"}, {}]
    with pytest.raises(SystemExit):
        parser.parse_args(["--model-args", "foo"])
    assert "expected NAME=VALUE, got 'foo'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "size"),
    [({}, 224), ({"img_size": 64}, 64), ({"img_size": [64, 64]}, 64)],
    ids=["the model's own", "a number", "a pair"],
)
def test_images_that_a_model_of_one_size_cannot_take_are_refused(tmp_path, arguments, size):
    run = Run("vit_tiny_patch16_224", RECIPES["demo"], model_args=tuple(arguments.items()))
    assert run.image_size == (size, size)
    with pytest.raises(ValueError, match=rf"images of {size}x{size} alone, and these have 12x12.*img_size=12"):
        train(run, (random_images(), random_images()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_shrunk_are_refused(tmp_path):
    images, recipe = random_images(size=16), Recipe(epochs=2, small_epochs=1)
    with pytest.raises(ValueError, match=r"to a side of 24 in its first epochs, and these are 16x16.*small_epochs=0"):
        train(Run(MODEL, recipe), (images, images), tmp_path)
    run = Run("vit_tiny_patch16_224", replace(recipe, small_size=8), model_args=(("img_size", 16),))
    with pytest.raises(ValueError, match=r"to a side of 8 .*vit_tiny_patch16_224 takes images of one size alone"):
        train(run, (images, images), tmp_path)


def test_images_are_shrunk_in_their_proportions(tmp_path):
    images, seen = random_images(count=8), []
    images = replace(images, pixels=images.pixels.repeat(1, 2, 4, 1))  # 24x48

    class Seeing(torch.nn.Linear):
        def forward(self, x):
            seen.append(tuple(x.shape[2:]))
            return super().forward(x.mean((2, 3)))

    model = Seeing(3, 4)
    model.pretrained_cfg = dict(mean=(0.0,) * 3, std=(1.0,) * 3)
    run = Run(MODEL, Recipe(epochs=2, small_epochs=1, small_size=16))
    with mock.patch.object(Run, "create_model", lambda *_: model):
        train(run, (images, images), tmp_path)
    assert set(seen) == {(16, 32), (24, 48)}


def test_a_model_that_gives_more_than_logits_is_refused(tmp_path):
    images = random_images()

    class Several(torch.nn.Linear):
        pretrained_cfg = dict(mean=(0.0,) * 3, std=(1.0,) * 3)

        def forward(self, x):
            return super().forward(x.mean((2, 3))), x

    refused = pytest.raises(ValueError, match=f"one tensor of logits of {MODEL}, got a tuple.*aux_logits")
    with mock.patch.object(Run, "create_model", lambda *_: Several(3, 4)), refused:
        train(Run(MODEL, Recipe(epochs=1)), (images, images), tmp_path)


def test_crops_beyond_the_image_are_refused(tmp_path):
    images = random_images(size=12)
    with pytest.raises(ValueError, match="crop_padding must be below the side of the images, 12"):
        train(Run(MODEL, Recipe(crop_padding=12)), (images, images), tmp_path)
    with pytest.raises(ValueError, match=r"cutout must be below the side of the images, 12, .* got 12 .--set cutout=3"):
        train(Run(MODEL, Recipe(cutout=12)), (images, images), tmp_path)


def test_a_diverging_run_says_so(tmp_path):
    images = random_images(count=16)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(Run(MODEL, Recipe(epochs=12, learning_rate=1e25, batch_size=4)), (images, images), tmp_path)


def test_an_output_that_cannot_be_written_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", parquet_folder(tmp_path), "--output", str(tmp_path / "file" / "folder")]) == 1
    assert "error: " in capsys.readouterr().err


def test_the_command_trains_resumes_and_evaluates(tmp_path, capsys):
    data, output = parquet_folder(tmp_path), tmp_path / "out"
    arguments = ["train", data, "--output", str(output), "--recipe", "short", "--epochs", "1"]
    arguments += ["--set", "batch_size=10", "small_epochs=0", "--model-args", "shuffle_groups=0"]
    assert main(arguments) == 0
    assert "images/s" in capsys.readouterr().out
    assert {path.name for path in output.iterdir()} == {
        "checkpoint.pt",
        "log.jsonl",
        "training.png",
        "weights.json",
        "weights.safetensors",
    }
    card = json.loads((output / "weights.json").read_text())
    assert card["model_args"] == {"shuffle_groups": 0}
    assert main(arguments) == 0  # nothing left to do, and the same result
    assert json.loads((output / "weights.json").read_text())["accuracy_deploy_form"] == card["accuracy_deploy_form"]
    capsys.readouterr()
    assert main(["evaluate", data, "--weights", str(output / "weights.safetensors")]) == 0
    expected = f"{card['accuracy_deploy_form']:.2f} %"
    assert (
        f"deploy form: {round(card['accuracy_deploy_form'] / 5)} of 20 correct, {expected}" in capsys.readouterr().out
    )
    assert main(["evaluate", data, "--weights", str(tmp_path / "nothing.safetensors")]) == 1
    assert "no checkpoint at" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--epochs", "0"), ("--epochs", "-1")])
def test_a_number_that_trains_nothing_is_refused_and_nothing_written(tmp_path, capsys, option, value):
    assert main(["train", "digits", "--output", str(tmp_path / "out"), option, value]) == 1
    assert f"{option.strip('-')} must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["train", "digits", "--threads", "0"], ["table", "3", "digits", "--jobs", "0"]])
def test_a_count_below_one_is_wrong_usage(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--output", str(tmp_path / "out")])
    assert f"argument {arguments[-2]}: expected a whole number from 1, got '0'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_on_a_cpu_keeps_freed_memory(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("rdpnet_timm.train.trainer.keep_freed_memory", lambda: calls.append(True))
    images = random_images(count=16)
    train(Run(MODEL, Recipe(epochs=1, batch_size=16)), (images, images), tmp_path)
    assert calls == [True]


def test_a_shuffle_before_a_dense_pointwise_convolution_is_a_relabelling_throughout_training():
    """Matched initialisations stay matched, so the shuffle changes neither what can be learnt nor how it is learnt.

    ``PW(shuffle(x)) = (PW P)(x)`` for the permutation ``P``; gradients, momentum and weight decay permute alike, and
    the initialisation's distribution does not know the order of channels.
    """
    torch.manual_seed(0)
    with_shuffle, without = (
        timm.create_model(MODEL, shuffle_groups=groups, num_classes=4).double() for groups in (2, 0)
    )

    def permuted(state):
        """Columns of every pointwise weight to where the shuffle takes them from."""
        state = dict(state)
        for name, weight in state.items():
            if ".point." in name and weight.ndim == 4:
                order = F.channel_shuffle(torch.arange(weight.shape[1]).reshape(1, -1, 1, 1), 2).flatten()
                state[name] = weight.index_select(1, order.argsort())
        return state

    start = weights(with_shuffle)
    without.load_state_dict(permuted(start))
    images = random_images(count=48, size=16)
    x, losses = images.pixels.permute(0, 3, 1, 2).double() / 255, []
    for model in (with_shuffle, without):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9, weight_decay=1e-2)
        losses.append([])
        for step in range(3):
            batch = slice(step * 16, step * 16 + 16)
            loss = F.cross_entropy(model(x[batch]), images.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-8) and losses[0][-1] != losses[0][0]
    expected, found = permuted(weights(with_shuffle)), weights(without)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f"{name} {text}"
        )
    moved = (
        (
            start["stages.2.5.point.branches.conv1x1_a.conv.weight"]
            - with_shuffle.state_dict()["stages.2.5.point.branches.conv1x1_a.conv.weight"]
        )
        .abs()
        .max()
    )
    assert moved > 1e-4
