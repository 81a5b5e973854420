"""Whole detectors and segmentors in ONNX Runtime and OpenVINO find what OpenMMLab finds, or are not written."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from rdpnet_timm.cli import main
from rdpnet_timm.convert import reparameterize
from rdpnet_timm.demo.on_device import detect
from rdpnet_timm.demo.sample_voc import make_sample_voc
from rdpnet_timm.deploy.formats import onnx_to_openvino, openvino_core, trace_to_onnx
from rdpnet_timm.measure.difference import randomize_norms

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
import mmcv.ops
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmseg.apis import inference_model, init_model

from rdpnet_timm.openmmlab.agreement import agreement, openmmlab_answers, overlaps
from rdpnet_timm.openmmlab.export import _class_names, build, drawn_pictures, export_openmmlab, table, traceable
from rdpnet_timm.openmmlab.picture import Picture, Resize, Unsupported, picture_transforms, resized

CONFIGS = Path(__file__).parents[1] / "mm_configs"
DETECTOR = CONFIGS / "small/faster_rcnn_rdpnet075_small.py"  # keeps the proportions of a picture
SEGMENTOR = CONFIGS / "demo/deeplabv3plus_rdpnet075_sample.py"  # does not
PICTURES = [*drawn_pictures((96, 128), 2), *drawn_pictures((75, 50), 1)]
PIXEL = np.full((1, 1, 3), 200, np.uint8)
ALMOST = [
    "--tolerance",
    "0.05",
]  # of random weights some boxes are so nearly alike that the last bit decides between them
CLASSES = [f"class {index}" for index in range(20)]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("openmmlab_export")]


def spread(model):
    """Random weights whose outputs differ from place to place, as those of a trained network do."""
    torch.manual_seed(0)
    randomize_norms(model, decades=0.3)
    if hasattr(model, "roi_head"):
        head = model.roi_head.bbox_head
        wanted = {model.rpn_head.rpn_cls: 1, model.rpn_head.rpn_reg: 0.3, head.fc_cls: 1, head.fc_reg: 1}
    else:
        wanted = {model.decode_head.conv_seg: 1}

    def scale(layer, inputs, output):
        if layer in wanted:
            factor = wanted.pop(layer) / output.std()
            layer.weight *= factor
            layer.bias -= output.transpose(0, 1).flatten(1).mean(1) * factor  # or one class would win everywhere
            return layer._conv_forward(inputs[0], layer.weight, layer.bias) if output.ndim == 4 else output * factor

    hooks = [layer.register_forward_hook(scale) for layer in wanted]
    x = torch.from_numpy(np.stack([PICTURES[0]] * 3)[:, :96, :96].transpose(0, 3, 1, 2) / 64 - 2).float()
    with torch.no_grad():
        if hasattr(model, "roi_head"):
            boxes = torch.rand(50, 4) * 40
            maps = model.neck(model.backbone(x))
            model.rpn_head(maps)
            model.roi_head._bbox_forward(maps, torch.cat([torch.zeros(50, 1), boxes.cumsum(1)], 1))
        else:
            model.decode_head(model.backbone(x))
    for hook in hooks:
        hook.remove()
    return model


def save(model, path, classes=CLASSES):
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": tuple(classes)}}}, path)
    return str(path)


def run_onnx(path, picture):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": picture})


def run_openvino(path, picture):
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}  # as the JSON says
    compiled = openvino_core().compile_model(path, "CPU", options)
    return [np.array(each) for each in compiled(picture).values()]


def both(folder, name, picture):
    return {
        "onnxruntime": run_onnx(folder / f"{name}.onnx", picture),
        "openvino": run_openvino(folder / f"{name}.xml", picture),
    }


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    checkpoint = save(spread(build(DETECTOR)[0]), folder / "weights.pth")
    arguments = ["--checkpoint", checkpoint, "--format", "onnx", "openvino", "--name", "cells", *ALMOST]
    assert main(["export", str(DETECTOR), *arguments, "-o", str(folder / "out")]) == 0
    return folder / "out", checkpoint


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentor")
    checkpoint = save(spread(build(SEGMENTOR)[0]), folder / "weights.pth", ["void", *CLASSES])
    arguments = ["--checkpoint", checkpoint, "--format", "onnx", "openvino", "--name", "scenes", "--logits"]
    assert main(["export", str(SEGMENTOR), *arguments, "-o", str(folder / "out")]) == 0
    return folder / "out", checkpoint


def test_an_exported_detector_finds_the_boxes_of_mmdet_in_both_runtimes(detector):
    folder, checkpoint = detector
    model = init_detector(str(DETECTOR), checkpoint, device="cpu")
    for picture in PICTURES:
        found = inference_detector(model, np.ascontiguousarray(picture[..., ::-1])).pred_instances
        assert len(found) > 20
        expected = [found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy()]
        for runtime, answer in both(folder, "cells", picture).items():
            alike = agreement([expected], [answer])
            assert alike.same >= 0.95, (runtime, alike)


def test_the_script_for_a_device_numbers_classes_without_names(detector, tmp_path):
    for name in ("cells.onnx", "cells.onnx.json"):
        shutil.copy(detector[0] / name, tmp_path)
    facts = json.loads((tmp_path / "cells.onnx.json").read_text())
    (tmp_path / "pictures").mkdir()
    for end in ("png", "jpg"):
        Image.fromarray(PICTURES[0]).save(tmp_path / f"pictures/one.{end}")
    before = (tmp_path / "pictures/one.png").read_bytes()
    found = []
    for names, output in ((CLASSES, "out"), (None, "pictures")):
        (tmp_path / "cells.onnx.json").write_text(json.dumps({**facts, "classes": names}))
        detect(str(tmp_path / "cells.onnx"), str(tmp_path / "pictures"), str(tmp_path / output))
        assert len(list((tmp_path / output).glob("one.*.png"))) == 2
        found.append(json.loads((tmp_path / output / "boxes.json").read_text())["one.png"])
    assert (tmp_path / "pictures/one.png").read_bytes() == before
    assert len(found[0]) > 20 and found[0] == [[f"class {name}", *others] for name, *others in found[1]]


def test_a_picture_of_one_pixel_gets_the_scores_of_mmdet(detector):
    """Of its many boxes with equal scores, each may keep others."""
    model = init_detector(str(DETECTOR), detector[1], device="cpu")
    expected = inference_detector(model, PIXEL).pred_instances
    for runtime, (boxes, scores, labels) in both(detector[0], "cells", PIXEL).items():
        assert (len(boxes), len(labels)) == (len(scores), len(scores)) and abs(len(scores) - len(expected)) <= 2, (
            runtime
        )
        np.testing.assert_allclose(scores[:20], expected.scores[:20], atol=1e-3, err_msg=runtime)


def test_an_exported_segmentor_gives_the_classes_of_mmseg_in_both_runtimes(segmentor):
    folder, checkpoint = segmentor
    model = init_model(str(SEGMENTOR), checkpoint, device="cpu")
    seen = set()
    for picture in [*PICTURES, PIXEL]:
        expected = inference_model(model, np.ascontiguousarray(picture[..., ::-1]))
        logits = expected.seg_logits.data.numpy()
        seen |= set(expected.pred_sem_seg.data.unique().tolist())
        for runtime, (found, found_logits) in both(folder, "scenes", picture).items():
            assert found.shape == picture.shape[:2] and found.dtype == np.uint8, runtime
            assert (found == expected.pred_sem_seg.data[0].numpy()).mean() >= 0.999, runtime
            assert np.abs(found_logits - logits).max() <= 1e-4 * np.abs(logits).max(), runtime
    assert len(seen) > 3


def test_the_operators_are_all_of_onnx_itself(detector, segmentor):
    for path in (detector[0] / "cells.onnx", segmentor[0] / "scenes.onnx"):
        assert {node.domain for node in onnx.load(path).graph.node} == {""}
    kinds = {node.op_type for node in onnx.load(detector[0] / "cells.onnx").graph.node}
    assert {"NonMaxSuppression", "RoiAlign", "TopK"} <= kinds


def test_the_json_says_what_goes_in_and_what_comes_out(detector, segmentor):
    facts = json.loads((detector[0] / "cells.onnx.json").read_text())
    assert facts["weights"] == "weights.pth" and facts["at_most"] == 100
    assert facts["classes"] == CLASSES and facts["network"] == "FasterRCNN" and facts["backbone"] == "RDPNet"
    assert facts["input"]["shape"] == ["height", "width", 3] and facts["input"]["dtype"] == "uint8"
    assert list(facts["outputs"]) == ["boxes", "scores", "labels"] and facts["score_threshold"] == 0.05
    assert facts["inside"]["resize"] == "to 256 x 256 (width x height) at most, the proportions kept"
    assert facts["agreement"]["same"] >= 0.95 and facts["agreement"]["compared"] > 50
    facts = json.loads((segmentor[0] / "scenes.xml.json").read_text())
    assert list(facts["outputs"]) == ["classes", "logits"] and len(facts["classes"]) == 21


def traced(network, folder):
    """The files of both formats, without the checks that the command makes."""
    axes = {"image": {0: "height", 1: "width"}, **{name: {0: "found"} for name in network.outputs}}
    trace_to_onnx(network, torch.from_numpy(PICTURES[0]), folder / "traced.onnx", network.outputs, axes)
    onnx_to_openvino(folder / "traced.onnx", folder / "traced.xml")
    return folder


def test_no_object_is_empty_outputs_of_the_right_shapes_and_a_comparison_of_nothing_is_said(detector, tmp_path, caplog):
    formats = ("onnx", "openvino")
    export_openmmlab(DETECTOR, tmp_path, detector[1], formats, "traced", score_threshold=0.999999, rounds=1)
    assert "found a box in 4 drawn pictures, so nothing was compared" in caplog.text
    for runtime, answer in both(tmp_path, "traced", PICTURES[0]).items():
        assert [each.shape for each in answer] == [(0, 4), (0,), (0,)], runtime


def test_no_proposal_is_empty_outputs_as_in_mmdet(tmp_path):
    model, settings = build(DETECTOR)
    with torch.no_grad():
        spread(model).rpn_head.rpn_reg.bias[0::4] = 1e4  # all far to the right, cut off to nothing at the border
    model.cfg = deepcopy(settings)  # which mmdet changes
    assert len(inference_detector(model, PICTURES[0]).pred_instances) == 0
    traced(traceable(model, settings), tmp_path)
    for runtime, answer in both(tmp_path, "traced", PICTURES[0]).items():
        assert [each.shape for each in answer] == [(0, 4), (0,), (0,)], runtime


def test_a_fixed_size_a_peers_backbone_and_one_format_alone(tmp_path):
    config = tmp_path / "peer.py"
    config.write_text(
        f"_base_ = '{DETECTOR}'\n"
        "model = dict(backbone=dict(_delete_=True, type='TimmBackbone', model_name='mobilenetv2_050'),\n"
        "             neck=dict(in_channels=[16, 16, 48, 160]))\n"
    )
    checkpoint = save(spread(build(config)[0]), tmp_path / "weights.pth")
    (picture,) = drawn_pictures((40, 64), 1)
    trained = init_detector(str(config), checkpoint, device="cpu")
    expected = inference_detector(trained, picture[..., ::-1].copy()).pred_instances.scores
    threshold = float(expected[len(expected) // 2])
    arguments = ["--checkpoint", checkpoint, *ALMOST, "--size", "40", "64", "--score-threshold", str(threshold)]
    assert main(["export", str(config), *arguments, "-o", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["peer.onnx", "peer.onnx.json"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "peer.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [40, 64, 3]
    (scores,) = session.run(["scores"], {"image": picture})
    assert abs(len(scores) - len(expected) // 2) <= 2 and scores.min() > threshold - 1e-6
    np.testing.assert_allclose(scores[:5], expected[:5], atol=1e-3)
    # with float64 constants OpenVINO would compile for ever, so that is asked first
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "out" / "peer.onnx")).graph
    doubles = [value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE]
    assert not doubles
    by_openvino = run_openvino(tmp_path / "out" / "peer.onnx", picture)[1]
    np.testing.assert_allclose(by_openvino[:5], expected[:5], atol=1e-3)


def test_two_pictures_at_a_time_are_refused_by_both_runtimes(detector):
    pair = np.stack([PICTURES[0]] * 2)
    with pytest.raises(Exception, match=r"(?i)rank.*image"):
        run_onnx(detector[0] / "cells.onnx", pair)
    with pytest.raises(Exception, match=r"(?i)shape|rank"):
        run_openvino(detector[0] / "cells.xml", pair)


OTHER_KINDS = {
    "RetinaNet": ("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'", "a TwoStageDetector of mmdet"),
    "Mask R-CNN": ("_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'", "roi_head finds masks too"),
    "Cascade R-CNN": (
        "_base_ = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'", "roi_head is a CascadeRoIHead",
    ),
    "soft NMS": (
        f"_base_ = '{DETECTOR}'\nmodel = dict(test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))))",
        "test_cfg.rcnn suppresses by soft_nms",
    ),
    "a smaller NMS": (
        f"_base_ = '{DETECTOR}'\nmodel = dict(test_cfg=dict(rpn=dict(nms=dict(max_num=3, split_thr=9))))",
        "test_cfg.rpn suppresses by nms with max_num",
    ),
    "no NMS": (
        f"_base_ = '{DETECTOR}'\nmodel = dict(test_cfg=dict(rcnn=dict(nms=None)))",
        "test_cfg.rcnn suppresses by nothing",
    ),
    "another choice of boxes": (
        f"_base_ = '{DETECTOR}'\nfrom mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead\n"
        "class Oracle(Shared2FCBBoxHead):\n    def _predict_by_feat_single(self, *args, **kwargs): ...\n"
        "model = dict(roi_head=dict(bbox_head=dict(type=Oracle)))",
        "its bbox_head is a Oracle",
    ),
    "a flip": (
        f"_base_ = '{DETECTOR}'\nloader = dict(type='LoadImageFromFile')\n"
        "test_dataloader = dict(dataset=dict(pipeline=[loader, dict(type='RandomFlip', prob=1.0)]))",
        "test pipeline has a 'RandomFlip'",
    ),
    "other masks": (
        f"_base_ = '{SEGMENTOR}'\nmodel = dict(auxiliary_head=None, decode_head=dict(\n"
        "    _delete_=True, type='EncHead', in_channels=[48, 192, 960], in_index=[0, 1, 2], channels=8, num_codes=4,\n"
        "    num_classes=21, norm_cfg=dict(type='BN'), use_se_loss=True,\n"
        "    loss_decode=dict(type='CrossEntropyLoss'),\n"
        "    loss_se_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)))",
        "decode_head is a EncHead",
    ),
    "a teacher": (
        f"_base_ = '{DETECTOR}'\nmodel = dict(_delete_=True, type='SoftTeacher', detector={{{{_base_.model}}}},\n"
        "    semi_train_cfg=dict(freeze_teacher=False), semi_test_cfg=dict(predict_on='teacher'),\n"
        "    data_preprocessor=dict(type='MultiBranchDataPreprocessor',\n"
        "        data_preprocessor={{_base_.model.data_preprocessor}}))",
        "its type is a SoftTeacher",
    ),
    "no pictures": (
        f"_base_ = '{DETECTOR}'\n"
        + "".join(f"{name} = None\n" for name in ("test_dataloader", "test_evaluator", "test_cfg", "val_dataloader")),
        "the config has no test pipeline",
    ),
    "colours of 32 bits": (
        f"_base_ = '{DETECTOR}'\n"
        "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile', to_float32=True)]))",
        "LoadImageFromFile has to_float32=True",
    ),
    "sliding": (
        f"_base_ = '{SEGMENTOR}'\nmodel = dict(test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(32, 32)))",
        "test_cfg.mode is 'slide'",
    ),
    "a classifier": ("default_scope = 'mmpretrain'\nmodel = dict(type='Classifier')", "expected a config of mmdet"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_another_kind_of_network_is_refused_with_the_reason(kind, tmp_path, capsys):
    text, reason = OTHER_KINDS[kind]
    (tmp_path / "config.py").write_text(text)
    assert main(["export", str(tmp_path / "config.py"), "-o", str(tmp_path / "out")]) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_named_and_nothing_is_written(detector, segmentor, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    few = save(build(DETECTOR)[0], tmp_path / "few.pth", ["only one"])
    good = ["--checkpoint", detector[1]]
    for arguments, reason in [
        (["--checkpoint", segmentor[1]], "is no checkpoint of faster_rcnn_rdpnet075_small.py: of"),
        (["--checkpoint", str(tmp_path / "none.pth")], "no checkpoint at"),
        (["--checkpoint", few], "the network has 20 classes, and there are 1 names in the checkpoint"),
        ([*good, "--classes", str(tmp_path / "names.txt")], "there are 2 names given, beginning with one, two"),
        ([*good, "--size", "0", "4"], "a width of at least 1, got (0, 4)"),
        ([*good, "--score-threshold", "5"], "between 0 and 1, got the threshold 5"),
        ([*good, "--format", "torchscript"], "is exported as onnx or openvino, got torchscript"),
        ([*good, "--int8"], "INT8 needs real pictures"),
        ([*good, "--logits"], "leave out --logits"),
        ([*good, "--tolerance", "-1"], "cells.onnx does not answer as OpenMMLab does"),
    ]:
        output = tmp_path / "out"
        assert main(["export", str(DETECTOR), *arguments, "--name", "cells", "-o", str(output)]) == 1, reason
        assert reason in capsys.readouterr().err
        assert not output.exists()


def test_a_picture_reaches_the_network_as_by_opencv_and_the_data_preprocessor():
    model, settings = build(DETECTOR)
    for rgb in (True, False):
        model.data_preprocessor._channel_conversion = rgb
        for height, width, to in [
            (48, 64, (192, 256)),
            (100, 77, (256, 197)),
            (512, 300, (256, 150)),
            (1, 1, (256, 256)),
        ]:
            picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
            resized = cv2.resize(picture[..., ::-1], to[::-1], interpolation=cv2.INTER_LINEAR)
            batch = {"inputs": [torch.from_numpy(resized.transpose(2, 0, 1).copy())], "data_samples": None}
            expected = model.data_preprocessor(batch)["inputs"]
            x, given, size = Picture(model.data_preprocessor, picture_transforms(settings)[1])(
                torch.from_numpy(picture)
            )
            assert (given.tolist(), size.tolist()) == ([height, width], list(to))
            assert x.shape == expected.shape
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


def test_a_resized_picture_is_opencvs_but_for_a_grey_level_in_a_hundred_thousand():
    generator = np.random.default_rng(0)
    differing = []
    for _ in range(40):
        height, width = map(int, generator.integers(1, 500, 2))
        to = tuple(map(int, generator.integers(1, 900, 2)))
        picture = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = cv2.resize(picture, to[::-1], interpolation=cv2.INTER_LINEAR)
        found = resized(torch.from_numpy(picture), torch.tensor([height, width]), torch.tensor(to)).numpy()
        assert np.abs(found - expected).max() <= 1
        differing.append((found != expected).mean())
    assert np.mean(differing) < 1e-5


def test_what_a_loader_does_to_the_file_alone_is_no_reason_to_refuse_and_its_other_arguments_reach_the_comparison():
    settings = Config.fromfile(DETECTOR)
    loader = settings.test_dataloader.dataset.pipeline[0]
    loader.update(to_float32=False, color_type="color", backend_args=dict(backend="local"), imdecode_backend="pillow")
    (found, *_), _ = picture_transforms(settings)
    assert found == dict(loader)
    for name, value in [("to_float32", True), ("color_type", "grayscale"), ("imdecode_backend", "tifffile")]:
        changed = deepcopy(settings)
        changed.test_dataloader.dataset.pipeline[0][name] = value
        with pytest.raises(Unsupported, match=f"LoadImageFromFile has {name}={value!r}"):
            picture_transforms(changed)


def test_the_comparison_is_with_the_loader_of_the_config(monkeypatch):
    """Also with one that is refused today."""
    settings, given = Config.fromfile(DETECTOR), []
    settings.test_dataloader.dataset.pipeline[0].to_float32 = True
    monkeypatch.setattr("rdpnet_timm.openmmlab.picture._require_eight_bit_colours", lambda loader: None)
    result = SimpleNamespace(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0))
    sample = SimpleNamespace(pred_instances=result)
    model = SimpleNamespace(test_step=lambda data: given.append(data["inputs"][0].dtype) or [sample])
    openmmlab_answers(model, settings)(PICTURES[0])
    assert given == [torch.float32]


def test_pictures_are_treated_as_for_validation_where_the_config_has_no_test_data():
    settings = Config.fromfile(DETECTOR)
    expected = picture_transforms(settings)
    settings.test_dataloader = None
    assert picture_transforms(settings) == expected


@pytest.mark.parametrize("most", [-1, 0, 30])
def test_no_limit_of_boxes_is_none(most):
    model, settings = build(DETECTOR)
    spread(model).roi_head.test_cfg.max_per_img = most
    expected = openmmlab_answers(model, settings)(PICTURES[0])
    found = [each.numpy() for each in traceable(model, settings)(torch.from_numpy(PICTURES[0]))]
    assert len(found[0]) == len(expected[0]) == 30 if most > 0 else len(found[0]) == len(expected[0]) > 100
    assert agreement([expected], [found]).same >= 0.95


def test_maps_of_one_stride_are_added_as_mmdet_does(tmp_path):
    (tmp_path / "config.py").write_text(
        f"_base_ = '{DETECTOR}'\nstrides = [4, 8, 16, 16, 32]\nmodel = dict(\n"
        "    backbone=dict(output_stride=16), rpn_head=dict(anchor_generator=dict(strides=strides)),\n"
        "    roi_head=dict(bbox_roi_extractor=dict(featmap_strides=strides[:4])))\n"
    )
    model, settings = build(tmp_path / "config.py")
    expected = openmmlab_answers(spread(model), settings)(PICTURES[0])
    found = [each.numpy() for each in traceable(model, settings)(torch.from_numpy(PICTURES[0]))]
    assert len(found[0]) > 20 and agreement([expected], [found]).same >= 0.95
    neck = traceable(build(DETECTOR)[0], settings).neck
    assert neck.upsample_cfg["scale_factor"] == 2  # where each map is twice the next


@pytest.mark.parametrize("config", [DETECTOR, SEGMENTOR])
def test_a_config_of_classes_is_that_of_their_names(config, tmp_path):
    """mmengine's new style, which has no default_scope either."""
    model, settings = build(config)
    module, kinds = importlib.import_module(f"{settings.default_scope}.registry"), {}
    registries = [getattr(module, name) for name in ("MODELS", "DATASETS", "TRANSFORMS", "TASK_UTILS", "DATA_SAMPLERS")]

    def kind(match):
        found = filter(None, (registry.get(match[1]) for registry in registries))
        each = next(found, None) or getattr(mmcv.ops, match[1])
        if each.__name__ != match[1]:  # an alias, such as SyncBN
            return match[0]
        kinds[match[1]] = each
        return f"'type': {match[1]}"

    text = "".join(f"{name} = {settings[name].to_dict()!r}\n" for name in ("model", "test_dataloader"))
    text = re.sub(r"'type': '(\w+)'", kind, text)
    text = "".join(f"from {each.__module__} import {name}\n" for name, each in kinds.items()) + text
    (tmp_path / "config.py").write_text(text)
    new, new_settings = build(tmp_path / "config.py")
    assert isinstance(new_settings.test_dataloader.dataset.type, type)
    new.load_state_dict(spread(model).state_dict())
    expected = openmmlab_answers(model, settings)(PICTURES[0])
    assert agreement([expected], [openmmlab_answers(new, new_settings)(PICTURES[0])]).same == 1
    found = traceable(new, new_settings)(torch.from_numpy(PICTURES[0]))
    found = [each.numpy() for each in (found if config == DETECTOR else [found])]
    assert agreement([expected], [found]).same >= 0.95


