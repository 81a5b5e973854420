from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from rdpnet_timm.measure.difference import randomize_norms

pytest.importorskip("mmseg")
from rdpnet_timm.openmmlab import export as openmmlab

CONFIGS = Path(__file__).parents[1] / "mm_configs"


@pytest.mark.slow
def test_a_whole_segmentor_gives_the_same_logits_in_onnx_runtime(tmp_path, monkeypatch):
    built = []
    build = openmmlab._build
    monkeypatch.setattr(
        openmmlab, "_build", lambda *args: built.append(randomize_norms(build(*args), decades=0.3)) or built[-1]
    )
    openmmlab.export_openmmlab(CONFIGS / "deeplabv3plus_rdpnet075_voc.py", tmp_path, size=(64, 96))
    x = torch.randn(1, 3, 64, 96)
    expected = built[0].encode_decode(x, [{"img_shape": (64, 96)}]).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "segmentor.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": x.numpy()})
    assert logits.shape == (1, 21, 64, 96)
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-4


@pytest.mark.slow
def test_a_detectors_backbone_gives_the_same_maps_in_onnx_runtime(tmp_path):
    pytest.importorskip("mmdet")
    found = openmmlab.export_openmmlab(CONFIGS / "faster_rcnn_rdpnet075_voc.py", tmp_path, size=(64, 64))
    assert list(found) == ["backbone"]
    session = onnxruntime.InferenceSession(tmp_path / "backbone.onnx", providers=["CPUExecutionProvider"])
    maps = session.run(None, {"image": np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)})
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2]


def test_a_config_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config at"):
        openmmlab.export_openmmlab(tmp_path / "none.py", tmp_path)
