import csv
import importlib.util
import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import timm
import torch
from matplotlib.transforms import Bbox
from packaging.version import Version
from torch import nn
from torchvision import models as torchvision_models

from rdpnet_timm import cli
from rdpnet_timm.bench import backends, docs, isa, peers, plots, report, run, throughput, training
from rdpnet_timm.bench.plots import pareto_front
from rdpnet_timm.bench.tables import DEPLOY, PAPER_DEPLOY, TABLES, TRAIN
from rdpnet_timm.deploy import formats
from rdpnet_timm.deploy.formats import to_onnx
from rdpnet_timm.measure import machine
from rdpnet_timm.measure.forms import deploy_form, fold_norms, settle_norms
from rdpnet_timm.measure.published import IMAGENET, PAPER
from rdpnet_timm.measure.size import count
from rdpnet_timm.measure.timing import Interrupted, Measurement, measure
from rdpnet_timm.signals import handled

ENTRIES = {
    (name, entry.name): entry for name, table in TABLES.items() for c in table.comparisons for entry in c.entries
}


def outputs(model, x):
    with torch.no_grad():
        return model.eval()(x)


# What is compared


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "mobilenetv2_100"])
def test_parameters_and_macs_of_peers_are_those_torchvision_publishes(name):
    weights = torchvision_models.get_model_weights(name.replace("v2_100", "_v2").replace("netv2", "net_v2")).DEFAULT
    with torch.device("meta"):
        model = timm.create_model(name)
    params, macs = count(model, (3, 224, 224))
    assert params == weights.meta["num_params"]
    assert macs / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.006)


@pytest.mark.parametrize("width", [0.25, 0.75, 1.5])
def test_macs_of_the_deploy_form_are_those_of_the_formula(width):
    c0, c1, c2, c3, c4 = (int(c) for c in (min(64, 64 * width), 64 * width, 128 * width, 256 * width, 1280 * width))
    layers = [(c0, c1, 56), (c1, c2, 28), *[(c2, c2, 28)] * 3, (c2, c3, 14), *[(c3, c3, 14)] * 13, (c3, c4, 7)]
    expected = 27 * c0 * 112**2 + sum((9 * a + a * b) * size**2 for a, b, size in layers) + c4 * 1000
    model = timm.create_model(f"rdpnet_{round(100 * width):03}", inference_mode=True)
    assert count(model, (3, 224, 224)).macs == expected


def test_every_network_of_the_papers_tables_is_measured_in_the_same_table():
    for name, paper in PAPER.items():
        assert set(paper.rows) == {entry for table, entry in ENTRIES if table == name} or name == "table6"
        assert all(len(row) == len(paper.columns) for row in paper.rows.values())


def test_every_reference_is_ours_or_a_straight_stack_and_stands_in_its_comparison():
    for table in TABLES.values():
        for comparison in table.comparisons:
            assert comparison.reference in [entry.name for entry in comparison.entries]
            assert "RDPNet" in comparison.reference or "straight" in comparison.reference


def test_every_published_accuracy_names_a_timm_model_its_source_and_its_recipe():
    names = set(timm.list_models())
    for name, figure in IMAGENET.items():
        assert name in names or Version(timm.__version__) < Version("1.0.31")  # an older timm lacks some
        assert figure.source and figure.recipe and 50 < figure.top1 < 90
        assert figure.source in TABLES["modern"].note and figure.recipe in TABLES["modern"].note


@pytest.mark.parametrize(
    "name", ["MobileNetV1-0.25x", "MobileNetV2-0.5x", "MobileNetV3-small-0.75x", "MobileNetV3-large-1.0x"]
)
def test_cifar_forms_end_in_a_map_of_4x4_with_the_papers_macs(name):
    model = ENTRIES["table4", name].build()
    assert outputs(peers.Trunk(model), torch.zeros(1, 3, 32, 32)).shape[2:] == (4, 4)
    assert count(model, (3, 32, 32)).macs / 1e6 == pytest.approx(PAPER["table4"].rows[name][1], rel=0.1)


def test_networks_that_are_trained_side_by_side_end_in_maps_of_the_same_size():
    for entry in training.entries(training.Setting(1.0, (3, 32, 32), 16)):
        assert outputs(peers.Trunk(entry.build()), torch.zeros(1, 3, 32, 32)).shape[2:] == (4, 4), entry.name


@pytest.mark.parametrize("name", ["MobileNetV2-0.5x", "MobileNetV3-large-0.35x", "RDPNet-0.75x"])
def test_segmentors_trunks_have_an_output_stride_of_16(name):
    assert outputs(ENTRIES["table7", name].build(), torch.zeros(1, 3, 64, 64)).shape[2:] == (4, 4)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("per_block", "shortcuts"), [(0, 0), (2, 3), (3, 2)])
def test_stacks_differ_in_their_shortcuts_alone(per_block, shortcuts, separable):
    model = peers.stack(7, per_block, 8, separable)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 7 * (1 + separable)
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == len(convs)
    assert sum(isinstance(module, peers._Residual) for module in model.modules()) == shortcuts
    x = torch.randn(1, 8, 5, 5)
    assert outputs(model, x).shape == x.shape


# In which forms