def test_without_a_checkpoint_the_weights_are_random_which_is_said(tmp_path, caplog):
    settings = Config.fromfile(DETECTOR)
    settings.model.test_cfg.rcnn.max_per_img = -1
    settings.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "none.pth"))
    settings.dump(tmp_path / "config.py")
    export_openmmlab(tmp_path / "config.py", tmp_path / "out", size=(48, 64), tolerance=1, rounds=1)
    assert "the weights are random" in caplog.text
    facts = json.loads((tmp_path / "out/config.onnx.json").read_text())
    assert facts["weights"] == "random" and facts["at_most"] is None
    assert facts["classes"][-1] == "tvmonitor"  # of mmdet's VOCDataset
    settings.model.roi_head.bbox_head.num_classes = 3
    settings.dump(tmp_path / "config.py")
    model, settings = build(tmp_path / "config.py")
    assert _class_names(model, settings, None) is None


def test_nothing_is_downloaded_for_a_file_of_other_weights(tmp_path, monkeypatch):
    (tmp_path / "config.py").write_text(
        f"_base_ = '{DETECTOR}'\nbackbone = dict(_delete_=True, type='TimmBackbone', model_name='mobilenetv2_050')\n"
        "backbone['pretrained'] = True\nmodel = dict(backbone=backbone, neck=dict(in_channels=[16, 16, 48, 160]))\n"
    )
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **kwargs: pytest.fail("a download"))
    build(tmp_path / "config.py")


