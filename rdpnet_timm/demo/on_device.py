"""Detect in a folder of pictures: python on_device.py DETECTOR.onnx PICTURES OUTPUT. It needs no PyTorch."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


def detect(artefact: str, pictures: str, output: str, least: float = 0.5) -> None:
    """Draw the boxes whose score is at least ``least``, and write all that were found into boxes.json."""
    facts = json.loads(Path(artefact + ".json").read_text())
    names = facts["classes"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = facts["runtime"]["threads"]
    session = onnxruntime.InferenceSession(artefact, options, providers=["CPUExecutionProvider"])
    Path(output).mkdir(parents=True, exist_ok=True)
    everything = {}
    for path in sorted(each for each in Path(pictures).iterdir() if each.suffix.lower() in (".jpg", ".jpeg", ".png")):
        picture = ImageOps.exif_transpose(Image.open(path))
        if picture.mode.startswith("I"):  # grey of 16 bits, which convert would cut off at 255
            picture = Image.fromarray(((np.asarray(picture).astype(np.uint32) + 128) // 257).astype(np.uint8))
        picture = picture.convert("RGB")
        found = [each.tolist() for each in session.run(["boxes", "scores", "labels"], {"image": np.asarray(picture)})]
        called = [names[label] if names else str(label) for label in found[2]]
        everything[path.name] = [list(each) for each in zip(called, found[1], found[0])]
        draw = ImageDraw.Draw(picture)
        for name, score, (left, top, right, bottom) in everything[path.name]:
            if score >= least:
                draw.rectangle((left, top, right, bottom), outline="red", width=2)
                draw.text((left + 4, top + 2), f"{name} {score:.2f}", fill="white", stroke_width=2, stroke_fill="black")
        picture.save(Path(output) / f"{path.name}.png")
    (Path(output) / "boxes.json").write_text(json.dumps(everything))


if __name__ == "__main__":
    detect(sys.argv[1], sys.argv[2], sys.argv[3])