@pytest.mark.parametrize("name", ["mobilenetv2_050", "mobileone_s0", "repghostnet_050", "starnet_s050", "shvit_s1"])
def test_the_deploy_form_of_a_peer_is_exact_and_has_no_norm_behind_a_convolution(name):
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model = settle_norms(timm.create_model(name).double(), x)
    deployed = deploy_form(model, x)
    assert torch.allclose(outputs(deployed, x), outputs(model, x), rtol=0, atol=1e-10)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert left == (1 if name.startswith("starnet") else 0)  # starnet's last norm stands behind a sum


def test_a_peer_that_merges_its_branches_in_float32_has_a_deploy_form_as_exact_as_that():
    x = torch.randn(2, 3, 64, 64)
    model = settle_norms(timm.create_model("repvit_m0_9"), x)
    expected = outputs(model.double(), x.double())
    actual = outputs(deploy_form(model.float(), x).double(), x.double())
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_norm_that_does_not_read_a_convolution_stays():
    for between in (nn.ReLU(inplace=True), nn.ReLU(), nn.AvgPool2d(2)):
        model = fold_norms(nn.Sequential(nn.Conv2d(3, 4, 1), between, nn.BatchNorm2d(4)), torch.randn(2, 3, 4, 4))
        assert isinstance(model[2], nn.BatchNorm2d)


def test_a_wrong_deploy_form_is_an_error():
    class ReadsTwice(nn.Module):  # the convolution's output goes to the norm and past it
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) + x

    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(RuntimeError, match="not the network as trained: outputs differ"):
        deploy_form(settle_norms(ReadsTwice(), x), x)


def test_a_network_without_norms_is_its_own_deploy_form():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    assert deploy_form(model, torch.randn(1, 3, 4, 4)) is model


def test_settled_norms_have_the_statistics_of_the_images():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1), nn.Conv2d(3, 4, 1))
    x = 5 + 2 * torch.randn(4, 3, 8, 8)
    settle_norms(model, x)
    assert torch.allclose(model[0].running_mean, x.mean((0, 2, 3)))
    assert torch.allclose(model[0].running_var, x.var((0, 2, 3)))
    assert model[0].momentum == 0.1 and not model[0].training


def test_the_papers_deploy_form_keeps_shuffle_and_stride_and_computes_the_same():
    table = TABLES["table8"]
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    trained = settle_norms(ENTRIES["table8", "no identity, shuffle (RDPNet)"].build().double(), x.repeat(2, 1, 1, 1))
    papers, ours = (table.forms[form](trained, x) for form in (PAPER_DEPLOY, DEPLOY))
    assert table.forms[TRAIN](trained, x) is trained
    assert torch.allclose(outputs(papers, x), outputs(trained, x), atol=1e-10)
    assert torch.allclose(outputs(ours, x), outputs(trained, x), atol=1e-10)
    assert sum(type(module).__name__ == "ChannelShuffle" for module in papers.modules()) == 20
    assert sum(type(module).__name__ == "ChannelShuffle" for module in ours.modules()) == 0
    assert count(papers.float(), (3, 32, 32)).macs > count(ours.float(), (3, 32, 32)).macs


# On which backends


@pytest.fixture
def form():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return backends.Form(model, torch.randn(1, 3, 12, 12))


def test_the_runtimes_compute_what_pytorch_computes(form):
    expected = outputs(form.module, form.x)
    assert torch.equal(backends.prepare("eager", form, 1)(), expected)
    onnxruntime, openvino = (backends.prepare(name, form, 1)() for name in ("onnxruntime", "openvino"))
    assert torch.allclose(torch.from_numpy(onnxruntime[0]), expected, atol=1e-5)
    assert torch.allclose(torch.from_numpy(openvino[0]), expected, atol=1e-5)


def test_int8_of_the_runtimes_resembles_float(form):
    for name in ("onnxruntime", "openvino"):
        int8 = backends.signal_to_noise(form, backends.runner(name, form, 1, "int8"))
        assert 20 < int8 < 60 < backends.signal_to_noise(form, backends.runner(name, form, 1))


def test_signal_to_noise_is_the_ratio_of_powers_in_db(form):
    images, expected = form.held_out
    position = {image.tobytes(): index for index, image in enumerate(images)}
    tenth = backends.signal_to_noise(form, lambda image: 1.1 * expected[position[image.tobytes()]])
    assert tenth == pytest.approx(20)  # a tenth of the amplitude, a hundredth of the power
    assert backends.signal_to_noise(form, lambda image: 0 * expected[:1]) == pytest.approx(0)
    expected[:] = 0
    assert backends.signal_to_noise(form, lambda image: expected[:1]) == 300  # no difference, and no power either


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_wrong_and_its_figure_is_json(value, form):
    expected = form.held_out[1]
    snr = backends.signal_to_noise(form, lambda image: 0 * expected[:1] + value)
    assert report.is_wrong({"snr_db": snr}) and json.loads(json.dumps(snr, allow_nan=False)) < 0
    assert report.best([{"snr_db": snr, "min_ms": 1.0}, {"snr_db": float("nan"), "min_ms": 1.0}]) is None


def test_ranges_are_not_taken_from_the_images_that_judge_them(form):
    calibration, (held_out, _) = form.calibration, form.held_out
    assert not any((one == other).all() for one in calibration for other in held_out)


