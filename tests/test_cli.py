"""The command `rdpnet`: what it prints, and what it says about wrong usage."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from rdpnet_timm.cli import main
from rdpnet_timm.measure.difference import randomize_norms


def test_info_prints_both_forms_beside_the_paper(capsys: Any) -> None:
    assert main(["info", "rdpnet_100_cifar", "resnet18", "--format", "json"]) == 0
    ours, peer = json.loads(capsys.readouterr().out)
    assert ours["deploy"]["params"] < ours["train"]["params"] and ours["paper"] == [1.3, 78.5]
    assert peer["train"] == peer["deploy"] and peer["paper"] is None
    assert peer["train"]["params"] == 11689512, "torchvision's published count"
    for output_format, start in (("text", "model"), ("csv", "model,input"), ("markdown", "| model |")):
        assert main(["info", "rdpnet_025", "--input-size", "1", "64", "64", "--format", output_format]) == 1
        assert main(["info", "rdpnet_025", "--input-size", "3", "64", "96", "--format", output_format]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(start) and "3x64x96" in lines[-1]


def test_info_without_a_model_lists_all_twelve(capsys: Any) -> None:
    assert main(["info", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 13


def test_reparam_writes_the_deploy_form_and_verify_accepts_it(tmp_path: Path, capsys: Any) -> None:
    model = randomize_norms(timm.create_model("rdpnet_025_cifar"))
    source, output = str(tmp_path / "trained.pth"), str(tmp_path / "deployed.safetensors")
    torch.save(model.state_dict(), source)
    assert main(["reparam", source, "-o", output]) == 1
    assert "--model" in capsys.readouterr().err
    assert main(["reparam", source, "-o", output, "--model", "rdpnet_025_cifar"]) == 0
    assert "outputs differ by at most" in capsys.readouterr().out
    assert main(["verify", source, output, "--model", "rdpnet_025_cifar"]) == 0
    assert main(["verify", source, "--model", "rdpnet_025_cifar", "--tolerance", "1e-30"]) == 1
    assert "not the same function" in capsys.readouterr().err


def test_verify_says_that_nothing_was_compared_where_no_part_is_converted(tmp_path: Path, capsys: Any) -> None:
    model = timm.create_model("rdpnet_025_cifar")
    trained, deployed = str(tmp_path / "trained.pth"), str(tmp_path / "deployed.safetensors")
    torch.save({"arch": "rdpnet_025_cifar", "state_dict": model.state_dict()}, trained)
    assert main(["reparam", trained, "-o", deployed]) == 0
    for words in ([deployed], [deployed, deployed], [trained, trained]):
        capsys.readouterr()
        assert main(["verify", *words]) == 1, words
        assert "nothing was compared" in capsys.readouterr().err
    assert main(["verify", trained, deployed]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "rdpnet_999"], "Unknown model (rdpnet_999); for the names see timm.list_models"),
        (
            ["info", "rdpnet_025", "--input-size", "1", "64", "64"],
            "rdpnet_025 takes no images (C, H, W) of (1, 64, 64)",
        ),
        (["info", "vit_tiny_patch16_224", "--input-size", "3", "32", "32"], "its own are (3, 224, 224): Input height"),
        (["train", "absent", "-o", "out", "--seed", "9" * 30], "a seed is a whole number of at most 64 bits, got 999"),
        (["verify", "absent.pth"], "absent.pth"),
        (["verify", "rdpnet_100"], "`rdpnet verify` without a name"),
        (["reparam", "absent.pth", "-o", "out.pth"], "no checkpoint at 'absent.pth'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_1(arguments: Any, message: str, capsys: Any) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"rdpnet {arguments[0]}: error: ") and message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["export", "rdpnet_025", "-o", "out", "--calibration-images", "0"],
        ["export", "rdpnet_025", "-o", "out", "--input-size", "3", "0", "0"],
        ["info", "--input-size", "3", "-1", "32"],
        ["bench", "table8", "-o", "out", "--rounds", "none"],
        ["sample-voc", "out", "--images", "0"],
    ],
    ids=" ".join,
)
def test_a_number_that_cannot_be_is_wrong_usage(words: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and "expected a whole number from 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "table8", "-o", "out", "--threads", "999"],
        ["bench", "int8-speed", "-o", "out", "--threads", "1", "999"],
        ["bench", "int8-accuracy", "rdpnet_025_cifar", "--data", "digits", "-o", "out", "--threads", "999"],
        ["train", "digits", "-o", "out", "--threads", "999"],
    ],
    ids=" ".join,
)
def test_more_threads_than_cores_are_refused_before_anything_starts(
    words: Any, capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert "999" in (error := capsys.readouterr().err) and "cores here" in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unforeseen_error_is_one_line_and_debug_shows_where_it_is(monkeypatch: Any, capsys: Any) -> None:
    def broken(*args: Any) -> None:
        raise KeyError(101)

    monkeypatch.setattr("rdpnet_timm.measure.size.table", broken)
    assert main(["info", "rdpnet_025"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rdpnet info: error: KeyError: 101") and len(error.splitlines()) == 1
    for words in (["--debug", "info", "rdpnet_025"], ["info", "rdpnet_025", "--debug"]):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert "Traceback" in error and "in broken" in error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_order_to_end_lets_a_command_clean_up_but_where_it_is_ignored(number: int, monkeypatch: Any) -> None:
    cleaned_up = []

    def interrupted(*args: Any) -> Any:
        try:
            signal.raise_signal(number)
            return []
        finally:
            cleaned_up.append(True)

    monkeypatch.setattr("rdpnet_timm.measure.size.table", interrupted)
    monkeypatch.setattr("rdpnet_timm.measure.size.render", lambda *args: "")
    former = signal.signal(number, lambda *_: None)  # a mistake is then no end of the tests
    try:
        with pytest.raises(SystemExit) as ended:
            main(["info", "rdpnet_025"])
        assert ended.value.code == 128 + number and cleaned_up
        signal.signal(number, signal.SIG_IGN)  # as nohup does
        assert main(["info", "rdpnet_025"]) == 0 and signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, former)


@pytest.mark.parametrize("words", [["--help"], ["export", "--help"], ["--version"], ["nonsense"]], ids=" ".join)
def test_parsing_imports_neither_torch_nor_timm(words: Any) -> None:
    code = f"""if True:
        import sys
        from rdpnet_timm.cli import main
        try:
            main({words})
        except SystemExit as stopped:
            assert not {{"torch", "timm", "numpy", "rich"}} & set(sys.modules), sorted(sys.modules)
            raise
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (2 if "nonsense" in words else 0), done.stderr
    assert ("rdpnet-timm 0" in done.stdout) == (words == ["--version"])


