"""The trainer: its data, its recipes, its runs."""

import argparse
import hashlib
import io
import json
import pickle
import signal
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from rdpnet_timm import reparameterize
from rdpnet_timm.checkpoint import save_model
from rdpnet_timm.cli import _Settings, main
from rdpnet_timm.train import RECIPES, Images, Recipe, Run, evaluate, read_data, train
from rdpnet_timm.train.data import augmented_batch, mixed_batch, normalized
from rdpnet_timm.train.plots import plot_predictions
from rdpnet_timm.train.release import release
from rdpnet_timm.train.tables import TABLES, format_table, run_table

MODEL = "rdpnet_025_cifar"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in a fixed order, and no fight over cores with other tests
    yield
    torch.set_num_threads(threads)


def random_images(count=48, size=12, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    pixels = torch.from_numpy(generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, classes, count))
    return Images(pixels, labels, tuple(f"class {index}" for index in range(classes)))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# recipes


def test_the_papers_rate_is_torchs_cosine_annealing():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)
    for epoch in range(200):
        assert RECIPES["paper"].learning_rate_at(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_the_papers_recipe_is_the_papers():
    paper = RECIPES["paper"]
    stated = (paper.epochs, paper.batch_size, paper.learning_rate, paper.momentum, paper.weight_decay)
    assert stated == (200, 128, 0.1, 0.9, 1e-4) and paper.flip
    added = (paper.crop_padding, paper.cutout, paper.mixup, paper.ema, paper.label_smoothing, paper.warmup_epochs)
    assert not any(added) and not paper.nesterov


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0), (1, 0.1), (2, 0.2), (4, 0.2), (5, 0.2), (7.5, 0.1), (10, 0), (12, 0)]
)
def test_the_rate_rises_stays_and_falls_linearly(epoch, expected):
    recipe = Recipe(epochs=10, learning_rate=0.2, warmup_epochs=2, cooldown=0.5)
    assert recipe.learning_rate_at(epoch) == pytest.approx(expected)


def test_settings_are_read_by_their_type():
    recipe = Recipe().with_settings(["batch_size=64", "ema=0.9", "nesterov=True", "cooldown=0.5"])
    assert recipe == replace(Recipe(), batch_size=64, ema=0.9, nesterov=True, cooldown=0.5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr=1", "no setting 'lr'; there are epochs"),
        ("ema=x", "ema=0.0"),
        ("epochs=None", "epochs=200"),
        ("batch_size=1.5", "batch_size=128"),
        ("nesterov=2", "nesterov=False"),
        ("epochs=-1", "epochs must be above 0, got -1"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_was_expected(setting, message):
    with pytest.raises(ValueError, match=message):
        Recipe().with_settings([setting])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(epochs=0),
        dict(epochs=-1),
        dict(epochs=float("nan")),
        dict(epochs=float("inf")),
        dict(batch_size=0),
        dict(learning_rate=-0.1),
        dict(momentum=1.0),
        dict(weight_decay=-1e-4),
        dict(cooldown=0.0),
        dict(label_smoothing=1.0),
        dict(crop_padding=-1),
        dict(ema=1.5),
        dict(small_size=0),
    ],
    ids=str,
)
def test_a_value_out_of_its_range_is_refused_with_the_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value}"):
        Recipe(**wrong)


# batches


def test_a_batch_without_augmentation_is_the_images_in_channels_last():
    images = random_images()
    batch = augmented_batch(images, torch.tensor([3, 1]), Recipe(flip=False), generator())
    assert torch.equal(batch, images.pixels[[3, 1]].permute(0, 3, 1, 2))
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_every_augmented_image_is_a_crop_of_the_padded_image_or_of_its_mirror_image():
    images, padding = random_images(count=4, size=8), 2
    padded = F.pad(images.pixels.permute(0, 3, 1, 2).double(), [padding] * 4, mode="reflect").byte()
    crops = [
        {
            crop.flip(2).numpy().tobytes() if flipped else crop.numpy().tobytes()
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for flipped in (False, True)
            for crop in [image[:, top : top + 8, left : left + 8]]
        }
        for image in padded
    ]
    indices = torch.arange(4).repeat(100)
    batch = augmented_batch(images, indices, Recipe(crop_padding=padding), generator())
    seen = [set() for _ in range(4)]
    for index, image in zip(indices.tolist(), batch):
        seen[index].add(image.contiguous().numpy().tobytes())
    assert all(each <= possible for each, possible in zip(seen, crops))
    assert all(len(each) > 35 for each in seen)  # of 50


def test_normalisation_is_torchvisions():
    from torchvision.transforms import v2

    pixels = random_images(count=3).pixels.permute(0, 3, 1, 2)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    expected = v2.functional.normalize(v2.functional.to_dtype(pixels, torch.float32, scale=True), mean, std)
    torch.testing.assert_close(normalized(pixels, mean, std), expected, rtol=1e-5, atol=1e-5)


def test_cutout_clears_a_square_of_its_size_wherever_that_lies_inside():
    x, _ = mixed_batch(torch.ones(200, 3, 16, 16), torch.zeros(200).long(), 2, Recipe(cutout=4), generator())
    sides = [((image[0] == 0).any(0).sum().item(), (image[0] == 0).any(1).sum().item()) for image in x]
    assert all(width <= 4 and height <= 4 for width, height in sides) and sides.count((4, 4)) > 80
    assert all((image == 0).sum() == 3 * width * height for image, (width, height) in zip(x, sides))


def test_mixup_mixes_images_and_labels_in_the_same_shares():
    images = torch.eye(6)[:, :, None, None].expand(-1, -1, 2, 2)  # image i has channel i alone
    mixed, targets = mixed_batch(images, torch.arange(6), 6, Recipe(mixup=1.0), generator())
    torch.testing.assert_close(mixed.mean((2, 3)), targets)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert ((targets > 0).sum(1) == 2).any()


# data


