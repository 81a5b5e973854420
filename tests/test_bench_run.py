"""How the command measures, and what it leaves when something is wrong."""

import csv
import importlib.util
import json

import pytest
import torch
from small_results import plan, result_of
from torch import nn

from rdpnet_timm import cli
from rdpnet_timm.bench import backends, report, run
from rdpnet_timm.bench.tables import DEPLOY, TABLES
from rdpnet_timm.measure.timing import Interrupted, Measurement, measure


def test_all_runtimes_in_all_precisions_take_turns(tmp_path, monkeypatch):
    together = []

    def measured(functions, *args, **kwargs):
        together.append({name.split(":")[0] for name in functions})
        return measure(functions, *args, **kwargs)

    monkeypatch.setattr(report, "measure", measured)
    names = ("eager", "onnxruntime", "openvino")
    run.run(["table8"], tmp_path, names, quick=True, precisions=["float32", "int8"])
    pairs = {f"{name}, {precision}" for name in names[1:] for precision in ("float32", "int8")}
    assert together == [{"eager, float32"}, pairs]
    result = json.loads((tmp_path / "table8.json").read_text())
    assert [(one["backend"], one["precision"]) for one in result["runs"]][1:] == [
        tuple(pair.split(", ")) for pair in sorted(pairs)
    ]
    for one in result["runs"]:
        assert set(one["measurement"]["samples"]) == set(one["contestants"])
        ratios = [each["snr_db"] for each in one["contestants"].values()]
        if one["backend"] == "eager":  # which the others are compared with
            assert ratios == [None] * len(ratios)
        else:
            assert all((ratio > 60) is (one["precision"] == "float32") for ratio in ratios), ratios


@pytest.mark.parametrize("backend", ["eager", "onnxruntime"])
def test_a_network_whose_outputs_are_not_finite_is_no_contestant(backend):
    layer = torch.nn.Conv2d(3, 2, 1)
    torch.nn.init.constant_(layer.weight, torch.nan)
    form = backends.Form(torch.nn.Sequential(layer, torch.nn.Flatten()), torch.ones(1, 3, 4, 4))
    functions, _, failures = run._prepare(backend, "float32", 1, {"broken": run._Contestant(form, {})})
    assert not functions and failures == {"broken": "FloatingPointError: its outputs are not finite"}


def test_errors_say_what_was_expected(tmp_path, capsys, monkeypatch):
    def error_of(*args):
        assert cli.main(["bench", *args]) == 1
        return capsys.readouterr().err

    out = ["-o", str(tmp_path / "out")]
    assert "there is no table 'table2'; choose from table1, table3" in error_of("table2", *out)
    assert "there is no backend 'tflite'; choose from eager" in error_of("table8", "--backend", "tflite", *out)
    assert "there is no precision 'fp8'; choose from float32" in error_of("table8", "--precision", "fp8", *out)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    assert "choose another folder" in error_of("table8", "-o", str(tmp_path / "file" / "out"))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    assert 'pip install "rdpnet-timm[bench]"' in error_of("table8", "--backend", "openvino", *out)


def test_what_no_table_can_do_is_said_before_the_first_and_left_out_of_all(tmp_path, capsys):
    assert plan(["all"], tmp_path) == list(run.NAMES)
    others = [name for name in run.NAMES if name not in ("training", "throughput")]
    assert plan(["all"], tmp_path, ["onnxruntime"], ["int8"]) == [*others, "throughput"]
    assert "training is left out: training is measured in float32" in capsys.readouterr().out
    assert plan(["all"], tmp_path, ["eager"]) == [*others, "training"]
    assert "throughput is left out: throughput is measured on onnxruntime and openvino" in capsys.readouterr().out
    with pytest.raises(ValueError, match="training is measured in float32"):
        plan(["table8", "training"], tmp_path, ["onnxruntime"], ["int8"])
    with pytest.raises(ValueError, match="throughput is measured on onnxruntime and openvino"):
        plan(["table8", "throughput"], tmp_path, ["eager"])


def test_training_needs_no_runtime(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else find_spec(name))
    assert plan(["training"], tmp_path) == ["training"]
    with pytest.raises(ImportError, match="the backend onnxruntime needs onnx"):
        plan(["training", "table8"], tmp_path)