def test_a_resize_that_is_not_bilinear_is_refused():
    settings = Config.fromfile(DETECTOR)
    settings.test_dataloader.dataset.pipeline[1]["interpolation"] = "nearest"
    with pytest.raises(Unsupported, match=r"expected a Resize with scale=\(width, height\).*nearest"):
        picture_transforms(settings)
    assert str(Resize(4, 2, False)) == "to 4 x 2 (width x height) exactly"


def test_the_traced_function_is_the_model_without_a_trace_too():
    model, settings = build(DETECTOR)
    found = traceable(spread(model), settings)(torch.from_numpy(PICTURES[0]))
    assert len(found[0]) == len(found[1]) == len(found[2]) > 0


def test_agreement_counts_what_is_missing_moved_or_otherwise_named():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [0, 50, 10, 90]], np.float32)
    scores, labels = np.array([0.9, 0.5, 0.1], np.float32), np.array([0, 1, 1])
    answer = [boxes, scores, labels]
    assert agreement([answer], [answer])[:4] == (1, 3, 1.0, 1.0)
    order = [2, 0, 1]
    assert agreement([answer], [[each[order] for each in answer]]).same == 1.0
    moved = boxes.copy()
    moved[0, 2] = 11
    found = agreement([answer], [[moved, scores, labels]])
    assert (found.same, found.near) == (pytest.approx(2 / 3), 1.0) and found.overlap == pytest.approx(10 / 11)
    assert agreement([answer], [[boxes, scores + 0.01, labels]])[2:4] == (0.0, 1.0)
    assert agreement([answer], [[boxes, scores, 1 - labels]]).near == 0.0
    assert agreement([answer], [[each[:2] for each in answer]]).near == pytest.approx(2 / 3)
    assert agreement([[each[:0] for each in answer]], [answer]).near == 0.0
    classes = np.array([[0, 1], [2, 2]], np.uint8)
    assert agreement([[classes]], [[np.array([[0, 1], [2, 0]], np.uint8)]]).same == 0.75
    for answers, told in (([answer] * 5000, "the same boxes"), ([[classes]], "the same pixels")):
        found = agreement(answers, answers)  # of many boxes, and of few pixels
        row = SimpleNamespace(agreement=found, path=Path("a.onnx"), precision="float32", cells=lambda: [""] * 9)
        assert told in table([row])
    with pytest.raises(RuntimeError, match=r"expected classes \(2, 2\), got \(2, 1\)"):
        agreement([[classes]], [[classes[:, :1]]])
    assert overlaps(boxes[:1], np.array([[5, 0, 15, 10]])).item() == pytest.approx(1 / 3)