def test_the_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    training, test = read_data("digits")
    assert training.pixels.shape == (1437, 32, 32, 3) and test.pixels.shape == (360, 32, 32, 3)
    pixels = torch.cat([training.pixels, test.pixels])
    assert torch.equal(torch.cat([training.labels, test.labels]), torch.from_numpy(load_digits().target))
    small = F.avg_pool2d(pixels.permute(0, 3, 1, 2).double(), 4).mean(1) * 16 / 255
    assert np.corrcoef(small.flatten(), load_digits().images.reshape(-1))[0, 1] > 0.97


def write_parquet(path, images, names=None, broken=None):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for index, pixels in enumerate(images.pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(buffer, "PNG")
        rows.append(b"no image" if index == broken else buffer.getvalue())
    table = pa.table({"image": pa.array(rows, pa.binary()), "label": pa.array(images.labels.numpy())})
    if names is not None:
        table = table.replace_schema_metadata({"classes": names if isinstance(names, str) else ",".join(names)})
    pq.write_table(table, path)


def parquet_folder(folder, **kwargs):
    for part in ("train", "test"):
        write_parquet(folder / f"{part}.parquet", random_images(count=20), names=("a", "b", "c", "d"), **kwargs)
    return str(folder)


def test_parquets_are_read_as_written(tmp_path):
    training, _ = read_data(parquet_folder(tmp_path))
    expected = random_images(count=20)
    assert torch.equal(training.pixels, expected.pixels) and torch.equal(training.labels, expected.labels)
    assert training.classes == ("a", "b", "c", "d")


def test_names_as_a_json_list_are_those_names(tmp_path):
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", random_images(count=20), names='["a, b", "c", "d", "e"]')
    assert read_data(str(tmp_path))[0].classes == ("a, b", "c", "d", "e")


@pytest.mark.parametrize(("name", "classes"), [("cifar-10-batches-py", 10), ("cifar-100-python", 100)])
def test_torchvisions_folders_are_read_as_written(tmp_path, monkeypatch, name, classes):
    from torchvision import datasets

    dataset = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    (tmp_path / name).mkdir()
    images = random_images(count=10, size=32, classes=classes)
    rows = images.pixels.permute(0, 3, 1, 2).reshape(10, -1).numpy()  # as in the original files: planes of colour

    def write(file, content):
        (tmp_path / name / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((tmp_path / name / file).read_bytes()).hexdigest()]

    key = "labels" if classes == 10 else "fine_labels"
    label_names = [f"class {index}" for index in range(classes)]
    for file in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, file, [write(file, {"data": rows, key: images.labels.tolist()})])
    meta_key = dataset.meta["key"]
    file, md5 = write("meta", {meta_key: label_names})
    monkeypatch.setattr(dataset, "meta", {"filename": file, "key": meta_key, "md5": md5})
    training, test = read_data(str(tmp_path))
    assert torch.equal(training.pixels, images.pixels) and torch.equal(test.labels, images.labels)
    assert training.classes == tuple(label_names)

    (tmp_path / name / "train_list").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="incomplete or corrupt"):
        read_data(str(tmp_path))


def test_a_folder_with_several_sets_of_data_is_refused(tmp_path, monkeypatch):
    for folder, held in (
        ("both", ("cifar-10-batches-py", "cifar-100-python")),
        ("digits", ("the digits of scikit-learn", "folders of pictures")),
    ):
        for name in held if folder == "both" else ("train", "test"):
            (tmp_path / folder / name).mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=f"'{folder}' stands for {held[0]} and {held[1]}: give a folder with one"):
            read_data(folder)
    with pytest.raises(ValueError, match="no pictures in"):
        read_data("./digits")


def test_without_data_the_error_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder with cifar-10-batches-py.*download=True"):
        read_data(str(tmp_path / "nothing"))


