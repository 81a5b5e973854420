"""Runs that are held to a CPU class."""

import json
import os
import signal
import sys

import pytest
from small_results import plan

from rdpnet_timm import cli
from rdpnet_timm.bench import isa, run, throughput
from rdpnet_timm.measure import machine
from rdpnet_timm.signals import handled


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
