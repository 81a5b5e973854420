import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from rdpnet_timm.deploy.calibration import Preprocessing, decode, load_images, random_images


@pytest.fixture
def preprocessing():
    return Preprocessing.of(timm.create_model("rdpnet_025_cifar"))


def picture(value, size=(32, 32)):
    return Image.fromarray(np.full((*size, 3), value, np.uint8))


def encoded(value):
    buffer = io.BytesIO()
    picture(value).save(buffer, "PNG")
    return buffer.getvalue()


def test_pixels_of_a_folder_are_those_of_its_pictures_spread_evenly(tmp_path, preprocessing):
    (tmp_path / "sub").mkdir()
    for index in range(9):
        picture(index * 10).save(tmp_path / "sub" / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    images = load_images(tmp_path, preprocessing, limit=3)
    assert images.pixels.shape == (3, 3, 32, 32)
    torch.testing.assert_close(images.pixels[:, 0, 0, 0], torch.tensor([0, 40, 80]) / 255)
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    np.testing.assert_allclose(preprocessing.normalize(images.pixels)[2, :, 5, 5], (80 / 255 - mean) / std, rtol=1e-5)


@pytest.mark.parametrize("column", ["image", "img"])  # the Hugging Face Hub's CIFAR has the short name
def test_a_parquet_gives_pictures(column, tmp_path, preprocessing):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.table({column: [encoded(v) for v in (0, 51, 255)]}), tmp_path / "data.parquet")
    images = load_images(tmp_path / "data.parquet", preprocessing)
    torch.testing.assert_close(images.pixels[:, 2, 31, 31], torch.tensor([0, 0.2, 1]))


def stored(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF, big-endian", "PGM"])
def test_grey_of_16_bits_is_that_of_8(kind):
    ramp = np.arange(256).reshape(16, 16)
    values = (ramp * 257).astype(">u2" if "big" in kind else "<u2")
    if kind == "PGM":
        data = b"P5 16 16 65535\n" + values.astype(">u2").tobytes()
    else:
        data = stored(Image.fromarray(values), kind.split(",")[0])
    assert np.array_equal(np.asarray(decode(data, "it"))[..., 1], ramp)
    assert np.array_equal(np.asarray(decode(data, "it", "L")), ramp)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_without_a_white_are_refused(dtype):
    data = stored(Image.fromarray(np.ones((4, 4), dtype)), "TIFF")
    with pytest.raises(ValueError, match=r"cannot read the image it \(its .* numbers do not say what is white"):
        decode(data, "it")


def test_a_picture_is_turned_as_its_camera_says():
    image = picture(0, (20, 30))
    image.paste((255, 255, 255), (0, 0, 30, 10))  # its upper half
    exif = image.getexif()
    exif[0x112] = 6  # to be turned clockwise
    turned = np.asarray(decode(stored(image, "PNG", exif=exif), "it"))
    assert turned.shape == (30, 20, 3) and turned[:, 10:].min() == 255 and turned[:, :10].max() == 0


def test_one_channel_reads_grey(tmp_path):
    model = timm.create_model("rdpnet_025_cifar", in_chans=1)
    picture(100).save(tmp_path / "a.png")
    assert load_images(tmp_path, Preprocessing.of(model)).pixels.shape == (1, 1, 32, 32)


def test_another_size_is_resized_to(tmp_path):
    model = timm.create_model("rdpnet_025_cifar")
    picture(100, (50, 70)).save(tmp_path / "a.png")
    assert load_images(tmp_path, Preprocessing.of(model, (3, 40, 24))).pixels.shape == (1, 3, 40, 24)


def test_wrong_sources_are_named(tmp_path, preprocessing):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_images(tmp_path / "nowhere", preprocessing)
    with pytest.raises(ValueError, match="no images in the folder"):
        load_images(tmp_path, preprocessing)
    (tmp_path / "broken.png").write_bytes(encoded(1)[:40])
    with pytest.raises(ValueError, match=r"broken\.png"):
        load_images(tmp_path, preprocessing)
    with pytest.raises(ValueError, match=r"broken\.png' is one picture.*give the folder"):
        load_images(tmp_path / "broken.png", preprocessing)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="parquet"):
        load_images(tmp_path / "broken.parquet", preprocessing)


def test_a_parquet_without_images_is_named(tmp_path, preprocessing):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.table({"picture": [b"", b""]}), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="column 'image'"):
        load_images(tmp_path / "data.parquet", preprocessing)
    parquet.write_table(arrow.table({"image": ["a.png", "b.png"]}), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=r"expected encoded images in the column 'image' of .*, got string"):
        load_images(tmp_path / "data.parquet", preprocessing)


def test_channels_that_the_model_does_not_take_are_named():
    with pytest.raises(ValueError, match=r"3 channels, got the size \(1, 32, 32\)"):
        Preprocessing.of(timm.create_model("rdpnet_025_cifar"), (1, 32, 32))


def test_a_model_that_does_not_say_how_its_images_are_prepared_is_refused():
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match=r"this Sequential does not say.*pretrained_cfg"):
        Preprocessing.of(plain)
    with pytest.warns(UserWarning, match="mean and std; without it those of ImageNet are taken"):
        assert Preprocessing.of(plain, (3, 40, 24)).input_size == (3, 40, 24)
    plain.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    prepared = Preprocessing.of(torch.nn.DataParallel(plain))
    assert prepared.input_size == (3, 8, 8) and prepared.mean == (0.5,) * 3 and prepared.std == (0.2,) * 3


def test_random_images_come_with_a_warning_and_are_always_the_same(preprocessing):
    with pytest.warns(UserWarning, match="accuracy will be worse"):
        first = random_images(preprocessing, 4)
    with pytest.warns(UserWarning):
        assert torch.equal(first.pixels, random_images(preprocessing, 4).pixels)
    assert first.pixels.min() >= 0 and first.pixels.max() <= 1