def test_a_corrupt_image_is_named_by_its_row(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the image in row 7 of '.*train.parquet'"):
        read_data(parquet_folder(tmp_path, broken=7))


def test_cifar_100s_parquets_are_read_as_the_hub_has_them(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet_folder(tmp_path)
    features = {"fine_label": {"names": ["p", "q", "r", "s"]}, "coarse_label": {"names": ["t"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for part in ("train", "test"):
        table = pq.read_table(tmp_path / f"{part}.parquet")
        columns = {"img": table["image"], "fine_label": table["label"], "coarse_label": pa.array([0] * len(table))}
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), tmp_path / f"{part}.parquet")
    found = read_data(tmp_path)[0]
    assert found.classes == ("p", "q", "r", "s") and torch.equal(found.labels, random_images(count=20).labels)


def test_a_broken_parquet_is_an_error_that_names_it(tmp_path):
    parquet_folder(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"cannot read '.*test.parquet', expected a parquet file with columns"):
        read_data(str(tmp_path))


def test_images_of_several_sizes_are_refused(tmp_path):
    parquet_folder(tmp_path)
    images = random_images(count=2)
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_parquet(tmp_path / "small.parquet", replace(images, pixels=images.pixels[:, :8, :4]))
    tables = [pq.read_table(tmp_path / f"{name}.parquet") for name in ("train", "small")]
    pq.write_table(pa.concat_tables(tables), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"row 20 .* is 4x8, expected 12x12"):
        read_data(str(tmp_path))


def test_labels_without_a_class_are_refused(tmp_path):
    parquet_folder(tmp_path)
    write_parquet(tmp_path / "test.parquet", random_images(count=20), names=("a", "b"))
    with pytest.raises(ValueError, match="labels from 0 to 3, expected 0 to 1 for its 2 classes"):
        read_data(str(tmp_path))


def test_different_classes_in_training_and_test_are_refused(tmp_path):
    parquet_folder(tmp_path)
    write_parquet(tmp_path / "test.parquet", random_images(count=20), names=("a", "b", "c", "e"))
    with pytest.raises(ValueError, match=r"different classes: 4 and 4, only in train: d; only in test: e; parquet"):
        read_data(str(tmp_path))
    write_parquet(tmp_path / "test.parquet", random_images(count=20), names=("a", "b", "d", "c"))
    with pytest.raises(ValueError, match=r"in another order: a, b, c, d and a, b, d, c"):
        read_data(str(tmp_path))


def test_images_of_another_size_in_training_and_test_are_refused(tmp_path):
    parquet_folder(tmp_path)
    write_parquet(tmp_path / "test.parquet", random_images(count=20, size=16), names=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="different sizes, 12x12 and 16x16"):
        read_data(str(tmp_path))


def test_parquet_files_of_the_hugging_face_hub_are_read(tmp_path):
    import pyarrow.parquet as pq

    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", random_images(count=20, classes=3))
        table = pq.read_table(tmp_path / f"{part}.parquet")
        told = {"info": {"features": {"label": {"names": ["cat", "dog", "cow"], "_type": "ClassLabel"}}}}
        table = table.rename_columns(["img", "label"]).replace_schema_metadata({"huggingface": json.dumps(told)})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    train, test = read_data(str(tmp_path))
    assert train.classes == test.classes == ("cat", "dog", "cow")
    assert torch.equal(train.pixels, random_images(count=20, classes=3).pixels)


def test_a_class_count_that_differs_says_where_names_are_read_from(tmp_path):
    write_parquet(tmp_path / "train.parquet", random_images(count=20, classes=4))
    write_parquet(tmp_path / "test.parquet", random_images(count=20, classes=2))
    with pytest.raises(ValueError, match=r"different classes: 4 and 2, .*'classes' of their metadata"):
        read_data(str(tmp_path))


def test_a_parquet_without_rows_or_with_labels_that_are_no_numbers_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet_folder(tmp_path)
    table = pq.read_table(tmp_path / "test.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"no images in '.*test.parquet'"):
        read_data(str(tmp_path))
    for labels in (["cat"] * 20, [None] + [1] * 19, [0.5] * 20):
        pq.write_table(table.set_column(1, "label", pa.array(labels)), tmp_path / "test.parquet")
        with pytest.raises(ValueError, match=r"labels in '.*test.parquet' must be whole numbers"):
            read_data(str(tmp_path))


def test_a_digest_tells_pixels_labels_and_class_counts_apart():
    images = random_images()
    other_pixels = replace(images, pixels=images.pixels.clone())
    other_pixels.pixels[-1, -1, -1, -1] += 1
    other_labels = replace(images, labels=images.labels.roll(1))
    other_classes = replace(images, classes=(*images.classes, "e"))
    flat = replace(images, pixels=images.pixels.reshape(48, 6, 24, 3))
    found = [each.digest() for each in (images, other_pixels, other_labels, other_classes, flat)]
    assert len(set(found)) == 5 and replace(images, pixels=images.pixels.clone()).digest() == found[0]


# runs

SHORT = Recipe(
    epochs=3,
    batch_size=16,
    learning_rate=0.05,
    nesterov=True,
    decay_all=False,
    warmup_epochs=1,
    cooldown=0.5,
    label_smoothing=0.1,
    crop_padding=2,
    cutout=4,
    mixup=0.2,
    ema=0.9,
    small_size=8,
    small_epochs=1,
)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.mark.slow
def test_a_tiny_set_is_learnt_by_heart(tmp_path):
    images = random_images(count=16, size=12, classes=4)
    recipe = Recipe(epochs=45, batch_size=16, learning_rate=0.05, flip=False)
    result = train(Run(MODEL, recipe), (images, images), tmp_path)
    losses = [record["train_loss"] for record in result.history]
    assert losses[-1] < 0.2 < 1.0 < losses[0]
    assert result.history[-1]["train_accuracy"] == 100
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == result.history


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    data = random_images(count=50), random_images(count=10, seed=1)
    return data, train(Run(MODEL, SHORT, seed=3), data, tmp_path_factory.mktemp("whole"))


def stopped_by(number, run, step, folder):
    """Train in a process that gets a signal within a step, and stops after it; what it wrote to its standard error."""
    code = f"""
        import os, pickle, signal, sys
        import torch
        from rdpnet_timm.train import train
        torch.set_num_threads(1)
        signal.signal({number}, signal.SIG_DFL)  # nohup, under which tests may run, hands its ignoring on
        run, data, step, folder = pickle.load(sys.stdin.buffer)
        def stop(done, total, record):
            if done == step - 1:
                for _ in range(2):  # one order may come twice, from a terminal and from a parent
                    os.kill(os.getpid(), {number})
                    os.kill(os.getpid(), signal.SIGTERM)
            assert done <= step
        train(run, data, folder, stop)
    """
    data = random_images(count=50), random_images(count=10, seed=1)
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input=pickle.dumps((run, data, step, folder)),
        capture_output=True,
    )
    assert process.returncode == 128 + number, process.stderr.decode()
    return process.stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])  # of a terminal that closes
def test_a_run_stopped_within_an_epoch_ends_with_the_same_weights(number, uninterrupted, tmp_path):
    data, whole = uninterrupted
    assert "stopped at step 4 of 9" in stopped_by(number, Run(MODEL, SHORT, seed=3), 4, tmp_path)
    resumed = train(Run(MODEL, SHORT, seed=3), data, tmp_path)
    assert_same(weights(resumed.model), weights(whole.model))
    assert resumed.deploy_form == whole.deploy_form
    timed = ("seconds", "images_per_second")
    for record, expected in zip(resumed.history, whole.history):
        assert all(record[name] == expected[name] for name in expected if name not in timed)


def test_a_killed_run_goes_on_from_its_last_epoch_and_ends_with_the_same_weights(uninterrupted, tmp_path):
    data, whole = uninterrupted

    class Killed(BaseException):
        pass

    def kill(step, total, record):
        if step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path, kill)
    first = []
    resumed = train(Run(MODEL, SHORT, seed=3), data, tmp_path, lambda step, total, record: first.append(step))
    assert first[0] == 7  # after two epochs of three steps
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == resumed.history
    (tmp_path / "log.jsonl").unlink()
    assert train(Run(MODEL, SHORT, seed=3), data, tmp_path).history == resumed.history
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == resumed.history
    assert_same(weights(resumed.model), weights(whole.model))
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.tmp"))