def test_precisions_are_those_that_backend_and_cpu_have(monkeypatch):
    monkeypatch.setattr(backends, "openvino_has_bfloat16", lambda: False)
    names = ("eager", "onnxruntime", "openvino")
    without = [("eager", "float32"), ("onnxruntime", "float32"), ("onnxruntime", "int8"), ("openvino", "float32"),
               ("openvino", "int8")]  # fmt: skip
    assert backends.available(names, backends.PRECISIONS) == without
    with pytest.raises(ValueError, match="eager cannot compute in int8 on this CPU: add float32"):
        backends.available(["eager"], ["int8"])
    monkeypatch.setattr(backends, "openvino_has_bfloat16", lambda: True)
    assert set(backends.available(names, backends.PRECISIONS)) - set(without) == {("openvino", "bfloat16")}
    monkeypatch.setattr(backends, "openvino_has_bfloat16", lambda: pytest.fail("nobody wants to know"))
    assert backends.available(["onnxruntime"], backends.PRECISIONS) == without[1:3]


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize("offered", [True, False])
def test_bfloat16_is_openvinos_where_the_cpu_multiplies_it_and_openvino_offers_it(cpu, offered, monkeypatch):
    class Core:
        def get_property(self, device, name):
            return ["FP32", "INT8", *["BF16"] * offered]

    monkeypatch.setattr(formats, "has_bfloat16", lambda: cpu)
    monkeypatch.setattr(formats, "openvino_core", Core)
    assert formats.openvino_has_bfloat16() is (cpu and offered)
    assert (("openvino", "bfloat16") in backends.available(["openvino"], backends.PRECISIONS)) is (cpu and offered)


def test_a_backend_of_one_pool_is_given_one_number_of_threads(monkeypatch):
    monkeypatch.setitem(backends.BACKENDS, "executorch", backends.Backend())
    backends.require(["onnxruntime", "executorch"], [2, 2])
    backends.require(["onnxruntime"], [1, 2])
    with pytest.raises(ValueError, match="executorch has one number of threads in a process, got --threads 1 2: run"):
        backends.require(["onnxruntime", "executorch"], [1, 2])


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


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_runtime_that_computes_something_else_is_wrong_in_any_precision(precision, form, monkeypatch):
    start = backends._onnxruntime

    def mirrored(*args):
        run = start(*args)
        return lambda images: run(images)[..., ::-1]

    def ratio():
        return run._prepare("onnxruntime", precision, 1, {"a": run._Contestant(form, {})})[1]["a"]["snr_db"]

    assert not report._noise({"snr_db": ratio()})
    monkeypatch.setattr(backends, "_onnxruntime", mirrored)
    assert "dB" in report._noise({"snr_db": ratio()})


# Held to a CPU class


def test_a_class_above_the_cpus_own_is_left_out_or_an_error(monkeypatch, capsys):
    monkeypatch.setattr(isa, "cpu_flags", lambda: frozenset({"sse2", "avx2", "avx_vnni"}))
    assert isa.runnable(["avx2", "amx", "avx2_vnni"]) == ["avx2", "avx2_vnni"]
    assert "amx: left out, this CPU has avx2, avx2_vnni only" in capsys.readouterr().out
    with pytest.raises(ValueError, match="this CPU has avx2, avx2_vnni, and cannot be held to amx"):
        isa.runnable(["amx"])
    with pytest.raises(ValueError, match="there is no CPU class 'neon'; choose from avx2, avx2_vnni"):
        isa.runnable(["neon"])


def test_each_class_has_a_process_and_a_folder_of_its_own(tmp_path, monkeypatch):
    calls = []

    def run_process(command, env):
        calls.append((command, env["ONEDNN_MAX_CPU_ISA"]))
        return 0

    recorded = []
    monkeypatch.setattr(run, "run", lambda *args: recorded.append(args[6]))
    monkeypatch.setattr(isa, "cpu_flags", lambda: frozenset({"avx2", "amx_int8"}))
    monkeypatch.setattr(isa, "_run_to_its_end", run_process)
    typed = "rdpnet bench table5 --threads 1 --isa avx2 amx -o some/where"
    monkeypatch.setattr("sys.argv", typed.split())
    assert cli.main(["bench", "table5", "--isa", "avx2", "amx", "-o", str(tmp_path)]) == 0
    assert [limit for _, limit in calls] == ["AVX2", "AVX512_CORE_AMX"]
    for (command, _), name in zip(calls, ("avx2", "amx")):
        assert command[command.index("--backend") :] == ["--backend", "openvino", "-o", str(tmp_path / name)]
        monkeypatch.setattr("sys.argv", command[2:])
        assert cli.main(command[3:]) == 0
    assert recorded == [typed, typed]