def test_the_script_of_the_docs_detects_and_draws_without_torch(detector, tmp_path):
    script = (CONFIGS.parent / "rdpnet_timm/demo/on_device.py").read_text()
    page = (CONFIGS.parent / "docs/device.md").read_text()
    assert re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1) == script
    code = script + "    assert not {'torch', 'mmdet', 'cv2', 'rdpnet_timm'} & set(sys.modules)\n"
    (tmp_path / "pictures").mkdir()
    for index, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"pictures/{index}.png")
    grey = PICTURES[0][..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "pictures/16 bits.png")
    command = [
        sys.executable,
        "-S",
        "-c",
        f"import sys; sys.path += {sys.path!r}; sys.argv = sys.argv[1:]; exec(open(sys.argv[0]).read())",
        "detect.py",
        detector[0] / "cells.onnx",
        tmp_path / "pictures",
        tmp_path / "pictures",  # beside the pictures, none of which is replaced
    ]
    (tmp_path / "detect.py").write_text(code)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "pictures/boxes.json").read_text())
    pictures = {**{f"{index}.png": each for index, each in enumerate(PICTURES)}, "16 bits.png": np.stack([grey] * 3, 2)}
    for name, picture in pictures.items():
        boxes, scores, labels = run_onnx(detector[0] / "cells.onnx", picture)
        expected = [[CLASSES[label], score, box] for box, score, label in zip(boxes.tolist(), scores.tolist(), labels)]
        assert found[name] == expected
        assert Image.open(tmp_path / f"pictures/{name}.png").size == picture.shape[1::-1]
    assert np.array_equal(Image.open(tmp_path / "pictures/0.png"), PICTURES[0])


