"""How everything here is timed: interleaved rounds, medians, minima, and ratios with an interval.

Speeds on a machine drift, so two contestants are only comparable if they took turns. Each round runs every contestant
once, in random order; each turn is an untimed call, which refills the caches the others have emptied, and a timed one.
"""

import gc
import random
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

__all__ = ["BUSY_PERCENT", "MIN_ROUNDS", "Interrupted", "Measurement", "Ratio", "cpu_load", "measure"]

BUSY_PERCENT = 10.0  # other programs' share of the machine from which a measurement is called noisy
MIN_ROUNDS = 6  # of two equals one is ahead in all of five rounds, by chance alone, in more than 5 % of trials
_RESAMPLES = 2000


class Ratio(NamedTuple):
    """A ratio of two medians and its 95 % bootstrap interval, None with fewer than :data:`MIN_ROUNDS` rounds."""

    estimate: float
    low: Optional[float]
    high: Optional[float]

    @property
    def is_tie(self) -> bool:
        """Whether the interval holds 1, or there is none: the measurement cannot tell which of the two is faster."""
        return self.low is None or self.high is None or self.low <= 1.0 <= self.high

    def __str__(self) -> str:
        interval = "too few rounds" if self.low is None else f"{self.low:.2f}, {self.high:.2f}"
        return f"{self.estimate:.2f} [{interval}]"


@dataclass
class Measurement:
    """The samples of one interleaved run, and what follows from them.

    Attributes:
        samples: times in ms by contestant, one a round; sample ``i`` of all contestants is from the same round.
        rounds: rounds asked for; an interrupted run has fewer samples.
        warmup: untimed calls of each contestant before the first round.
        seed: seed of the order of turns.
        load_before: percentage of the machine in use by others before the run; None where psutil cannot tell.
        load_after: the same, after it.
    """

    samples: Dict[str, List[float]]
    rounds: int
    warmup: int
    seed: int
    load_before: Optional[float] = None
    load_after: Optional[float] = None
    _medians: Dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_noisy(self) -> bool:
        """Whether other programs kept the machine busy before or after the run."""
        return max(self.load_before or 0.0, self.load_after or 0.0) > BUSY_PERCENT

    @property
    def has_intervals(self) -> bool:
        """Whether there are enough rounds to say how certain a ratio is."""
        return min(map(len, self.samples.values())) >= MIN_ROUNDS

    def median(self, name: str) -> float:
        """Median time in ms."""
        return float(np.median(self.samples[name]))

    def minimum(self, name: str) -> float:
        """Shortest time in ms: the figure that other programs disturb least."""
        return min(self.samples[name])

    def ratio(self, a: str, b: str) -> Ratio:
        """The median of ``a`` over the median of ``b``: above 1, ``b`` is the faster one.

        Rounds are resampled, not times: what disturbed both in the same round cancels.
        """
        estimate = self.median(a) / self.median(b)
        if not self.has_intervals:
            return Ratio(estimate, None, None)
        low, high = np.quantile(self._resampled(a) / self._resampled(b), (0.025, 0.975))
        return Ratio(estimate, float(low), float(high))

    def ties(self) -> List[Tuple[str, str]]:
        """Neighbours in the ranking by median, faster first, which this measurement cannot tell apart."""
        ranking = sorted(self.samples, key=self.median)
        return [(a, b) for a, b in pairwise(ranking) if self.ratio(a, b).is_tie]

    def to_dict(self) -> Dict[str, Any]:
        """Everything measured, for JSON: the raw samples, and by contestant the median and minimum."""
        plain = {name: value for name, value in asdict(self).items() if not name.startswith("_")}
        measured = [name for name, times in self.samples.items() if times]  # none before the first round is complete
        summary = {name: {"median": self.median(name), "minimum": self.minimum(name)} for name in measured}
        return {**plain, "summary": summary} if summary else plain

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "Measurement":
        """The measurement that :meth:`to_dict` wrote."""
        return cls(**{name: value for name, value in state.items() if name != "summary"})

    @cached_property
    def _draws(self) -> np.ndarray:
        count = min(map(len, self.samples.values()))
        return np.random.default_rng(self.seed).integers(count, size=(_RESAMPLES, count))

    def _resampled(self, name: str) -> np.ndarray:
        if name not in self._medians:
            self._medians[name] = np.median(np.asarray(self.samples[name])[self._draws], axis=1)
        return self._medians[name]


class Interrupted(KeyboardInterrupt):
    """Raised by :func:`measure` on Ctrl-C or an exit; ``measurement`` holds the complete rounds, maybe none.

    Its cause is what ended them.
    """

    def __init__(self, measurement: Measurement) -> None:
        super().__init__(f"interrupted after {min(map(len, measurement.samples.values()))} rounds")
        self.measurement = measurement


def cpu_load(seconds: float = 0.2) -> Optional[float]:
    """Percentage of all cores in use while this program waits; None where psutil is missing, or may not see it."""
    try:
        import psutil

        return psutil.cpu_percent(interval=seconds)
    except (ImportError, OSError):  # the latter where /proc is hidden, as on Android
        return None


def measure(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 3,
    seed: int = 0,
    progress: Optional[Callable[[int, int], object]] = None,
    primed: bool = True,
) -> Measurement:
    """Time every contestant in ``rounds`` interleaved rounds, their order drawn anew for each.

    Args:
        contestants: what to call, by name. Threads are the caller's to pin.
        rounds: timed calls of each contestant.
        warmup: untimed calls of each contestant before the first round.
        seed: seed of the order.
        progress: called with the turns done and the turns in all after every turn.
        primed: make an untimed call in front of each timed one; of no use where a call is long.

    Raises:
        ValueError: no contestants, or fewer than one round.
        RuntimeError: a contestant failed; the message names it.
        Interrupted: on Ctrl-C or a SystemExit, as of a SIGTERM; it carries the rounds measured so far.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, got {rounds}")
    if not contestants:
        raise ValueError("there is nothing to measure: no contestants were given")
    result = Measurement({name: [] for name in contestants}, rounds, warmup, seed, load_before=cpu_load())
    order, shuffler = list(contestants), random.Random(seed)
    turns, total = 0, len(order) * (rounds + 1)
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        for name in order:
            for _ in range(warmup):
                _call(name, contestants[name])
            turns += 1
            if progress:
                progress(turns, total)
        for _ in range(rounds):
            shuffler.shuffle(order)
            times = {}
            for name in order:
                if primed:
                    _call(name, contestants[name])
                start = time.perf_counter()
                _call(name, contestants[name])
                times[name] = (time.perf_counter() - start) * 1e3
                turns += 1
                if progress:
                    progress(turns, total)
            for name, milliseconds in times.items():  # a round counts as a whole or not at all
                result.samples[name].append(milliseconds)
            gc.collect()
    except (KeyboardInterrupt, SystemExit) as told:
        raise Interrupted(result) from told
    finally:
        if was_collecting:
            gc.enable()
    result.load_after = cpu_load()
    return result


def _call(name: str, contestant: Callable[[], object]) -> None:
    try:
        contestant()
    except Exception as error:
        raise RuntimeError(f"{name} failed: {error}") from error
