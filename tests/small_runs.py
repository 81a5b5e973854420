"""What the tests of the trainer share: small data, and a short recipe that has everything."""

import io

import numpy as np
import torch
from PIL import Image

from rdpnet_timm.train import Images, Recipe

MODEL = "rdpnet_025_cifar"


def random_images(count=48, size=12, classes=4, seed=0):
    """Images of noise, with random labels."""
    generator = np.random.default_rng(seed)
    pixels = torch.from_numpy(generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8))
    labels = torch.from_numpy(generator.integers(0, classes, count))
    return Images(pixels, labels, tuple(f"class {index}" for index in range(classes)))


def write_parquet(path, images, names=None, broken=None):
    """``images`` as PNGs in a parquet file, its classes called ``names``; row ``broken`` is no image."""
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
    """``folder`` with noise for training and test in it; its name."""
    for part in ("train", "test"):
        write_parquet(folder / f"{part}.parquet", random_images(count=20), names=("a", "b", "c", "d"), **kwargs)
    return str(folder)


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
    """Copies of all weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
