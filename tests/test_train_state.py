"""A run that is stopped, killed or met by another: its checkpoint, and the same weights at the end."""

import json
import pickle
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from small_runs import MODEL, SHORT, random_images, weights

from rdpnet_timm.train import Run, train


def assert_same(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    data = random_images(count=50), random_images(count=10, seed=1)
    return data, train(Run(MODEL, SHORT, seed=3), data, tmp_path_factory.mktemp("whole"))


def stopped_by(number, run, step, folder):
    """Train in a process that gets a signal within a step, and stops after it; what it wrote to its standard error."""
    code = f"""
        import os, pickle, signal, sys
        import torch
        from rdpnet_timm.train import train
        torch.set_num_threads(1)
        signal.signal({number}, signal.SIG_DFL)  # nohup, under which tests may run, hands its ignoring on
        run, data, step, folder = pickle.load(sys.stdin.buffer)
        def stop(done, total, record):
            if done == step - 1:
                for _ in range(2):  # one order may come twice, from a terminal and from a parent
                    os.kill(os.getpid(), {number})
                    os.kill(os.getpid(), signal.SIGTERM)
            assert done <= step
        train(run, data, folder, stop)
    """
    data = random_images(count=50), random_images(count=10, seed=1)
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input=pickle.dumps((run, data, step, folder)),
        capture_output=True,
    )
    assert process.returncode == 128 + number, process.stderr.decode()
    return process.stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])  # of a terminal that closes
def test_a_run_stopped_within_an_epoch_ends_with_the_same_weights(number, uninterrupted, tmp_path):
    data, whole = uninterrupted
    assert "stopped at step 4 of 9" in stopped_by(number, Run(MODEL, SHORT, seed=3), 4, tmp_path)
    resumed = train(Run(MODEL, SHORT, seed=3), data, tmp_path)
    assert_same(weights(resumed.model), weights(whole.model))
    assert resumed.deploy_form == whole.deploy_form
    timed = ("seconds", "images_per_second")
    for record, expected in zip(resumed.history, whole.history):
        assert all(record[name] == expected[name] for name in expected if name not in timed)


def test_a_killed_run_goes_on_from_its_last_epoch_and_ends_with_the_same_weights(uninterrupted, tmp_path):
    data, whole = uninterrupted

    class Killed(BaseException):
        pass

    def kill(step, total, record):
        if step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path, kill)
    first = []
    resumed = train(Run(MODEL, SHORT, seed=3), data, tmp_path, lambda step, total, record: first.append(step))
    assert first[0] == 7  # after two epochs of three steps
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == resumed.history
    (tmp_path / "log.jsonl").unlink()
    assert train(Run(MODEL, SHORT, seed=3), data, tmp_path).history == resumed.history
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == resumed.history
    assert_same(weights(resumed.model), weights(whole.model))
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.tmp"))


def test_another_seed_gives_another_run(uninterrupted, tmp_path):
    data, whole = uninterrupted
    other = train(Run(MODEL, replace(SHORT, epochs=1), seed=4), data, tmp_path)
    assert other.history[0]["train_loss"] != whole.history[0]["train_loss"]


def test_a_report_may_end_the_program(uninterrupted, tmp_path):
    data, _ = uninterrupted
    with pytest.raises(SystemExit, match="enough"):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path, lambda step, *_: sys.exit("enough"))


