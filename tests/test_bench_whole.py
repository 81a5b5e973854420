"""Tables 6 and 7 hold whole networks beside backbones, where OpenMMLab is installed."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from rdpnet_timm.bench import run, tables
from rdpnet_timm.cli import main

ENDS = {"table6": ("boxes", "scores", "labels"), "table7": ("classes",)}
PRECISION = {"table6": "float32", "table7": "int8"}  # one of two, or the tests take twice the time


def only_whole(monkeypatch, name):
    """A table without its backbones, which other tests measure."""
    monkeypatch.setitem(tables.TABLES, name, replace(tables.TABLES[name], comparisons=()))


def assert_finds_as_many_as_any_other(form):
    """Of random weights, which alone would leave anything from 100 to 1000 proposals."""
    network, logits = form.network, []
    network.bbox_head.fc_cls.register_forward_hook(lambda module, inputs, output: logits.append(output))
    with torch.no_grad():
        network(form.x)
    assert len(logits[0]) == network.rpn_cfg.max_per_img == 1000
    assert (logits[0].softmax(1)[:, :-1] > network.score_threshold).sum() == 300


@pytest.mark.slow
@pytest.mark.xdist_group("openmmlab_export")
@pytest.mark.parametrize("name", ENDS)
def test_a_quick_run_measures_whole_networks_in_both_runtimes(name, tmp_path, monkeypatch):
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    from rdpnet_timm.bench.whole_networks import PictureForm

    only_whole(monkeypatch, name)
    traced = {}

    class Kept(PictureForm):
        def __init__(self, network, size):
            super().__init__(network, size)
            traced[type(network.backbone).__name__] = self

    monkeypatch.setattr("rdpnet_timm.bench.whole_networks.PictureForm", Kept)
    run.run([name], tmp_path, ["eager", "onnxruntime", "openvino"], quick=True, precisions=[PRECISION[name]])
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert not any(one["failures"] for one in result["runs"]), [one["failures"] for one in result["runs"]]
    with open(tmp_path / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = {(row["backend"], row["precision"]) for row in rows}
    assert pairs == {(runtime, PRECISION[name]) for runtime in ("onnxruntime", "openvino")}
    assert {row["network"] for row in rows} == {"MobileNetV3-large-0.35x", "RDPNet-0.75x"}
    assert set(traced) == {"RDPNet", "TimmBackbone"}
    for form in traced.values():
        if name == "table6":
            assert_finds_as_many_as_any_other(form)
        graph = onnx.load_from_string(form.onnx).graph
        assert tuple(output.name for output in graph.output) == ENDS[name]
        assert not any(node.op_type == "BatchNormalization" for node in graph.node)


@pytest.mark.parametrize("name", ENDS)
def test_the_configs_of_all_whole_networks_are_there(name):
    table = tables.TABLES[name]
    assert [comparison.reference for comparison in table.whole] == [each.reference for each in table.comparisons]
    for whole, backbones in zip(table.whole, table.comparisons):
        assert [entry.name for entry in whole.entries] == [entry.name for entry in backbones.entries]
    configs = Path(__file__).parents[1] / "mm_configs"
    for kind in ("faster_rcnn", "deeplabv3plus"):
        assert all((configs / path.format(kind)).is_file() for path in tables._CONFIGS.values())


@pytest.mark.parametrize(
    ("backends", "installed", "reason"),
    [(["eager"], True, "they run on onnxruntime and openvino"), (run.BACKENDS, False, "rdpnet-timm[openmmlab]")],
)
def test_what_whole_networks_need_is_said_where_they_are_left_out(backends, installed, reason, monkeypatch):
    monkeypatch.setattr(run, "is_installed", lambda package: installed)
    table = tables.TABLES["table6"]
    jobs, note = run._jobs(table, [(backend, "float32") for backend in backends])
    assert [comparison for comparison, _ in jobs] == list(table.comparisons)
    assert reason in note


def test_what_was_measured_of_files_is_on_the_screen_before_it_is_written(tmp_path, monkeypatch, capsys):
    from rdpnet_timm.bench import whole_networks
    from rdpnet_timm.openmmlab.agreement import Agreement

    row = whole_networks.Row("cells.onnx", "OpenVINO", 0.5, Agreement(2, 20, 0.9, 1.0, 0.8, 0.0), 7.0)
    measured = []
    monkeypatch.setattr(whole_networks, "compare", lambda *args: measured.append(args) or [row])
    words = ["bench", "whole-networks", "config.py", "cells.onnx", "--checkpoint", "cells.pth", "-o"]
    assert main([*words, "/proc/self/rows.json"]) == 1 and not measured
    assert "cannot write to '/proc/self' (" in capsys.readouterr().err
    assert main([*words, str(tmp_path)]) == 1 and measured  # which is a folder
    assert "cells.onnx" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "made" / "rows.json")]) == 0
    assert json.loads((tmp_path / "made" / "rows.json").read_text())[0]["score"] == 0.5