def test_mmdets_own_inferencer_takes_config_and_checkpoint_and_gives_the_deploy_form(detector):
    """As the page says."""
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(model=str(DETECTOR), weights=detector[1], device="cpu")
    before = inferencer(PICTURES[0], return_datasamples=True)["predictions"][0].pred_instances
    reparameterize(inferencer.model, inplace=True)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in inferencer.model.backbone.modules())
    after = inferencer(PICTURES[0], return_datasamples=True)["predictions"][0].pred_instances
    answers = [[each.bboxes.numpy(), each.scores.numpy(), each.labels.numpy()] for each in (before, after)]
    assert agreement(answers[:1], answers[1:]).same >= 0.95


def test_whole_networks_are_put_beside_pytorch(detector, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VOCDEVKIT", str(make_sample_voc(tmp_path, images=45)))
    # a process forked beside the runtimes' threads may never end
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process was forked"))
    arguments = ["bench", "whole-networks", str(DETECTOR), "--checkpoint", detector[1], "--pictures", "2"]
    arguments += ["--rounds", "1", "-o", str(tmp_path / "rows.json"), str(detector[0] / "cells.onnx")]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["runtime"] for row in rows] == ["PyTorch", "PyTorch", "ONNX Runtime", "OpenVINO"]
    assert all(row["agreement"]["same"] >= 0.95 and row["agreement"]["compared"] > 20 for row in rows)
    assert re.search(r"cells\.onnx +OpenVINO", capsys.readouterr().out)