def test_all_tables_of_a_class_go_on_after_an_interruption_but_for_training(tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(isa, "cpu_flags", lambda: frozenset({"avx2"}))

    def run_process(command, env):
        commands.append(command)
        return 0

    monkeypatch.setattr(isa, "_run_to_its_end", run_process)
    assert cli.main(["bench", "all", "--isa", "avx2", "-o", str(tmp_path)]) == 0
    assert commands[0][3:6] == ["bench", "all", "--precision"]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    (tmp_path / "table5.json").write_text('{"complete": true, "quick": false}')
    assert plan(["all"], tmp_path) == [name for name in run.NAMES if name not in ("table5", "training")]
    assert "training is left out: training cannot be held to AVX2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="leave --isa away"):
        plan(["training"], tmp_path)


@pytest.mark.parametrize("backend", ["eager", "onnxruntime"])
def test_a_network_whose_outputs_are_not_finite_is_no_contestant(backend):
    layer = torch.nn.Conv2d(3, 2, 1)
    torch.nn.init.constant_(layer.weight, torch.nan)
    form = backends.Form(torch.nn.Sequential(layer, torch.nn.Flatten()), torch.ones(1, 3, 4, 4))
    functions, _, failures = run._prepare(backend, "float32", 1, {"broken": run._Contestant(form, {})})
    assert not functions and failures == {"broken": "FloatingPointError: its outputs are not finite"}


def test_a_class_that_fails_leaves_the_others_theirs(tmp_path, monkeypatch):
    limits = []

    def run_process(command, env):
        limits.append(env["ONEDNN_MAX_CPU_ISA"])
        return int(limits[-1] == "AVX2")

    monkeypatch.setattr(isa, "cpu_flags", lambda: frozenset({"avx2", "amx_int8"}))
    monkeypatch.setattr(isa, "_run_to_its_end", run_process)
    with pytest.raises(RuntimeError, match=r"^the run held to avx2 ended with status 1: see above$"):
        isa.run_classes(["avx2", "amx", "avx2"], ["table5"], tmp_path)
    assert limits == ["AVX2", "AVX512_CORE_AMX"]


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)],
)
def test_an_interrupted_class_writes_what_it_has_before_the_command_ends(number, error, tmp_path):
    written = tmp_path / "table5.png"
    child = f"""if True:
        import os, pathlib, signal, time
        from rdpnet_timm.cli import _end
        from rdpnet_timm.signals import handled

        signal.signal({number.value}, signal.default_int_handler)
        with handled(_end, "SIGTERM", "SIGHUP"):
            try:
                os.kill(os.getppid(), {number.value})
                if {number.value} != signal.SIGTERM:  # a terminal's go to both
                    os.kill(os.getpid(), {number.value})
                time.sleep(20)
            finally:
                time.sleep(0.8)  # as long as a picture takes, at the least
                pathlib.Path({str(written)!r}).touch()
        """
    former = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGHUP)}
    for each in former:
        signal.signal(each, signal.default_int_handler)  # whatever they were where the tests run
    try:
        with pytest.raises(error), handled(cli._end, "SIGTERM", "SIGHUP"):
            isa._run_to_its_end([sys.executable, "-c", child], dict(os.environ))
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)
    assert written.exists()


def test_kernels_are_kept_by_comparison_and_asked_of_openvino_alone(monkeypatch):
    monkeypatch.setattr(isa, "kernels", lambda form, precision: [f"jit_avx2_{form}_{precision}"])
    result = {"machine": {"isa_limit": "avx2"}}
    pairs = [("onnxruntime", "int8"), ("openvino", "float32")]
    isa.keep_kernels(result, "Group A", "a", pairs)
    isa.keep_kernels(result, "Group B", "b", pairs)
    kept = {"Group A": {"float32": ["jit_avx2_a_float32"]}, "Group B": {"float32": ["jit_avx2_b_float32"]}}
    assert result["kernels"] == kept
    monkeypatch.setattr(isa, "kernels", lambda form, precision: pytest.fail("OpenVINO was asked"))
    isa.keep_kernels(result, "Group C", "c", [("onnxruntime", "float32"), ("eager", "float32")])
    isa.keep_kernels({"machine": {"isa_limit": None}}, "Group A", "a", pairs)
    assert result["kernels"] == kept


