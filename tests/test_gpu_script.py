"""`make gpu`'s script, with stand-ins for the programs that it calls."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "recipes" / "gpu.sh"
# it keeps what it was called with
RDPNET = '#!/bin/sh\necho "$@" >>calls\n'

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a script for Linux, whose flock and realpath it needs")


def hear_all():
    """What a background job ignores, or one of nohup's, no script below it can hear of."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def begin(tmp_path):
    """A function that starts the script in a clone whose `python` and `rdpnet` are these scripts."""
    (tmp_path / "recipes").mkdir()
    shutil.copy(SCRIPT, tmp_path / "recipes")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    started = []

    def begin_with(rdpnet=RDPNET, python="#!/bin/sh\n", **variables):
        for name, code in (("python", python), ("rdpnet", rdpnet)):
            (tmp_path / ".venv" / "bin" / name).write_text(code)
            (tmp_path / ".venv" / "bin" / name).chmod(0o755)
        variables = {"CIFAR10": "a", "CIFAR100": "b", "DEVICE": "cpu", **variables}
        process = subprocess.Popen(
            ["bash", "recipes/gpu.sh"],
            cwd=tmp_path,
            env={**os.environ, **variables},
            start_new_session=True,
            preexec_fn=hear_all,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin_with
    for process in started:
        process.stdout.close()
        process.wait()


def calls(folder):
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not come to that in ten seconds")


def test_all_tables_are_made_in_order_of_value(begin, tmp_path):
    process = begin(JOBS="2", EPOCHS="0.5")
    process.communicate()
    assert process.returncode == 0
    made = [line.split() for line in calls(tmp_path) if "--print" not in line]
    assert [[line[1], line[line.index("--recipe") + 1], line[line.index("--data-name") + 1]] for line in made] == [
        *(2 * [["3", recipe, data] for recipe in ("ours", "paper") for data in ("CIFAR-10", "CIFAR-100")]),
        ["8", "paper", "CIFAR-100"],
    ]
    assert [line[line.index("--rows") + 1] for line in made if line[1] == "3"] == 4 * ["2"] + 4 * ["6"]
    assert [line[2] for line in made[:2]] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert all(line[line.index("-o") + 1].startswith("runs/gpu_0.5/table") for line in made), "a trial is in the way"
    assert sorted(path.name for path in (tmp_path / "runs" / "gpu_0.5").glob("*.md")) == sorted(
        {f"{line[line.index('-o') + 1].rpartition('/')[2]}.md" for line in made}
    )


@pytest.mark.parametrize("number, whole_group", [("INT", True), ("TERM", False), ("HUP", True)])
def test_an_order_to_end_reaches_the_step_and_begins_no_other(number, whole_group, begin, tmp_path):
    """Ctrl-C and a closed terminal reach all of a group, of which background jobs ignore the first; make tells one."""
    saves = '#!/bin/sh\necho "$@" >>calls\ntrap "sleep 0.3; echo saved >>calls; exit 143" TERM HUP\nsleep 10 & wait\n'
    process = begin(saves)
    wait_for(lambda: calls(tmp_path))
    code = getattr(signal, f"SIG{number}")
    (os.killpg if whole_group else os.kill)(process.pid, code)
    process.wait(timeout=10)
    assert process.returncode == 128 + code
    assert len(calls(tmp_path)) == 2 and calls(tmp_path)[1] == "saved"


def test_a_training_that_was_told_to_end_is_not_followed_by_the_next(begin, tmp_path):
    process = begin(RDPNET + "exit 143\n")
    process.communicate()
    assert process.returncode == 143 and len(calls(tmp_path)) == 1


def test_two_do_not_train_the_same(begin, tmp_path):
    first = begin(RDPNET + "trap 'exit 143' TERM\nsleep 10 & wait\n")
    wait_for(lambda: calls(tmp_path))
    second = begin(RDPNET)
    said, _ = second.communicate()
    assert second.returncode == 1 and "is at work in runs/gpu" in said and len(calls(tmp_path)) == 1
    first.terminate()


def test_a_reader_that_goes_away_does_not_end_the_work(begin, tmp_path):
    process = begin(RDPNET + "seq 20000\n")
    process.stdout.readline()
    process.stdout.close()
    process.wait(timeout=30)
    assert process.returncode == 0 and len(calls(tmp_path)) == 18


def test_what_failed_is_named_and_is_a_failure_where_it_cannot_be_written(begin, tmp_path):
    fails = RDPNET + 'case "$*" in *table8*) exit 1;; esac\n'
    process = begin(fails)
    said, _ = process.communicate()
    assert process.returncode == 1 and "failed: table8; the same command tries again" in said
    assert (tmp_path / "runs" / "gpu" / "failed.txt").read_text() == "table8\n"
    assert not (tmp_path / "runs" / "gpu" / "table8.md").exists()
    (tmp_path / "file").touch()
    process = begin(OUTPUT="file/x")
    process.communicate()
    assert process.returncode == 1


@pytest.mark.slow
def test_what_is_wrong_with_data_or_device_is_said_before_anything_runs(begin, tmp_path):
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    for variables, message in (
        ({"CIFAR10": "absent"}, f"{tmp_path / 'absent'}"),
        ({"CIFAR10": "digits", "DEVICE": "neither"}, "RuntimeError"),
    ):
        process = begin(python=python, **variables)
        said, _ = process.communicate()
        assert process.returncode == 2 and message in said and not calls(tmp_path), said