def test_a_wrong_command_prints_the_usage_with_status_2() -> None:
    result = subprocess.run([sys.executable, "-m", "rdpnet_timm.cli", "nonsense"], capture_output=True, text=True)
    assert result.returncode == 2 and "usage: rdpnet" in result.stderr and "reparam" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("export rdpnet_025_cifar -o out --size 8 8", "--size: only with the config (.py) of a"),
        (
            "export rdpnet_025_cifar -o out --checkpoint some.pth --logits",
            "--checkpoint and --logits: only with the config",
        ),
        ("export config.py -o out --input-size 3 8 8", "--input-size: only with a classifier"),
        ("export config.py -o out --checkpoint some.pth --random-weights", "--random-weights: only with a classifier"),
        (
            "export rdpnet_025_cifar -o out --no-equalize --reduce-range",
            "--equalize and --reduce-range: only with --int8",
        ),
        ("export config.py -o out --no-bias-correction", "--bias-correction: only with --int8"),
        ("export rdpnet_025_cifar -o out --int8-tolerance 0", "--int8-tolerance: only with --int8"),
        ("export rdpnet_025_cifar -o out --calibration-images 5", "--calibration-images: only with --calibration"),
        ("bench figure2 -o out --widths 0.25", "--widths: only with the table training"),
        ("bench all -o out --isa avx2 --sizes 32", "--sizes: only with the table training"),
        ("bench training -o out --isa avx2", "--isa: only with openvino"),
        ("bench training -o out --backend eager", "--backend: only with other tables than training"),
        ("bench throughput -o out --threads 2", "--threads: only with other tables than throughput"),
        ("bench table8 -o out --isa avx2 --backend onnxruntime", "--isa: only with openvino"),
        ("verify --model nosuch --no-ema", "--model and --no-ema: only with a CHECKPOINT"),
    ],
)
def test_an_option_that_would_do_nothing_is_wrong_usage(words: str, told: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize("buffering", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("output", ["nobody reads", "/dev/full", "closed"])
def test_output_that_goes_nowhere_ends_a_command_in_order(output: str, buffering: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    if output.startswith("/"):
        write = os.open(output, os.O_WRONLY)
    os.close(read)
    words = [sys.executable, "-m", "rdpnet_timm.cli", "configs", str(tmp_path)]
    if output == "closed":
        words = ["sh", "-c", f"exec {shlex.join(words)} >&-"]
    done = subprocess.run(
        words, stdout=write, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": buffering}
    )
    os.close(write)
    if output == "/dev/full":
        assert done.returncode == 1 and re.fullmatch(r"rdpnet configs: error: .*No space left.*\n", done.stderr)
    else:
        assert done.returncode == 0 and not done.stderr


def test_training_into_a_folder_that_cannot_be_written_ends_at_once(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("rdpnet_timm.train.run.Run.create_model", lambda *args: pytest.fail("a model was made"))
    assert main(["train", "digits", "--recipe", "digits", "-o", "/proc/self"]) == 1
    assert "cannot write to '/proc/self' (" in capsys.readouterr().err


def test_the_help_of_bench_names_its_commands_and_a_misplaced_one_is_put_right(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    described = " ".join(capsys.readouterr().out.split())
    for name in ("int8-speed", "int8-accuracy", "whole-networks", "docs"):
        assert f"rdpnet bench {name}" in described
        with pytest.raises(SystemExit) as stopped:
            main(["bench", "-o", "out", name])
        assert stopped.value.code == 2 and f"right behind: rdpnet bench {name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [["train", "digits", "-o", "out"], ["evaluate", "digits"], ["table", "8", "digits", "-o", "out"]],
    ids=str,
)
@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_named(command, device, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--device", device]) == 1
    error = capsys.readouterr().err
    assert f"cannot use the device '{device}' (" in error and "name cpu" in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