def test_throughput_held_to_a_class_looks_at_its_kernels(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(throughput.isa, "keep_kernels", lambda result, mode, form, pairs: seen.append((mode, pairs)))
    monkeypatch.setattr(throughput, "measure_runs", lambda *args: None)
    result = {"quick": True, "runs": [], "machine": {"isa_limit": "AVX2"}}
    pairs = [("openvino", "float32")]
    throughput.measure_throughput(result, [*pairs, ("eager", "float32")], lambda *args: None, lambda: None)
    assert seen == [("streams", pairs), ("batch 8", pairs)]


@pytest.mark.parametrize(
    ("limit", "precision", "names", "right"),
    [
        ("AVX2", "int8", ["jit_avx2_I8"], True),
        ("AVX2", "int8", ["jit_avx2_I8", "brgconv_avx512_I8"], False),
        ("avx2", "int8", ["jit_avx2_I8", "brgconv_avx512_I8"], False),
        ("AVX512_CORE_VNNI", "int8", ["brgconv_avx512_I8", "jit_avx2_I8"], True),
        ("AVX512_CORE_VNNI", "int8", ["brgconv_avx512_amx_I8"], False),
        ("AVX512_CORE_AMX", "int8", ["brgconv_avx512_amx_I8", "brgconv_avx512_I8"], True),
        ("AVX512_CORE_AMX", "int8", ["brgconv_avx512_I8"], False),
        ("AVX512_CORE_AMX", "float32", ["brgconv_avx512_FP32"], True),
        ("AVX512_CORE_VNNI", "float32", ["ref_any_FP32"], False),
    ],
)
def test_kernels_are_of_the_class_they_are_held_to_or_the_run_fails(limit, precision, names, right, monkeypatch):
    monkeypatch.setattr(isa, "kernels", lambda form, precision: names)
    if right:
        assert isa.require_class(limit, None, [precision]) == {precision: names}
    else:
        with pytest.raises(RuntimeError, match=f"held to {limit}, and its convolutions run as"):
            isa.require_class(limit, None, [precision])


@pytest.mark.parametrize(
    ("flags", "limit", "crashes"),
    [("avx2 avx512f", "avx2", True), ("avx2 avx512f", "AVX2_VNNI", True), ("avx2", "AVX2", False)]
    + [("avx2 avx512f", limit, False) for limit in ("AVX512_CORE_VNNI", None)],
)
def test_openvino_crashes_where_avx512_is_held_to_avx2(flags, limit, crashes, monkeypatch):
    monkeypatch.setattr(isa, "cpu_flags", lambda: frozenset(flags.split()))
    assert ("EdgeNeXt-XXS" in isa.crashing(limit)) is crashes


def test_a_network_that_openvino_crashes_on_is_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(isa, "crashing", lambda limit: ("identity in PW, shuffle",))
    run.run(["table8"], tmp_path, ["openvino"], quick=True, precisions=["float32"])
    result = json.loads((tmp_path / "table8.json").read_text())
    networks = {each["name"] for one in result["runs"] for each in one["contestants"].values()}
    assert networks == {"no identity, shuffle (RDPNet)"} and "identity in PW, shuffle" in result["note"]


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in machine.cpu_flags(), reason="needs a CPU with AVX2")
def test_openvino_held_to_avx2_runs_avx2_kernels(tmp_path, capfd):
    arguments = ["bench", "table8", "--quick", "--precision", "float32", "int8", "--isa", "avx2", "-o", str(tmp_path)]
    assert cli.main(arguments) == 0, capfd.readouterr().err
    result = json.loads((tmp_path / "avx2" / "table8.json").read_text())
    assert result["machine"]["isa_limit"] == "AVX2" and {one["backend"] for one in result["runs"]} == {"openvino"}
    names = [name for each in result["kernels"].values() for kernels in each.values() for name in kernels]
    assert any("avx2" in name for name in names) and not any("avx512" in name or "amx" in name for name in names)
    assert "OpenVINO held to AVX2" in (tmp_path / "avx2" / "table8.md").read_text()


@pytest.mark.parametrize(
    ("flags", "limit", "vnni", "bfloat16"),
    [
        ("", None, False, False),  # Windows, or a Mac of Intel's: who knows
        ("sse2 avx2", None, False, False),
        ("sse2 avx2 avx_vnni", None, True, False),
        ("sse2 avx512_vnni amx_int8", None, True, False),
        ("sse2 avx512_vnni avx512_bf16", None, True, True),
        ("sse2 avx512_vnni avx512_bf16", "AVX2", False, False),
        ("sse2 avx512_vnni avx512_bf16 amx_bf16", "AVX512_CORE_VNNI", True, False),
        ("sse2 avx512_vnni avx512_bf16", "AVX512_CORE_BF16", True, True),
        ("asimd asimddp bf16", None, True, True),
    ],
)
def test_who_sums_int8_products_in_16_bits_and_who_multiplies_bfloat16(flags, limit, vnni, bfloat16, monkeypatch):
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64" if "asimd" in flags else "AMD64")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert (machine.has_vnni(), machine.has_bfloat16()) == (vnni, bfloat16)


@pytest.mark.parametrize(
    ("lscpu", "name"),
    [
        ("Vendor ID:   ARM\nModel name:   Neoverse-V1\n", "Neoverse-V1"),
        ("Vendor ID:   ARM\nModel name:   -\n", "aarch64, CPU implementer 0x41, part 0xd40"),
        (None, "aarch64, CPU implementer 0x41, part 0xd40"),
    ],
)
def test_an_arm_cpu_has_the_name_that_lscpu_knows_or_its_number(lscpu, name, monkeypatch):
    info = "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n\nprocessor\t: 1\n"

    def run_lscpu(command, **kwargs):
        if lscpu is None:
            raise FileNotFoundError(command[0])
        return machine.subprocess.CompletedProcess(command, 0, lscpu)

    monkeypatch.setattr(Path, "read_text", lambda path: info)
    monkeypatch.setattr(machine.subprocess, "run", run_lscpu)
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine._cpu_model() == name
    assert machine.cpu_flags() == {"fp", "asimd", "bf16"}


@pytest.mark.parametrize("knows", [True, False])
def test_a_mac_names_its_cpu(knows, monkeypatch):
    def sysctl(command, **kwargs):
        if not knows:
            raise machine.subprocess.CalledProcessError(1, command)
        return machine.subprocess.CompletedProcess(command, 0, "Apple M2\n")

    monkeypatch.setattr(machine, "_cpu_info", dict)
    monkeypatch.setattr(machine.subprocess, "run", sysctl)
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine.platform, "processor", lambda: "arm")
    assert machine._cpu_model() == ("Apple M2" if knows else "arm")


def test_the_cores_that_are_told_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.setattr(machine, "_CGROUP", Path("absent"))
    assert machine.describe()["cores"] == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "350000 100000\n"}, 3),  # a fourth would stand still half of the time
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_a_containers_quota_is_a_number_of_cores(files, expected, tmp_path, monkeypatch):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert machine.cores() == expected
    machine.require_threads(1, expected)
    with pytest.raises(ValueError, match=f"must be 1 to {expected}, the cores here, got {expected + 1}"):
        machine.require_threads(expected + 1)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