def test_another_seed_gives_another_run(uninterrupted, tmp_path):
    data, whole = uninterrupted
    other = train(Run(MODEL, replace(SHORT, epochs=1), seed=4), data, tmp_path)
    assert other.history[0]["train_loss"] != whole.history[0]["train_loss"]


def test_a_report_may_end_the_program(uninterrupted, tmp_path):
    data, _ = uninterrupted
    with pytest.raises(SystemExit, match="enough"):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path, lambda step, *_: sys.exit("enough"))


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


def test_a_folder_of_another_run_is_refused(uninterrupted, tmp_path):
    data, _ = uninterrupted
    train(Run(MODEL, replace(SHORT, epochs=1 / 3), seed=3), data, tmp_path)
    with pytest.raises(ValueError, match="belongs to another run, with seed 3 rather than 5"):
        train(Run(MODEL, SHORT, seed=5), data, tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another run, with recipe.mixup 0.2 rather than 0.0; name"):
        train(Run(MODEL, replace(SHORT, mixup=0.0), seed=3), data, tmp_path)
    with pytest.raises(ValueError, match="belongs to another run, with amp False rather than True"):
        train(Run(MODEL, SHORT, seed=3, amp=True), data, tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another run, with training_data \w{64} rather than \w{64}; name"):
        train(Run(MODEL, SHORT, seed=3), (random_images(count=50, seed=9), data[1]), tmp_path)
    with pytest.raises(ValueError, match="belongs to another run, with test_data"):
        train(Run(MODEL, SHORT, seed=3), (data[0], random_images(count=10, seed=9)), tmp_path)
    for content in (b"cut off", b"(", b"\x80\x02X\x01\x00\x00\x00\xff."):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a checkpoint of this run .*; name another .* or move it away"):
            train(Run(MODEL, SHORT, seed=3), data, tmp_path)


def test_a_checkpoint_that_cannot_be_read_is_not_to_be_thrown_away(uninterrupted, tmp_path):
    data, _ = uninterrupted
    (tmp_path / "checkpoint.pt").mkdir()
    with pytest.raises(OSError, match=r"cannot read the checkpoint '.*checkpoint.pt'.*once it can be") as raised:
        train(Run(MODEL, SHORT, seed=3), data, tmp_path)
    assert "delete" not in str(raised.value) and "move it away" not in str(raised.value)


@pytest.mark.parametrize("kept", ["weights.safetensors", "weights.json"])
def test_the_result_of_a_run_whose_checkpoint_is_gone_is_not_overwritten(uninterrupted, tmp_path, kept):
    data, _ = uninterrupted
    (tmp_path / kept).write_bytes(b"of a finished run")
    with pytest.raises(ValueError, match=f"holds {kept} of a finished run, whose checkpoint.pt is gone"):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {kept}


@pytest.mark.parametrize("meeting", [1, 5, 9], ids=["before either has saved", "later", "at the end"])
def test_of_two_runs_that_begin_in_one_folder_one_is_refused_and_the_other_whole(uninterrupted, tmp_path, meeting):
    data, _ = uninterrupted
    others = []

    def begin_another(step, steps, record):
        if step == meeting:
            if meeting > 1:
                (tmp_path / "checkpoint.pt").unlink()  # as if both had saved their first in the same moment
            others.append(train(Run(MODEL, replace(SHORT, epochs=1), seed=5), data, tmp_path))

    with pytest.raises(ValueError, match=r"checkpoint.pt' belongs to another run, with seed 5 rather than 3"):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path, begin_another)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["description"]["seed"] == 5 and kept["history"] == others[0].history


def rewritten(path, change):
    """The checkpoint ``path``, written again after ``change``; its bytes."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path.read_bytes()


def test_a_checkpoint_of_another_version_is_refused_with_what_it_lacks_or_has_too_much(uninterrupted, tmp_path):
    data, _ = uninterrupted
    run, path = Run(MODEL, SHORT, seed=3), tmp_path / "checkpoint.pt"
    train(replace(run, recipe=replace(SHORT, epochs=1 / 3)), data, tmp_path)
    good = path.read_bytes()

    def without_data(content):
        for name in ("training_data", "test_data", "amp"):
            del content["description"][name]
        del content["begun"]

    for change, message in (
        (without_data, r"lacks description.training_data, description.test_data, description.amp, begun, so"),
        (
            lambda content: content["description"]["recipe"].update(lookahead=3),
            "settings lookahead, which this version",
        ),
        (lambda content: content.update(step="four"), "is not a checkpoint of this run"),
    ):
        path.write_bytes(good)
        kept = rewritten(path, change)
        with pytest.raises(ValueError, match=message):
            train(run, data, tmp_path)
        assert path.read_bytes() == kept

    # a setting that came later means nothing where it is off
    path.write_bytes(good)
    rewritten(path, lambda content: content["description"]["recipe"].pop("small_size"))
    with pytest.raises(ValueError, match=r"with recipe.small_size 24 rather than 8"):
        train(run, data, tmp_path)


def test_a_checkpoint_with_nan_is_refused(uninterrupted, tmp_path):
    data, _ = uninterrupted
    train(Run(MODEL, replace(SHORT, epochs=1 / 3), seed=3), data, tmp_path)
    rewritten(tmp_path / "checkpoint.pt", lambda content: content["ema"]["module.head.weight"][0].fill_(torch.nan))
    with pytest.raises(ValueError, match=r"has diverged, ema.module.head.weight is not finite; delete it"):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path)


def test_the_five_minute_save_keeps_the_last_good_checkpoint_from_nan(uninterrupted, tmp_path, monkeypatch):
    data, _ = uninterrupted
    created, kept, clock = [], [], [0.0]
    create = Run.create_model
    monkeypatch.setattr(Run, "create_model", lambda run, classes: created.append(create(run, classes)) or created[-1])
    monkeypatch.setattr("rdpnet_timm.train.trainer.time.perf_counter", lambda: clock[0])

    def break_weights(step, steps, record):
        clock[0] += 1
        if step == 3:
            kept.append((tmp_path / "checkpoint.pt").read_bytes())
            with torch.no_grad():
                created[-1].stem.branches["conv1x1"].norm.running_var.fill_(torch.nan)  # no loss shows it
            clock[0] += 301

    with pytest.raises(FloatingPointError, match=r"running_var is not finite in epoch 1.333: .* checkpoint is '"):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path, break_weights)
    assert [(tmp_path / "checkpoint.pt").read_bytes()] == kept


def test_a_resumed_run_with_dropout_ends_with_the_same_weights(tmp_path):
    data = random_images(count=50), random_images(count=10, seed=1)
    run = Run(MODEL, replace(SHORT, epochs=2), seed=3, model_args=(("drop_rate", 0.5),))
    whole = train(run, data, tmp_path / "whole")
    with pytest.raises(SystemExit):
        train(run, data, tmp_path / "stopped", lambda step, *_: step == 1 and signal.raise_signal(signal.SIGTERM))
    torch.rand(5)  # a caller's own use of the global generator
    assert_same(weights(train(run, data, tmp_path / "stopped").model), weights(whole.model))
    without = train(replace(run, model_args=(), recipe=replace(SHORT, epochs=1)), data, tmp_path / "without")
    assert without.history[0]["train_loss"] != whole.history[0]["train_loss"]


def test_the_time_before_a_stop_within_an_epoch_is_counted(tmp_path, monkeypatch):
    data = random_images(count=50), random_images(count=10, seed=1)
    run, clock = Run(MODEL, replace(SHORT, epochs=1)), [100.0]
    monkeypatch.setattr("rdpnet_timm.train.trainer.time.perf_counter", lambda: clock[0])

    def tick(step, steps, record):
        clock[0] += 10
        if step == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(run, data, tmp_path, tick)
    clock[0] += 5000  # while it is not running
    result = train(run, data, tmp_path, tick)
    (record,) = result.history
    # three steps of 16 images; one tick between the first and the second, none between the second's save and the third
    assert record["seconds"] == 10 and record["images_per_second"] == pytest.approx(48 / 10)


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


def test_the_size_of_the_images_is_read_where_the_run_says_it():
    assert Run(MODEL, RECIPES["demo"]).image_size == (32, 32)
    overlay = ("pretrained_cfg_overlay", {"input_size": (3, 40, 48)})
    assert Run(MODEL, RECIPES["demo"], model_args=(overlay,)).image_size == (40, 48)


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


def test_a_run_can_be_prolonged_while_its_rate_has_not_begun_to_fall(uninterrupted, tmp_path):
    data, _ = uninterrupted
    recipe = replace(SHORT, epochs=2, warmup_epochs=0, small_epochs=0)
    stopped_by(signal.SIGTERM, Run(MODEL, recipe), 3, tmp_path / "a")
    prolonged = train(Run(MODEL, replace(recipe, epochs=3)), data, tmp_path / "a")
    whole = train(Run(MODEL, replace(recipe, epochs=3)), data, tmp_path / "b")
    assert_same(weights(prolonged.model), weights(whole.model))
    with pytest.raises(ValueError, match="belongs to another run"):
        train(Run(MODEL, replace(recipe, epochs=4)), data, tmp_path / "a")


def test_a_diverging_run_says_so(tmp_path):
    images = random_images(count=16)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(Run(MODEL, Recipe(epochs=12, learning_rate=1e25, batch_size=4)), (images, images), tmp_path)


def test_an_output_that_cannot_be_written_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", parquet_folder(tmp_path), "--output", str(tmp_path / "file" / "folder")]) == 1
    assert "error: " in capsys.readouterr().err


def test_evaluation_counts_as_an_independent_loop_does(monkeypatch):
    torch.manual_seed(0)
    model, images = timm.create_model(MODEL, num_classes=4), random_images(count=30)
    monkeypatch.setattr("rdpnet_timm.train.evaluation.AT_ONCE", images.pixels[:7, ..., 0].numel())
    batches = []
    model.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    found = evaluate(model, images)
    assert batches == [7, 7, 7, 7, 2], "larger images must come in smaller batches"
    mean, std = (torch.tensor(model.pretrained_cfg[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        logits = model.eval()((images.pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    assert found.correct == sum(int(logit.argmax() == label) for logit, label in zip(logits, images.labels))
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, images.labels)), rel=1e-5)


def test_a_wrong_class_count_is_refused():
    with pytest.raises(ValueError, match="the model has 10 classes, the images have 4: class 0"):
        evaluate(timm.create_model(MODEL), random_images(count=2))


# results


def test_a_released_file_has_the_accuracy_and_the_sum_on_its_card(uninterrupted, tmp_path):
    data, whole = uninterrupted
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


def test_weights_beyond_half_precision_are_released_in_float32(uninterrupted, tmp_path):
    from safetensors.torch import load_file

    data, whole = uninterrupted
    model = timm.create_model(MODEL, num_classes=4)
    model.load_state_dict(whole.model.state_dict())
    model.stem.branches["conv1x1"].norm.running_var.fill_(1e6)
    forms = evaluate(model, data[1]), evaluate(reparameterize(model), data[1])
    result = replace(whole, model=model, train_form=forms[0], deploy_form=forms[1])
    assert release(result, Run(MODEL, SHORT), data[1], tmp_path / "a.safetensors", "noise")["precision"] == "float32"
    assert all(tensor.dtype != torch.float16 for tensor in load_file(tmp_path / "a.safetensors").values())


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


@pytest.mark.parametrize(("number", "rows"), [(3, 6), (8, 4)])
def test_a_table_has_a_model_for_every_row_of_the_papers(number, rows):
    from rdpnet_timm.measure.published import PAPER

    assert list(TABLES[number]) == [row for row in PAPER[f"table{number}"].rows if row.startswith("RDPNet")] or (
        set(TABLES[number]) == set(PAPER[f"table{number}"].rows)
    )
    assert len(TABLES[number]) == rows
    networks = [(network.model, tuple(network.model_args.items())) for network in TABLES[number].values()]
    assert len(set(networks)) == rows and all(model in timm.list_models("rdpnet_*_cifar") for model, _ in networks)


def card_of(row, number=3, **others):
    """What a finished run of a row leaves on its card, as far as a table needs it."""
    training, test = read_data("digits")
    return {
        **TABLES[number][row]._asdict(),
        "recipe": asdict(RECIPES["digits"]),
        "amp": False,
        "seed": 0,
        "training_data": training.digest(),
        "test_data": test.digest(),
        **others,
    }


def write_card(folder, row, seed, **card):
    name = "".join(character if character.isalnum() or character in ".-" else "_" for character in row)
    path = folder / name / f"seed{seed}" / "weights.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"seed": seed, **card}))
    return path


def test_a_table_gives_mean_and_spread_over_seeds_beside_the_papers_figure(tmp_path):
    for seed, accuracy in ((0, 90.0), (1, 91.0)):
        write_card(tmp_path, "RDPNet-0.25x", **card_of("RDPNet-0.25x", accuracy_before_rounding=accuracy, seed=seed))
    lines = format_table(3, tmp_path, "CIFAR-10 %").splitlines()
    assert lines[2] == "| RDPNet-0.25x | 89.7 | 90.50 | ±0.71 | 2 | +0.80 |"
    assert lines[3] == "| RDPNet-0.5x | 92.0 | not run |  | 0 |  |"


@pytest.mark.parametrize(
    "other",
    [
        dict(recipe=asdict(RECIPES["demo"])),
        dict(amp=True),
        dict(training_data="0" * 64),
        dict(test_data="0" * 64),
        dict(model="rdpnet_050_cifar"),
        dict(model_args={"shuffle_groups": 0}),
        dict(weights="rdpnet_025_cifar.c10"),
    ],
    ids=lambda other: next(iter(other)),
)
def test_runs_of_other_settings_or_data_make_no_table_and_are_not_taken_for_finished(tmp_path, other, monkeypatch):
    monkeypatch.setattr(
        "rdpnet_timm.train.tables.subprocess.Popen", lambda command: pytest.fail("nothing is to be run")
    )
    row = "RDPNet-0.25x"
    write_card(tmp_path, row, **card_of(row, accuracy_before_rounding=90.0))
    odd = write_card(tmp_path, row, **card_of(row, accuracy_before_rounding=91.0, **{"seed": 1, **other}))
    name = "recipe.epochs" if "recipe" in other else next(iter(other))
    with pytest.raises(ValueError, match=f"'{odd}' is the card of another run, with {name} .* rather than"):
        format_table(3, tmp_path, "CIFAR-10 %")
    run = Run(MODEL, RECIPES["digits"])
    with pytest.raises(ValueError, match=f"'{odd}' is the card of another run, with {name} .* rather than"):
        run_table(3, tmp_path, [1], ["digits", "--recipe", "digits"], run, read_data("digits"))


def test_a_card_that_is_none_is_not_taken_for_a_finished_run(tmp_path):
    path = write_card(tmp_path, "RDPNet-0.25x", 0, accuracy_before_rounding=90.0)
    for text in ("{}", '{"model": "rdpnet_', "[]", json.dumps({**card_of("RDPNet-0.25x"), "seed": 0})):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"'{path}' is not the card of a finished run .* delete this file"):
            run_table(3, tmp_path, [0], ["digits"], Run(MODEL, RECIPES["digits"]), read_data("digits"))
        with pytest.raises(ValueError, match=f"'{path}' is not the card of a finished run .* delete this file"):
            format_table(3, tmp_path)


def test_a_printed_table_stands_beside_the_papers_figures_for_its_data(tmp_path, capsys):
    row = "RDPNet-0.25x"
    classes = [str(number) for number in range(100)]
    write_card(tmp_path, row, **card_of(row, accuracy_before_rounding=60.0, classes=classes))
    assert main(["table", "3", "-o", str(tmp_path), "--print"]) == 0
    assert "| CIFAR-100 % | paper |" in (printed := capsys.readouterr().out)
    assert "| RDPNet-0.25x | 68.4 | 60.00 |  | 1 | -8.40 |" in printed
    assert main(["table", "3", "-o", str(tmp_path), "--print", "--column", "CIFAR-10 %"]) == 1
    assert "data of 100 classes belong beside 'CIFAR-100 %', not beside 'CIFAR-10 %'" in capsys.readouterr().err


class Finished:
    """A process that has come to its end."""

    def __init__(self, returncode):
        self.returncode = returncode

    def poll(self):
        return self.returncode


def test_a_signal_ends_a_tables_processes_and_begins_no_other(tmp_path, monkeypatch):
    """They are told to end, and waited for."""
    for error in (SystemExit(143), KeyboardInterrupt()):
        calls = []

        class Process(Finished):
            terminate, wait = (lambda self, name=name: calls.append(name) for name in ("terminate", "wait"))  # noqa: B023

        def sleep(seconds, error=error):
            raise error

        monkeypatch.setattr("rdpnet_timm.train.tables.subprocess.Popen", lambda command: Process(None))
        monkeypatch.setattr("rdpnet_timm.train.tables.time.sleep", sleep)
        with pytest.raises(type(error)):
            run_table(8, tmp_path, [0], ["digits"], Run(MODEL, RECIPES["digits"]), read_data("digits"))
        assert calls == ["terminate", "wait"]


def test_a_tables_runs_are_made_once_and_those_that_failed_are_named(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command):
        commands.append(command)
        if "pointwise_identity=True" in command:
            return Finished(1)
        row, seed = "no identity, shuffle (RDPNet)", int(command[command.index("--seed") + 1])
        if "shuffle_groups=0" in command:
            row = "no identity, no shuffle"
        card = write_card(tmp_path, row, **card_of(row, 8, seed=seed, accuracy_before_rounding=70.0))
        assert card.parent == Path(command[command.index("--output") + 1])
        return Finished(0)

    monkeypatch.setattr("rdpnet_timm.train.tables.subprocess.Popen", run)
    arguments = ["--output", str(tmp_path), "--column", "CIFAR-100 %", "--jobs", "2", "--seeds", "0", "1", "0"]
    assert main(["table", "8", *arguments, "--print"]) == 0 and not commands
    assert capsys.readouterr().out.count("not run") == 4
    with_data = ["table", "8", "digits", *arguments, "--recipe", "digits"]
    assert main(with_data) == 1
    printed = capsys.readouterr()
    assert "4 runs failed" in printed.err and "identity in PW, shuffle, seed 1: exit status 1" in printed.err
    assert "| no identity, shuffle (RDPNet) | 73.8 | 70.00 | ±0.00 | 2 | -3.80 |" in printed.out
    assert len(commands) == 8 and all(command[4:7] == ["digits", "--recipe", "digits"] for command in commands)
    assert main(with_data) == 1 and len(commands) == 12


def test_a_table_takes_its_data_behind_options_and_refuses_unknown_ones(tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(
        "rdpnet_timm.train.tables.subprocess.Popen", lambda command: commands.append(command) or Finished(1)
    )
    assert main(["table", "8", "--recipe", "demo", "digits", "-o", str(tmp_path)]) == 1
    assert len(commands) == 4 and "| CIFAR-100 % | paper |" in capsys.readouterr().out
    commands.clear()
    assert main(["table", "3", "digits", "--rows", "2", "-o", str(tmp_path / "two"), "--recipe", "demo"]) == 1
    assert [command[command.index("--model") + 1] for command in commands] == ["rdpnet_025_cifar", "rdpnet_050_cifar"]
    with pytest.raises(SystemExit):
        main(["table", "3", "--print", "-o", str(tmp_path), "--bogus", "3"])
    assert "unrecognized arguments: --bogus" in capsys.readouterr().err


def test_a_run_begins_with_weights_whose_classifier_may_have_other_classes(tmp_path):
    shipped = timm.create_model(MODEL, pretrained=True)
    names = shipped.pretrained_cfg["label_names"]
    save_model(shipped, tmp_path / "w.safetensors", MODEL, {"num_classes": 10}, names)
    for weights in (MODEL, f"{MODEL}.c10", str(tmp_path / "w.safetensors")):
        for classes in (names, "0123456789", "abcd"):
            begun = Run(MODEL, RECIPES["demo"], weights=weights).create_model(classes)
            assert begun.num_classes == len(classes)
            for (name, ours), theirs in zip(begun.state_dict().items(), shipped.state_dict().values()):
                if name.startswith("head.") and classes is not names:
                    assert not torch.equal(ours, theirs), "of ten digits the classifier is not that of ten things"
                else:
                    assert torch.equal(ours, theirs), name
    save_model(reparameterize(shipped), tmp_path / "d.safetensors", MODEL, {"inference_mode": True})
    save_model(timm.create_model(MODEL, shuffle_groups=0), tmp_path / "s.safetensors", MODEL, {"shuffle_groups": 0})
    for weights, error, told in (
        ("rdpnet_050_cifar", ValueError, "no name of weights of rdpnet_025_cifar"),
        ("nowhere.pth", ValueError, "is no file"),
        (str(tmp_path / "d.safetensors"), RuntimeError, "deploy form"),
        # or the file that the run writes would name another network than was trained
        (str(tmp_path / "s.safetensors"), RuntimeError, "shuffle_groups=0, and this model has 2"),
    ):
        with pytest.raises(error, match=told):
            Run(MODEL, RECIPES["demo"], weights=weights).create_model("abcd")
    with pytest.raises(RuntimeError, match="shuffle_groups=2, and this model has 0"):
        Run(MODEL, RECIPES["demo"], model_args=(("shuffle_groups", 0),), weights=f"{MODEL}.c10").create_model("abcd")


def test_pictures_are_prepared_as_the_run_says_or_else_as_for_the_weights_it_begins_with(tmp_path):
    path = tmp_path / "w.safetensors"
    save_model(timm.create_model(MODEL), path, MODEL, {"pretrained_cfg_overlay": dict(mean=(0.5,) * 3, std=(0.2,) * 3)})
    own = (("pretrained_cfg_overlay", dict(mean=(0.1,) * 3)),)
    images = random_images(size=32)
    for arguments, mean in (((), (0.5,) * 3), (own, (0.1,) * 3)):
        run = Run(MODEL, RECIPES["demo"], model_args=arguments, weights=str(path))
        begun = run.create_model(images.classes)
        told = run.creation_args(begun, images)["pretrained_cfg_overlay"]
        for said in (begun.pretrained_cfg, told):  # the network, and the file that will be written
            assert said["mean"] == mean and said["std"] == (0.2,) * 3


def test_a_run_that_began_with_weights_says_so_and_is_another_run(tmp_path, capsys):
    arguments = ["train", "digits", "--recipe", "demo", "--epochs", "0.05", "-o", str(tmp_path)]
    assert main([*arguments, "--weights", f"{MODEL}.c10"]) == 0
    assert json.loads((tmp_path / "weights.json").read_text())["weights"] == f"{MODEL}.c10"
    assert main(arguments) == 1
    assert f"with weights {MODEL}.c10 rather than" in capsys.readouterr().err


def test_the_card_names_the_weights_that_a_run_began_with_though_the_file_is_another_by_then(tmp_path):
    images, begun_with = random_images(count=16), tmp_path / "w.safetensors"
    save_model(timm.create_model(MODEL), begun_with, MODEL, {})
    expected = hashlib.sha256(begun_with.read_bytes()).hexdigest()
    run = Run(MODEL, Recipe(epochs=1, batch_size=16), weights=str(begun_with))
    result = train(run, (images, images), tmp_path / "run", lambda *_: begun_with.unlink())
    card = release(result, run, images, tmp_path / "run" / "weights.safetensors", "noise")
    assert card["weights"] == f"w.safetensors, SHA-256 {expected}"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_classes": 5, "shuffle_groups": 0}, "cannot say num_classes:"),
        ({"pretrained": True}, "--weights"),
        ({"in_chans": 1}, "three colours"),
        ({"width": "abc"}, "cannot be created"),
        ({"foo": 1}, "cannot be created with the arguments.*foo"),
        ({"norm_layer": torch.nn.GroupNorm}, "what JSON can say"),
    ],
    ids=str,
)
def test_arguments_that_no_model_takes_are_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        Run(MODEL, RECIPES["demo"], model_args=tuple(arguments.items())).create_model("abcd")


def test_the_ablations_can_be_those_of_another_width(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        "rdpnet_timm.train.tables.subprocess.Popen", lambda command: commands.append(command) or Finished(1)
    )
    assert main(["table", "8", "digits", "-o", str(tmp_path), "--model", "rdpnet_025_cifar"]) == 1
    assert [command[command.index("--model") + 1] for command in commands] == ["rdpnet_025_cifar"] * 4
    assert len({tuple(command[command.index("--model-args") :]) for command in commands}) == 4


def test_a_table_of_another_width_stands_beside_the_papers_without_a_difference(tmp_path, capsys):
    row = "no identity, no shuffle"
    write_card(tmp_path, row, **card_of(row, 8, model="rdpnet_025_cifar", accuracy_before_rounding=60.0))
    arguments = ["table", "8", "-o", str(tmp_path), "--column", "CIFAR-100 %", "--print"]
    assert main([*arguments, "--model", "rdpnet_025_cifar"]) == 0
    printed = capsys.readouterr().out
    assert "| CIFAR-100 % | paper, rdpnet_100_cifar | ours |" in printed
    assert "| no identity, no shuffle | 71.3 | 60.00 |  | 1 |  |" in printed
    assert main(arguments) == 1
    assert "model rdpnet_025_cifar rather than rdpnet_100_cifar" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no data in 'nowhere'"),
        ([], "name the data"),
        (["digits", "--epochs", "0"], "epochs must be above 0, got 0.0"),
        (["digits", "--epochs", "-1"], "epochs must be above 0, got -1.0"),
        (["digits", "--model", "rdpnet_050_cifar"], "leave out --model rdpnet_050_cifar"),
        (["digits", "--model-args", "shuffle_groups=0"], "leave out --model-args"),
        (["digits", "--recipe", "lazy"], "lazy"),
        (["digits", "--recipe", "short", "--epochs", "22"], "all 22 epochs would be on images shrunk to 24 pixels"),
        (["digits", "--column", "CIFAR-100"], "Table 3 has the accuracies CIFAR-10 %, CIFAR-100 %, got 'CIFAR-100'"),
        (["digits", "--weights", "rdpnet_025_cifar.c10"], "leave out --model-args and --weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_would_fail_in_every_run_of_a_table_fails_before_the_first(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "rdpnet_timm.train.tables.subprocess.Popen", lambda command: pytest.fail("nothing is to be run")
    )
    assert main(["table", "3", *arguments, "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


def test_weights_of_the_deploy_form_are_evaluated_in_that_alone(tmp_path, capsys):
    path = str(tmp_path / "d.safetensors")
    save_model(
        reparameterize(timm.create_model(f"{MODEL}.digits", pretrained=True)), path, MODEL, {"inference_mode": True}
    )
    assert main(["evaluate", "digits", "--weights", path]) == 0
    assert capsys.readouterr().out.startswith("deploy form: ")


def test_an_evaluation_of_a_network_without_three_channels_is_refused_by_name(tmp_path, capsys):
    path = str(tmp_path / "grey.safetensors")
    save_model(timm.create_model(MODEL, in_chans=1), path, MODEL, {"in_chans": 1})
    assert main(["evaluate", "digits", "--weights", path]) == 1
    assert "read in three colours, and the model takes 1 channels" in capsys.readouterr().err


def test_weights_are_not_scored_on_images_of_other_classes(tmp_path, capsys):
    assert main(["evaluate", "digits", "--model", "rdpnet_025_cifar"]) == 1  # CIFAR-10's, of as many classes
    assert (
        "only in weights: airplane, automobile, bird, cat, deer, ...; only in images: 0, 1" in capsys.readouterr().err
    )
    data = parquet_folder(tmp_path)
    weights = tmp_path / "weights.safetensors"
    save_model(timm.create_model(MODEL, num_classes=4), weights, MODEL, {"num_classes": 4})
    for classes, status in (("abcd", 0), ("abdc", 1)):
        weights.with_suffix(".json").write_text(json.dumps({"classes": list(classes)}))
        assert main(["evaluate", data, "--weights", str(weights)]) == status
    weights.with_suffix(".json").unlink()
    assert main(["evaluate", data, "--weights", str(weights)]) == 0  # nothing is known of their classes


def test_training_on_a_cpu_keeps_freed_memory(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("rdpnet_timm.train.trainer.keep_freed_memory", lambda: calls.append(True))
    images = random_images(count=16)
    train(Run(MODEL, Recipe(epochs=1, batch_size=16)), (images, images), tmp_path)
    assert calls == [True]


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="older torch has another name for it")
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_an_accuracy_is_of_float32_on_a_gpu_too(precision, monkeypatch):
    """Ten bits of mantissa, as cuDNN's convolutions have by default, would be no better than half precision's."""
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", precision)
    model, seen = timm.create_model("rdpnet_025_cifar", num_classes=4), []
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    evaluate(model, random_images(count=4))
    assert seen == ["ieee"] and torch.backends.cudnn.conv.fp32_precision == precision


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


# the shuffle


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