def test_a_folder_of_another_run_is_refused(uninterrupted, tmp_path):
    data, _ = uninterrupted
    train(Run(MODEL, replace(SHORT, epochs=1 / 3), seed=3), data, tmp_path)
    with pytest.raises(ValueError, match="belongs to another run, with seed 3 rather than 5"):
        train(Run(MODEL, SHORT, seed=5), data, tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another run, with recipe.mixup 0.2 rather than 0.0; name"):
        train(Run(MODEL, replace(SHORT, mixup=0.0), seed=3), data, tmp_path)
    with pytest.raises(ValueError, match="belongs to another run, with amp False rather than True"):
        train(Run(MODEL, SHORT, seed=3, amp=True), data, tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another run, with training_data \w{64} rather than \w{64}; name"):
        train(Run(MODEL, SHORT, seed=3), (random_images(count=50, seed=9), data[1]), tmp_path)
    with pytest.raises(ValueError, match="belongs to another run, with test_data"):
        train(Run(MODEL, SHORT, seed=3), (data[0], random_images(count=10, seed=9)), tmp_path)
    for content in (b"cut off", b"(", b"\x80\x02X\x01\x00\x00\x00\xff."):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a checkpoint of this run .*; name another .* or move it away"):
            train(Run(MODEL, SHORT, seed=3), data, tmp_path)


def test_a_checkpoint_that_cannot_be_read_is_not_to_be_thrown_away(uninterrupted, tmp_path):
    data, _ = uninterrupted
    (tmp_path / "checkpoint.pt").mkdir()
    with pytest.raises(OSError, match=r"cannot read the checkpoint '.*checkpoint.pt'.*once it can be") as raised:
        train(Run(MODEL, SHORT, seed=3), data, tmp_path)
    assert "delete" not in str(raised.value) and "move it away" not in str(raised.value)


@pytest.mark.parametrize("kept", ["weights.safetensors", "weights.json"])
def test_the_result_of_a_run_whose_checkpoint_is_gone_is_not_overwritten(uninterrupted, tmp_path, kept):
    data, _ = uninterrupted
    (tmp_path / kept).write_bytes(b"of a finished run")
    with pytest.raises(ValueError, match=f"holds {kept} of a finished run, whose checkpoint.pt is gone"):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {kept}


@pytest.mark.parametrize("meeting", [1, 5, 9], ids=["before either has saved", "later", "at the end"])
def test_of_two_runs_that_begin_in_one_folder_one_is_refused_and_the_other_whole(uninterrupted, tmp_path, meeting):
    data, _ = uninterrupted
    others = []

    def begin_another(step, steps, record):
        if step == meeting:
            if meeting > 1:
                (tmp_path / "checkpoint.pt").unlink()  # as if both had saved their first in the same moment
            others.append(train(Run(MODEL, replace(SHORT, epochs=1), seed=5), data, tmp_path))

    with pytest.raises(ValueError, match=r"checkpoint.pt' belongs to another run, with seed 5 rather than 3"):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path, begin_another)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["description"]["seed"] == 5 and kept["history"] == others[0].history


def rewritten(path, change):
    """The checkpoint ``path``, written again after ``change``; its bytes."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path.read_bytes()


def test_a_checkpoint_of_another_version_is_refused_with_what_it_lacks_or_has_too_much(uninterrupted, tmp_path):
    data, _ = uninterrupted
    run, path = Run(MODEL, SHORT, seed=3), tmp_path / "checkpoint.pt"
    train(replace(run, recipe=replace(SHORT, epochs=1 / 3)), data, tmp_path)
    good = path.read_bytes()

    def without_data(content):
        for name in ("training_data", "test_data", "amp"):
            del content["description"][name]
        del content["begun"]

    for change, message in (
        (without_data, r"lacks description.training_data, description.test_data, description.amp, begun, so"),
        (
            lambda content: content["description"]["recipe"].update(lookahead=3),
            "settings lookahead, which this version",
        ),
        (lambda content: content.update(step="four"), "is not a checkpoint of this run"),
    ):
        path.write_bytes(good)
        kept = rewritten(path, change)
        with pytest.raises(ValueError, match=message):
            train(run, data, tmp_path)
        assert path.read_bytes() == kept

    # a setting that came later means nothing where it is off
    path.write_bytes(good)
    rewritten(path, lambda content: content["description"]["recipe"].pop("small_size"))
    with pytest.raises(ValueError, match=r"with recipe.small_size 24 rather than 8"):
        train(run, data, tmp_path)


def test_a_checkpoint_with_nan_is_refused(uninterrupted, tmp_path):
    data, _ = uninterrupted
    train(Run(MODEL, replace(SHORT, epochs=1 / 3), seed=3), data, tmp_path)
    rewritten(tmp_path / "checkpoint.pt", lambda content: content["ema"]["module.head.weight"][0].fill_(torch.nan))
    with pytest.raises(ValueError, match=r"has diverged, ema.module.head.weight is not finite; delete it"):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path)


def test_the_five_minute_save_keeps_the_last_good_checkpoint_from_nan(uninterrupted, tmp_path, monkeypatch):
    data, _ = uninterrupted
    created, kept, clock = [], [], [0.0]
    create = Run.create_model
    monkeypatch.setattr(Run, "create_model", lambda run, classes: created.append(create(run, classes)) or created[-1])
    monkeypatch.setattr("rdpnet_timm.train.trainer.time.perf_counter", lambda: clock[0])

    def break_weights(step, steps, record):
        clock[0] += 1
        if step == 3:
            kept.append((tmp_path / "checkpoint.pt").read_bytes())
            with torch.no_grad():
                created[-1].stem.branches["conv1x1"].norm.running_var.fill_(torch.nan)  # no loss shows it
            clock[0] += 301

    with pytest.raises(FloatingPointError, match=r"running_var is not finite in epoch 1.333: .* checkpoint is '"):
        train(Run(MODEL, SHORT, seed=3), data, tmp_path, break_weights)
    assert [(tmp_path / "checkpoint.pt").read_bytes()] == kept


def test_a_resumed_run_with_dropout_ends_with_the_same_weights(tmp_path):
    data = random_images(count=50), random_images(count=10, seed=1)
    run = Run(MODEL, replace(SHORT, epochs=2), seed=3, model_args=(("drop_rate", 0.5),))
    whole = train(run, data, tmp_path / "whole")
    with pytest.raises(SystemExit):
        train(run, data, tmp_path / "stopped", lambda step, *_: step == 1 and signal.raise_signal(signal.SIGTERM))
    torch.rand(5)  # a caller's own use of the global generator
    assert_same(weights(train(run, data, tmp_path / "stopped").model), weights(whole.model))
    without = train(replace(run, model_args=(), recipe=replace(SHORT, epochs=1)), data, tmp_path / "without")
    assert without.history[0]["train_loss"] != whole.history[0]["train_loss"]


def test_the_time_before_a_stop_within_an_epoch_is_counted(tmp_path, monkeypatch):
    data = random_images(count=50), random_images(count=10, seed=1)
    run, clock = Run(MODEL, replace(SHORT, epochs=1)), [100.0]
    monkeypatch.setattr("rdpnet_timm.train.trainer.time.perf_counter", lambda: clock[0])

    def tick(step, steps, record):
        clock[0] += 10
        if step == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(run, data, tmp_path, tick)
    clock[0] += 5000  # while it is not running
    result = train(run, data, tmp_path, tick)
    (record,) = result.history
    # three steps of 16 images; one tick between the first and the second, none between the second's save and the third
    assert record["seconds"] == 10 and record["images_per_second"] == pytest.approx(48 / 10)


def test_a_run_can_be_prolonged_while_its_rate_has_not_begun_to_fall(uninterrupted, tmp_path):
    data, _ = uninterrupted
    recipe = replace(SHORT, epochs=2, warmup_epochs=0, small_epochs=0)
    stopped_by(signal.SIGTERM, Run(MODEL, recipe), 3, tmp_path / "a")
    prolonged = train(Run(MODEL, replace(recipe, epochs=3)), data, tmp_path / "a")
    whole = train(Run(MODEL, replace(recipe, epochs=3)), data, tmp_path / "b")
    assert_same(weights(prolonged.model), weights(whole.model))
    with pytest.raises(ValueError, match="belongs to another run"):
        train(Run(MODEL, replace(recipe, epochs=4)), data, tmp_path / "a")