@pytest.mark.parametrize(("limit", "expected"), [("max\n", None), ("1048576\n", 2**20)])
def test_memory_is_the_machines_or_a_containers_limit(limit, expected, monkeypatch):
    whole = int(Path("/proc/meminfo").read_text().split()[1]) * 1024  # MemTotal, in kB
    monkeypatch.setattr(Path, "read_text", lambda path: limit)
    assert machine.memory() == (expected or whole)


def test_the_onnx_model_that_is_measured_is_the_one_that_is_exported(tmp_path):
    module, x = peers.rdpnet(0.25, inference_mode=True).eval(), torch.randn(1, 3, 32, 32)  # its biases are equal
    to_onnx(module, x, tmp_path / "exported.onnx")
    assert backends.Form(module, x).onnx == (tmp_path / "exported.onnx").read_bytes()


@pytest.mark.slow
def test_compiled_networks_compute_what_pytorch_computes(form):
    assert torch.allclose(backends.prepare("compile", form, 1)(), outputs(form.module, form.x), atol=1e-5)


@pytest.mark.slow
def test_compiled_networks_have_their_weights_frozen():
    module, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval(), torch.randn(1, 3, 8, 8)
    call, expected = backends.compiled(module, x), outputs(module, x)
    nn.init.zeros_(module[0].weight)
    assert torch.allclose(call(), expected, atol=1e-5)


# What training costs


def test_single_branches_leave_the_convolutions_of_the_deploy_form():
    single = training.entries(training.Setting(0.25, (3, 32, 32), 16))[0].build()
    deployed = peers.rdpnet(0.25, strides=(1, 1, 2, 2, 2), inference_mode=True)
    kernels = [
        sorted(tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Conv2d))
        for model in (single, deployed)
    ]
    assert kernels[0] == kernels[1]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in single.modules()) == 41


def test_mobileone_at_224_is_itself_without_the_convolutions_that_crash():
    ours, x = training.entries(training.Setting(1.0, (3, 224, 224), 16))[-1].build(), torch.randn(2, 3, 64, 64)
    theirs = peers.timm_model("mobileone_s0")
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    strided = [module for module in ours.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)]
    assert all(
        type(module) is not nn.Conv2d for module in strided if module.in_channels < 16 and module.stride > (1, 1)
    )


def test_settings_of_training_are_selected_by_width_size_and_batch():
    assert training.select() == training.SETTINGS
    assert training.select([0.25], [32], [128]) == (training.Setting(0.25, (3, 32, 32), 128),)
    assert {each.batch for each in training.select(sizes=[32], batches=[16, 32])} == {16, 32}
    with pytest.raises(ValueError, match=r"widths any, sizes \[224\], batches \[128\]; there are: 32 pixels, batch 16"):
        training.select(sizes=[224], batches=[128])


def test_training_is_measured_in_the_settings_and_precisions_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_precisions", lambda device: [torch.float32, torch.bfloat16])
    monkeypatch.setattr(training, "entries", lambda setting, device: built.append(setting) or [])
    built, runs = [], []
    monkeypatch.setattr(training, "measure_run", lambda result, steps, turn, **facts: runs.append(facts))
    arguments = [
        "bench",
        "training",
        "--widths",
        "1.0",
        "--sizes",
        "32",
        "--precision",
        "bfloat16",
        "-o",
        str(tmp_path),
    ]
    assert cli.main(arguments) == 0
    assert [(each.width, each.batch) for each in built] == [(1.0, 16), (1.0, 32), (1.0, 128)]
    assert {(facts["precision"], facts["threads"]) for facts in runs} == {("bfloat16", 1)}


def test_a_fused_step_is_named_where_there_is_one(monkeypatch):
    setting = training.Setting(0.25, (3, 32, 32), 16)
    for device, fused in (("cpu", 1), ("cuda", 0)):
        assert sum("fused" in entry.name for entry in training.entries(setting, device)) == fused
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find_spec(name))
    with pytest.raises(ImportError, match="the table training needs numba: pip install"):
        training.require_training(["float32"])


def test_peak_memory_is_that_of_the_tensors_alive_together():
    def step():
        first = torch.empty(1_000_000)
        del first
        second, third = torch.empty(2_000_000), torch.empty(500_000)
        return second, third

    assert training.peak_of_step(step) == 10_000_000


def test_a_training_step_does_all_of_its_work_and_can_be_repeated():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(2, 3, 8, 8))
    before, steps = model[0].weight.clone(), model[1].num_batches_tracked.item()
    step = training.training_step(model, 2, (3, 8, 8))
    step(), step()
    assert model[1].num_batches_tracked.item() == steps + 2
    assert all(parameter.grad.abs().max() > 0 for parameter in (model[0].weight, model[3].weight))
    assert torch.equal(model[0].weight, before)  # the batch is not learnt


# What comes out


