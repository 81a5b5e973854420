import time

import numpy as np
import pytest

from rdpnet_timm.measure.timing import Interrupted, Measurement, Ratio, measure


def measurement(**samples):
    return Measurement(samples, rounds=len(next(iter(samples.values()))), warmup=0, seed=0)


def test_a_known_sleep_is_the_least_that_is_measured_and_decides_the_ranking():
    result = measure({"slow": lambda: time.sleep(0.03), "fast": lambda: time.sleep(0.001)}, rounds=6, warmup=1)
    assert result.minimum("slow") >= 30 and result.minimum("fast") >= 1
    assert result.ratio("slow", "fast").low > 1 and not result.ratio("slow", "fast").is_tie
    assert result.ties() == []


def test_every_round_runs_every_contestant_and_the_order_varies():
    calls = []
    result = measure({name: lambda name=name: calls.append(name) for name in "abc"}, 20, warmup=2, primed=False)
    assert calls[:6] == list("aabbcc")
    rounds = ["".join(calls[start : start + 3]) for start in range(6, len(calls), 3)]
    assert len(rounds) == 20 and all(sorted(order) == list("abc") for order in rounds)
    assert len(set(rounds)) > 1
    assert all(len(times) == 20 for times in result.samples.values())


def test_a_turn_is_an_untimed_call_and_a_timed_one():
    calls = []
    measure({"a": lambda: calls.append(1)}, rounds=4, warmup=3)
    assert len(calls) == 3 + 2 * 4


def test_progress_counts_up_to_its_total():
    seen = []
    measure({"a": int, "b": int}, rounds=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(turn, 6) for turn in range(1, 7)]


def test_median_and_minimum_are_those_of_the_samples():
    result = measurement(a=[5.0, 1.0, 3.0, 100.0])
    assert result.median("a") == 4.0 and result.minimum("a") == 1.0


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        a, b = 2 * generator.lognormal(0, 0.1, 25), generator.lognormal(0, 0.1, 25)
        ratio = measurement(a=list(a), b=list(b)).ratio("a", "b")
        covered += ratio.low <= 2 <= ratio.high
    assert 180 <= covered <= 200


def test_noise_common_to_a_round_cancels():
    common = np.random.default_rng(0).uniform(1, 10, 50)
    ratio = measurement(a=list(1.01 * common), b=list(common)).ratio("a", "b")
    assert ratio.low == pytest.approx(1.01) and ratio.high == pytest.approx(1.01)


def test_overlapping_contestants_are_a_tie():
    result = measurement(a=[1.0, 2.0, 3.0, 4.0] * 2, b=[4.0, 1.5, 2.5, 1.0] * 2, c=[90.0, 91.0, 92.0, 93.0] * 2)
    assert result.ratio("a", "b").is_tie
    assert result.ties() == [("b", "a")]
    assert Ratio(1.2, 1.1, 1.3).is_tie is False and str(Ratio(1.2, 1.1, 1.3)) == "1.20 [1.10, 1.30]"


@pytest.mark.parametrize("rounds", [1, 2, 5, 6])
def test_a_handful_of_rounds_ranks_nothing(rounds):
    ratio = measurement(a=[2.0] * rounds, b=[1.0] * rounds).ratio("a", "b")
    assert ratio.estimate == 2 and ratio.is_tie is (rounds < 6)
    assert (ratio.low, ratio.high) == ((None, None) if rounds < 6 else (2, 2))
    assert str(ratio) == ("2.00 [too few rounds]" if rounds < 6 else "2.00 [2.00, 2.00]")


def test_what_is_written_is_what_is_read_back():
    result = measure({"a": int}, rounds=3)
    state = result.to_dict()
    assert state["samples"]["a"] == result.samples["a"] and state["summary"]["a"]["median"] == result.median("a")
    assert Measurement.from_dict(state) == result


@pytest.mark.parametrize("told", [KeyboardInterrupt(), SystemExit(143)], ids=repr)  # the latter of a SIGTERM
def test_an_interrupted_measurement_keeps_its_complete_rounds(told):
    calls = []

    def interrupts():
        calls.append(1)
        if len(calls) == 4:
            raise told

    with pytest.raises(Interrupted) as raised:
        measure({"a": int, "b": interrupts}, rounds=10, warmup=0, primed=False)
    result = raised.value.measurement
    assert raised.value.__cause__ is told
    assert [len(times) for times in result.samples.values()] == [3, 3]
    assert result.to_dict()["rounds"] == 10
    calls.clear()

    with pytest.raises(Interrupted, match="after 0 rounds") as raised:
        measure({"a": interrupts}, rounds=10, warmup=4, primed=False)
    state = raised.value.measurement.to_dict()
    assert state["samples"] == {"a": []} and Measurement.from_dict(state) == raised.value.measurement


def test_a_load_that_nobody_may_see_is_none(monkeypatch):
    def hidden(interval):
        raise PermissionError("/proc/stat")

    monkeypatch.setattr("psutil.cpu_percent", hidden)
    result = measure({"a": int}, rounds=1)
    assert result.load_before is None is result.load_after and not result.is_noisy


def test_bad_input_and_failing_contestants_are_named():
    with pytest.raises(ValueError, match="rounds must be 1 or more, got 0"):
        measure({"a": int}, rounds=0)
    with pytest.raises(ValueError, match="no contestants"):
        measure({}, rounds=1)
    with pytest.raises(RuntimeError, match="broken failed: division by zero"):
        measure({"broken": lambda: 1 / 0}, rounds=1)
