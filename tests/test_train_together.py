"""Several runs in one process, and the parts of a step that a GPU records, here on a CPU."""

import gc
import json
import signal
import weakref
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from rdpnet_timm.train import RECIPES, Images, Job, Run, tables, train, train_together
from rdpnet_timm.train.recorded import Recorded, update
from rdpnet_timm.train.trainer import _stop_signals

MODEL = "rdpnet_025_cifar"
RECIPE = replace(RECIPES["ours"], epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    return tuple(
        Images(
            torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator),
            torch.arange(count) % 4,
            tuple("0123"),
        )
        for count in (64, 16)
    )


def weights(result):
    return torch.cat([value.double().flatten() for value in result.model.state_dict().values()])


@pytest.mark.parametrize("at_once", [None, 2])
def test_runs_together_are_those_alone(data, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("rdpnet_timm.train.trainer.STAGGER", 3)
    jobs = [Job(Run(MODEL, RECIPE, seed), data, tmp_path / f"together{seed}") for seed in range(3)]
    finished = []
    results = train_together(jobs, lambda job, result: finished.append(job.run.seed), at_once)
    assert finished == [0, 1, 2]
    for seed, result in enumerate(results):
        alone = train(Run(MODEL, RECIPE, seed), data, tmp_path / f"alone{seed}")
        assert torch.equal(weights(result), weights(alone))
        assert result.deploy_form == alone.deploy_form


def test_a_run_that_fails_does_not_end_the_others(data, tmp_path):
    run = Run(MODEL, RECIPE)
    train(replace(run, recipe=replace(RECIPE, epochs=0.5)), data, tmp_path / "other")
    failed, result = train_together(
        [Job(replace(run, seed=1), data, tmp_path / "other"), Job(run, data, tmp_path / "a")]
    )
    assert isinstance(failed, ValueError) and "belongs to another run, with seed 0" in str(failed)
    assert len(result.history) == 2


def test_a_run_that_fails_lets_go_of_its_memory_before_the_others_end(data, tmp_path, monkeypatch):
    made, alive, create = [], [], timm.create_model

    def create_model(name, **kwargs):
        model = create(name, **kwargs)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(timm, "create_model", create_model)

    def fail(step, steps, record):
        try:
            raise MemoryError("no more")
        except MemoryError as error:
            raise RuntimeError("out of memory") from error

    def look(step, steps, record):
        gc.collect()
        alive.append(made[0]() is not None)

    run = Run(MODEL, replace(RECIPE, epochs=0.5))
    failed, _ = train_together([Job(run, data, tmp_path / "a", fail), Job(run, data, tmp_path / "b", look)])
    assert str(failed) == "out of memory" and failed.__traceback__ is not None and len(made) == 2
    assert alive and not any(alive)


def test_a_signal_stops_all_and_they_go_on_as_if_there_had_been_none(data, tmp_path, monkeypatch, capsys):
    stopped = []

    @contextmanager
    def signals():
        stopped.clear()
        yield stopped

    monkeypatch.setattr("rdpnet_timm.train.trainer.STAGGER", 2)
    monkeypatch.setattr("rdpnet_timm.train.trainer._stop_signals", signals)

    def stop(step, steps, record):
        if step == 3:
            stopped.append(15)

    runs = [Run(MODEL, RECIPE, seed) for seed in range(3)]
    jobs = [Job(run, data, tmp_path / str(run.seed)) for run in runs]
    with pytest.raises(SystemExit) as stopping:
        train_together([replace(jobs[0], report=stop), *jobs[1:]], at_once=2)
    assert stopping.value.code == 143
    assert capsys.readouterr().err.count("the same command goes on from there") == 2
    assert (tmp_path / "1" / "checkpoint.pt").exists() and not (tmp_path / "2").exists()
    for seed, result in enumerate(train_together(jobs)):
        alone = train(runs[seed], data, tmp_path / f"alone{seed}")
        assert torch.equal(weights(result), weights(alone))


def test_a_second_signal_is_the_same_order_within_a_second_and_ends_the_program_later(monkeypatch):
    clock, former = [0.0], signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("rdpnet_timm.signals.time", SimpleNamespace(monotonic=lambda: clock[0]))
    try:
        with pytest.raises(KeyboardInterrupt), _stop_signals() as stopped:
            for clock[0] in (5.0, 5.5, 7.0):
                signal.raise_signal(signal.SIGINT)
        assert clock[0] == 7.0 and stopped == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_tables_runs_in_one_process_leave_what_processes_leave(data, tmp_path, capsys):
    run = Run(MODEL, replace(RECIPE, epochs=1))
    work = [(f"seed {seed}", replace(run, seed=seed), tmp_path / str(seed)) for seed in range(2)]
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "checkpoint.pt").write_bytes(b"none")
    failures = tables._in_this_process(work, 2, data, "noise")
    assert failures == ["seed 1: ValueError"]
    card = json.loads((tmp_path / "0" / "weights.json").read_text())
    assert card["data"] == "noise" and card["seed"] == 0 and (tmp_path / "0" / "training.png").exists()
    printed = capsys.readouterr()
    assert "seed 0: epoch 1: training loss" in printed.out and "is not a checkpoint of this run" in printed.err


@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"weight_decay": 0.0}, {"momentum": 0.0}], ids=str)
def test_an_update_at_a_rate_in_memory_is_torchs(settings):
    def learn(at_rate_in_memory):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Flatten())
        network = network.double().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            network.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, **settings}
        )
        rate = torch.zeros((), dtype=torch.float64)
        for number in range(5):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + number)
            rate.fill_(0.1 / (1 + number))
            optimizer.zero_grad()
            x = torch.randn(4, 3, 7, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
            network(x).square().mean().backward()
            update(optimizer, rate) if at_rate_in_memory else optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    torch.testing.assert_close(learn(True), learn(False), rtol=1e-12, atol=1e-12)


def test_an_update_needs_a_momentum_that_has_begun():
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)
    parameters[0].grad = torch.ones(2)
    update(optimizer, torch.tensor(0.1))
    parameters[1].grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="momentum has not begun"):
        update(optimizer, torch.tensor(0.1))


def test_what_is_not_to_be_recorded_is_called():
    calls = []
    recorded = Recorded(lambda: calls.append(1), [torch.Generator()], enabled=False)
    for _ in range(6):
        recorded()
    assert len(calls) == 6 and recorded.graph is None