def result_of(samples, complete=True, table="table5"):
    """A result of one eager run of two networks of Table 5, the reference the second; each of ``samples`` six times."""
    samples = [times * 6 for times in samples]
    names = {"MobileNetV2-0.5x": 1, "RDPNet-0.75x": 2}
    facts = {
        f"{name}, {DEPLOY}": dict(
            name=name, form=DEPLOY, size=[3, 224, 224], params=number * 10**6, macs=number * 10**8
        )
        for name, number in names.items()
    }
    measurement = Measurement(dict(zip(facts, samples)), rounds=len(samples[0]), warmup=0, seed=0, load_after=50.0)
    one = dict(comparison="Group A", reference=f"RDPNet-0.75x, {DEPLOY}", backend="eager", threads=1, failures={})
    return {
        "table": table,
        "title": "Title",
        "note": "A note.",
        "complete": complete,
        "quick": False,
        "rounds": 3,
        "command": "rdpnet bench table5",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "A CPU", "cores": 2, "capability": "AVX2", "gpu": None, "versions": {"torch": "2.0"}},
        "runs": [{**one, "contestants": facts, "measurement": measurement.to_dict()}],
    }


def test_markdown_puts_the_papers_figures_and_factors_beside_ours():
    text = report.markdown(result_of(([20.0, 21.0, 22.0], [10.0, 10.0, 10.0])))
    assert "| MobileNetV2-0.5x | 1.00 | 100 | 65.03 | 85.72 | 38.52 (2.07x) | 21.00 (2.10x) |" in text
    assert "| **RDPNet-0.75x** | 2.00 | 200 | 67.23 | 88.93 | 18.58 | 10.00 |" in text
    assert "2026-01-02, A CPU, 2 cores" in text and "torch 2.0" in text and "`rdpnet bench table5`" in text
    assert "other programs used up to 50 % of the machine before or after all runs" in text
    assert "interrupted" not in text and "too noisy" not in text


def test_markdown_says_where_two_contestants_cannot_be_ranked():
    text = report.markdown(result_of(([9.0, 12.0, 10.0], [10.0, 10.0, 10.0])))
    assert "10.00 (1.00x, tie)" in text
    assert "too noisy to rank (tie): " in text


def test_few_rounds_have_factors_and_no_verdict():
    result = result_of(([20.0], [10.0]))
    for times in result["runs"][0]["measurement"]["samples"].values():
        del times[2:]
    (row,) = (row for row in report.rows(result) if row["network"] == "MobileNetV2-0.5x")
    assert (row["ratio"], row["ratio_low"], row["ratio_high"], row["verdict"]) == (2, None, None, "tie")
    text = report.markdown(result)
    assert "20.00 (2.00x, tie)" in text and "none for want of 6 rounds" in text and "too noisy" not in text


def test_a_sweep_compares_curves_at_the_same_place():
    result = result_of(([20.0, 20.0], [10.0, 10.0]), table="scaling")
    facts = list(result["runs"][0]["contestants"].values())
    facts[0].update(x=0.5, series="b"), facts[1].update(x=0.5, series="a")
    result["runs"][0]["contestants"] = dict(reversed(result["runs"][0]["contestants"].items()))
    text = report.markdown(result)
    assert "|  | eager, 1 thread: a | eager, 1 thread: b |" in text and "| 0.5 | 10.00 | 20.00 (2.00x) |" in text


def test_an_unfinished_result_says_so():
    assert "interrupted" in report.markdown(result_of(([1.0], [1.0]), complete=False))


def test_a_page_for_each_result_and_its_picture(tmp_path):
    results, pages = tmp_path / "results", tmp_path / "pages"
    results.mkdir()
    with pytest.raises(FileNotFoundError, match="expected results of 'rdpnet bench'"):
        docs.update(results, pages)
    assert not pages.exists()
    report.write(result_of(([20.0, 21.0, 22.0], [10.0, 10.0, 10.0])), results)
    (results / "speed.json").write_text("{}")  # of int8-speed, which is no table
    there = set(results.iterdir())
    assert docs.update(results, pages) == [pages / "table5.md"]
    assert set(results.iterdir()) == there
    text = (pages / "table5.md").read_text()
    assert text.startswith("# Title\n\n![Title](table5.png)\n\n2026-01-02, A CPU")
    assert "21.00 (2.10x)" in text and (pages / "table5.png").stat().st_size > 1000
    before = (results / "table5.md").read_bytes()
    with pytest.raises(ValueError, match=r"holds the results, whose own TABLE\.md have every figure"):
        docs.update(results, tmp_path / "pages" / ".." / "results")
    assert (results / "table5.md").read_bytes() == before
    (results / "scaling.json").write_text('{"table": "sca')
    with pytest.raises(ValueError, match=r"scaling\.json' is not a whole result"):
        docs.update(results, pages)
    for broken in ("{}", "[]", '{"title": "Scaling", "date": "2026-01-02"}'):
        (results / "scaling.json").write_text(broken)
        with pytest.raises(ValueError, match=r"scaling\.json' is not a whole result of 'rdpnet bench' \("):
            docs.update(results, pages)


@pytest.mark.parametrize("table", ["table5", "figure2"])  # latency against accuracy, and a sweep
def test_an_older_result_of_networks_that_are_no_longer_in_the_table_has_a_page_and_no_picture(table, tmp_path):
    text = json.dumps(result_of(([20.0, 21.0, 22.0], [10.0, 10.0, 10.0]), table=table))
    (tmp_path / f"{table}.json").write_text(text.replace("MobileNetV2", "Older").replace("RDPNet", "OldPNet"))
    assert docs.update(tmp_path, tmp_path / "pages") == [tmp_path / "pages" / f"{table}.md"]
    page = (tmp_path / "pages" / f"{table}.md").read_text()
    assert "Older-0.5x" in page and "21.00 (2.10x)" in page and "![" not in page
    assert not list((tmp_path / "pages").glob("*.png"))