def test_a_config_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config at"):
        build(tmp_path / "none.py")


def quantised(config, checkpoint, folder):
    """The float and the INT8 file that `rdpnet export` makes for ONNX Runtime, with ranges from few pictures."""
    pictures = drawn_pictures((96, 128), 4)
    files = export_openmmlab(config, folder, checkpoint, pictures=pictures, int8=True, tolerance=0.05, rounds=1)
    return [each.path for each in files]


def part(node):
    """The submodule that a node is from, by its name in the trace."""
    return node.name.split("/")[1]


def test_int8_of_a_detector_finds_boxes_near_those_of_float_and_chooses_them_in_float(detector, tmp_path):
    paths = quantised(DETECTOR, detector[1], tmp_path)
    expected, actual = ([run_onnx(path, picture) for picture in PICTURES[:2]] for path in paths)
    found = agreement(expected, actual)
    assert found.compared > 100 and found.near > 0.75 and 0 < found.score < 0.1, found

    graph = onnx.load(paths[1]).graph
    makers = {output: node for node in graph.node for output in node.output}
    readers = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    rounded = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in makers]
    dense = {"backbone", "neck", "rpn_head", "bbox_head"}
    assert {part(makers[node.input[0]]) for node in rounded} >= dense
    for node in rounded:  # what is rounded comes out of one of these, or goes into one
        (back,) = readers[node.output[0]]
        assert part(makers[node.input[0]]) in dense or dense.issuperset(map(part, readers[back.output[0]])), node.name
    for kind in ("NonMaxSuppression", "TopK", "Sigmoid", "Softmax", "Exp"):
        for node in (each for each in graph.node if each.op_type == kind):
            after = [reader.op_type for name in node.output for reader in readers.get(name, ())]
            assert "QuantizeLinear" not in after, node.name


def test_int8_of_a_segmentor_gives_the_classes_of_float(segmentor, tmp_path):
    paths = quantised(SEGMENTOR, segmentor[1], tmp_path)
    expected, actual = ([run_onnx(path, picture) for picture in PICTURES[:2]] for path in paths)
    found = agreement(expected, actual)
    assert 0.9 < found.same < 1, found  # not the float network