def test_a_complete_result_is_never_replaced(tmp_path, capsys):
    path = tmp_path / "table5.json"
    for text in ('{"table": "tab', "[]", '{"complete": false, "quick": false}', '{"complete": true, "quick": true}'):
        path.write_text(text)
        assert plan(["table5"], tmp_path) == ["table5"]
    report.write(result_of(([20.0], [10.0])), tmp_path)
    before = path.read_bytes()
    assert cli.main(["bench", "table5", "--quick", "--backend", "eager", "-o", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"'{path}' is a complete result: choose another folder, or move it away" in error
    assert path.read_bytes() == before
    assert plan(["all"], tmp_path) == [name for name in run.NAMES if name != "table5"]  # what is missing is measured
    assert f"table5 is left out: '{path}' is a complete result" in capsys.readouterr().out
    for name in run.NAMES:
        (tmp_path / f"{name}.json").write_bytes(before)
    with pytest.raises(ValueError, match="nothing to measure, all tables are left out"):
        plan(["all"], tmp_path)


def test_an_interrupted_command_keeps_what_it_has_and_says_so(tmp_path, capsys, monkeypatch):
    calls = []

    def interrupted_in_the_second_run(functions, rounds, *args, **kwargs):
        calls.append(1)
        result = measure(functions, 3, *args, **kwargs)
        if len(calls) == 2:
            kept = {name: times[:2] for name, times in result.samples.items()}
            raise Interrupted(Measurement(kept, 3, 1, 0)) from SystemExit(143)  # of a SIGTERM
        return result

    monkeypatch.setattr(report, "measure", interrupted_in_the_second_run)
    arguments = ["bench", "table8", "--quick", "--backend", "eager", "eager", "onnxruntime", "-o", str(tmp_path)]
    assert cli.main([*arguments, "--threads", "1", "1"]) == 143
    assert f"interrupted: 3 runs of table8 were measured, wholly or in part, and are kept in {tmp_path}" in (
        capsys.readouterr().out
    )
    result = json.loads((tmp_path / "table8.json").read_text())
    lengths = [{len(times) for times in one["measurement"]["samples"].values()} for one in result["runs"]]
    assert lengths == [{3}, {2}, {2}] and result["complete"] is False
    assert "interrupted" in (tmp_path / "table8.md").read_text()


def test_a_table_that_fails_leaves_the_others_theirs_and_the_command_fails(tmp_path, capsys, monkeypatch):
    prepare, measured = run._prepare, []

    def prepare_one_table(backend, precision, threads, contestants):
        functions, facts, failures = prepare(backend, precision, threads, contestants)
        measured.append(backend)
        return (functions, facts, failures) if len(measured) > 1 else ({}, {}, dict.fromkeys(contestants, "no memory"))

    monkeypatch.setattr(run, "_prepare", prepare_one_table)
    arguments = ["bench", "figure2", "table8", "--quick", "--backend", "eager", "-o", str(tmp_path)]
    assert cli.main(arguments) == 1
    shown = capsys.readouterr()
    assert "figure2 ended early: " in shown.out and "failed on eager in float32: no memory" in shown.out
    assert "figure2 ended early: see above" in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table8.csv", "table8.json", "table8.md"]
    assert json.loads((tmp_path / "table8.json").read_text())["complete"]


@pytest.mark.parametrize("table", ["table8", "figure2"])  # a table, and a sweep
@pytest.mark.parametrize("complete_runs", [0, 1])
def test_an_interruption_before_a_runs_first_round_keeps_the_runs_before_it(
    table, complete_runs, tmp_path, capsys, monkeypatch
):
    entries = run._quick_entries(TABLES[table].comparisons[0])
    form = backends.Form(nn.Flatten(), torch.randn(1, 3, 8, 8))
    monkeypatch.setattr(
        run,
        "_build",
        lambda *_: {f"{each.name}, {DEPLOY}": run._Contestant(form, report.entry_facts(each, DEPLOY, 1, 1))
                    for each in entries},
    )  # fmt: skip
    before = [None] * complete_runs

    def interrupted(functions, *args, **kwargs):
        if before:
            before.pop()
            return measure(functions, *args, **kwargs)
        raise Interrupted(Measurement({name: [] for name in functions}, 2, 1, 0))

    monkeypatch.setattr(report, "measure", interrupted)
    arguments = ["bench", table, "--quick", "--backend", "eager", "onnxruntime", "-o", str(tmp_path)]
    assert cli.main(arguments) == 130
    shown, written = capsys.readouterr().out, sorted(path.suffix for path in tmp_path.iterdir())
    if complete_runs:
        assert f"interrupted: 1 runs of {table} were measured" in shown
        assert written == [".csv", ".json", ".md", *[".png"] * (table == "figure2")]
        result = json.loads((tmp_path / f"{table}.json").read_text())
        assert [one["backend"] for one in result["runs"]] == ["eager"] and not result["complete"]
    else:
        assert f"interrupted: no round of {table} was complete, nothing of it is kept" in shown and not written


@pytest.mark.slow
@pytest.mark.parametrize("name", run.NAMES)
def test_a_quick_run_writes_the_table(name, tmp_path):
    run.run([name], tmp_path, quick=True, command=f"rdpnet bench {name} --quick")
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["complete"] and result["quick"] and result["machine"]["cpu"]
    with open(tmp_path / f"{name}.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    expected = {"training": {"cpu"}, "throughput": {"onnxruntime", "openvino"}}
    assert {line["backend"] for line in lines} == expected.get(name, {"eager", "onnxruntime", "openvino"})
    assert name == "training" or {"float32", "int8"} <= {line["precision"] for line in lines}
    assert all(float(line["min_ms"]) > 0 and line["rounds"] == "2" for line in lines)
    for one in result["runs"]:
        samples = one["measurement"]["samples"]
        assert samples.keys() == one["contestants"].keys() and not one["failures"]
        assert all(len(times) == 2 for times in samples.values())
        assert len(one["ratios"]) == len(samples) * (len(samples) - 1) // 2
    assert "not to be quoted" in (tmp_path / f"{name}.md").read_text()
    has_picture = name in ("figure2", "modern", "scaling", "table5")
    assert [path.stem for path in tmp_path.glob("*.png")] == [name] * has_picture
    assert not list(tmp_path.glob(".*"))
