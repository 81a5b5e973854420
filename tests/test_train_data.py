"""What is trained on: how data are read, what is refused, and what becomes of a batch."""

import hashlib
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import parquet_folder, random_images, write_parquet

from rdpnet_timm.train import Recipe, read_data
from rdpnet_timm.train.data import augmented_batch, mixed_batch, normalized


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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


def test_the_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    training, test = read_data("digits")
    assert training.pixels.shape == (1437, 32, 32, 3) and test.pixels.shape == (360, 32, 32, 3)
    pixels = torch.cat([training.pixels, test.pixels])
    assert torch.equal(torch.cat([training.labels, test.labels]), torch.from_numpy(load_digits().target))
    small = F.avg_pool2d(pixels.permute(0, 3, 1, 2).double(), 4).mean(1) * 16 / 255
    assert np.corrcoef(small.flatten(), load_digits().images.reshape(-1))[0, 1] > 0.97


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