def by_precision(int8_snr):
    """A result of one interleaved run: float32 10 and 8 ms, INT8 4 and 5 ms, the INT8 outputs as noisy as said."""
    result = result_of(([10.0, 10.0], [8.0, 8.0]))
    (run,) = result["runs"]
    quantised = json.loads(json.dumps(run))
    run.update(backend="onnxruntime", precision="float32")
    quantised.update(backend="openvino", precision="int8")
    for contestant, times, snr in zip(quantised["contestants"].values(), ([4.0] * 12, [5.0] * 12), int8_snr):
        contestant["snr_db"] = snr
        quantised["measurement"]["samples"][f"{contestant['name']}, {DEPLOY}"] = times
    result["runs"].append(quantised)
    return result


def test_the_best_precision_is_named():
    text = report.markdown(by_precision((30.0, 30.0)))
    assert "| onnxruntime | openvino int8 | best |" in text
    assert "| 10.00 (1.25x) | 4.00 (0.80x) | **4.00** (openvino int8) |" in text
    assert "| 8.00 | 5.00 | **5.00** (openvino int8) |" in text


def test_a_network_that_quantises_wrongly_is_marked_and_its_time_is_not_the_best():
    text = report.markdown(by_precision((-2.0, 5.0)))
    assert "4.00 (0.80x), **wrong: -2 dB** | **10.00** (onnxruntime float32) |" in text
    assert "5.00, *5 dB* | **5.00** (openvino int8) |" in text  # noisy, and said so
    drawn = plots._best_by_precision(list(report.rows(by_precision((-2.0, 5.0)))))
    best = {row["network"]: row["min_ms"] for row in drawn if row["panel"] == "each in its best precision"}
    assert best == {"MobileNetV2-0.5x": 10.0, "RDPNet-0.75x": 5.0}


def test_the_best_is_one_of_the_runtimes_which_alone_took_turns():
    result = by_precision((30.0, 30.0))
    eager = json.loads(json.dumps({**result["runs"][0], "backend": "eager"}))
    for times in eager["measurement"]["samples"].values():
        times[:] = [1.0] * len(times)
    result["runs"].insert(0, eager)
    assert "| **4.00** (openvino int8) |" in report.markdown(result)
    drawn = plots._best_by_precision(list(report.rows(result)))
    assert {row["backend"] for row in drawn} == {"onnxruntime", "openvino"}
    result["runs"] = [eager]
    assert {row["backend"] for row in plots._best_by_precision(list(report.rows(result)))} == {"eager"}


def test_the_quantiser_that_is_named_is_the_one_that_the_runtime_has():
    result = by_precision((30.0, 30.0))
    assert "The INT8 quantiser is ONNX Runtime's (7 bits" in report.markdown(result)
    result["runs"][1]["backend"] = "executorch"
    assert "The INT8 quantiser is executorch's own, the same" in report.markdown(result)
    result["runs"][1]["precision"] = "bfloat16"
    assert "*best* is" in report.markdown(result) and "quantiser" not in report.markdown(result)
    for snr, is_explained in ((90.0, False), (-3.0, True)):
        result["runs"] = by_precision((snr, 30.0))["runs"][1:]  # INT8 alone
        text = report.markdown(result)
        assert ("A figure in dB" in text) is is_explained and "*best*" not in text and "INT8 quantiser is" in text


def test_throughput_counts_images_not_calls():
    result = by_precision((30.0, 30.0))
    result["table"] = "throughput"
    for one in result["runs"]:
        for contestant in one["contestants"].values():
            contestant["extra"] = {"batch": 16}
    text = report.markdown(result)
    assert "| 1600 (1.25x) | 4000 (0.80x) | **4000** (openvino int8) |" in text  # 16 images in 10 ms, and in 4 ms


def test_the_pareto_front_holds_what_nothing_beats():
    generator = random.Random(0)
    points = {str(index): (generator.randint(1, 20), generator.randint(1, 20)) for index in range(60)}
    front = pareto_front(points)
    for name, (latency, accuracy) in points.items():
        beaten = any(
            a <= latency and b >= accuracy and (a, b) != (latency, accuracy) for a, b in map(points.get, points)
        )
        assert (points[name] in [points[each] for each in front]) is not beaten


def test_names_of_crowded_points_do_not_touch():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    spread = random.Random(0)
    points = {f"Some network {n}": (5 + spread.random(), 72 + 3 * spread.random()) for n in range(8)}
    points |= {f"RDPNet-{n}": (10 * spread.random(), 66 + 12 * spread.random()) for n in range(6)}
    figure = Figure(figsize=(5.2, 5.2))
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.scatter(*zip(*points.values()))
    axis.margins(0.15)
    figure.canvas.draw()
    plots._label(axis, points)
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without the lines to the points
    assert len(boxes) == len(points)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if Bbox.intersection(a, b)]


# How the command behaves


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


def plan(names, output, backends=("eager", "onnxruntime"), precisions=("float32",)):
    return run._plan(names, output, backends, [1], 30, precisions)[0]


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
