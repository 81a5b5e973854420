"""Measure tables: build the contestants, let them take turns, write what comes out after every run."""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch

from ..extras import is_installed, require_all
from ..files import require_writable
from ..measure.forms import settle_norms
from ..measure.machine import require_threads
from ..measure.size import count, count_macs
from . import backends as runtimes
from . import isa
from .report import Result, Start, entry_facts, markdown, measure_runs, record, require_unfinished, write
from .tables import DEPLOY, TABLES, Comparison, Entry, Table
from .throughput import THROUGHPUT_NOTE, THROUGHPUT_TITLE, Pair, measure_throughput, streaming
from .training import SETTINGS, TRAINING_NOTE, TRAINING_TITLE, Setting, measure_training, require_training

__all__ = ["BACKENDS", "NAMES", "run"]

BACKENDS = ("eager", "onnxruntime", "openvino")  # torch.compile takes a minute per network
NAMES = (*TABLES, "training", "throughput")
_OTHERS = {"training": (TRAINING_TITLE, TRAINING_NOTE), "throughput": (THROUGHPUT_TITLE, THROUGHPUT_NOTE)}
QUICK_ROUNDS = 2
_WHOLE_BACKENDS = ("onnxruntime", "openvino")
_WHOLE_NEEDS = ("mmengine", "mmcv", "mmdet", "mmseg")


def run(
    names: Sequence[str],
    output: Path,
    backends: Sequence[str] = BACKENDS,
    threads: Sequence[int] = (1,),
    rounds: int = 30,
    quick: bool = False,
    command: str = "",
    precisions: Sequence[str] = runtimes.PRECISIONS,
    settings: Sequence[Setting] = SETTINGS,
) -> List[Path]:
    """Measure the tables ``names`` and write ``TABLE.md``, ``.csv``, ``.json`` and, where there is one, ``.png``.

    Args:
        names: of :data:`NAMES`, or 'all' for all that can be measured; the others are named on the screen.
        output: folder for the files; made where it is missing.
        backends: what runs the networks, of :data:`.backends.BACKENDS`.
        threads: numbers of threads, each measured on its own.
        rounds: timed calls of each contestant; the paper's figures are means of 500.
        quick: two rounds of the reference and one other network of each table, to see that all works.
        command: what the user typed, for the record.
        precisions: of :data:`.backends.PRECISIONS`; each backend is measured in those that it and the CPU have.
        settings: what the table of training holds, see :func:`.training.select`.

    Raises:
        ValueError: an unknown table, backend or precision, no rounds or no threads, or a table that has none of them.
        ImportError: something is needed that is not installed.
        OSError: nothing can be written to ``output``, or a complete result is there, which is never replaced.
        RuntimeError: a table's reference, or what is compared without one, failed; the other tables have been measured.
        KeyboardInterrupt: on Ctrl-C, or an order to end, after the complete rounds have been written.
    """
    backends, precisions = list(dict.fromkeys(backends)), list(dict.fromkeys(precisions))  # named twice, measured once
    threads = list(dict.fromkeys(threads))
    tables, pairs = _plan(names, output, backends, threads, rounds, precisions)
    require_writable(output)
    from . import plots

    written, ended = [], []
    for name in tables:
        title, note = _OTHERS[name] if name in _OTHERS else (TABLES[name].title, TABLES[name].note)
        result: Result = {
            "table": name,
            "title": title,
            "note": note,
            "complete": False,
            "quick": quick,
            "rounds": QUICK_ROUNDS if quick else rounds,
            **record(command),
            "runs": [],
        }
        save = partial(write, result, output)
        try:
            with _progress(name) as start:
                if name == "training":
                    measure_training(result, threads, start, save, settings, precisions)
                elif name == "throughput":
                    measure_throughput(result, pairs, start, save)
                else:
                    _measure_table(TABLES[name], result, pairs, threads, start, save)
            result["complete"] = True
        except KeyboardInterrupt:
            kept = f"{len(result['runs'])} runs of {name} were measured, wholly or in part, and are kept in {output}"
            print("interrupted:", kept if result["runs"] else f"no round of {name} was complete, nothing of it is kept")
            raise
        except RuntimeError as error:  # hours of other tables need not end with one
            if len(tables) == 1:
                raise
            print(f"{name} ended early: {error}", flush=True)
            ended.append(name)
            continue
        finally:
            if result["runs"]:
                written += [*save(), *plots.draw(result, output)]
        print(markdown(result, details=False))
    if ended:
        raise RuntimeError(f"{', '.join(ended)} ended early: see above")
    return written


def _plan(
    names: Sequence[str],
    output: Path,
    backends: Sequence[str],
    threads: Sequence[int],
    rounds: int,
    precisions: Sequence[str],
) -> Tuple[List[str], List[Pair]]:
    """The tables to measure, and the pairs of backend and precision; what is wrong with them is said before the first.

    Raises:
        ImportError, OSError, ValueError: as :func:`run`.
    """
    for name in names:
        if name not in (*NAMES, "all"):
            raise ValueError(f"there is no table '{name}'; choose from {', '.join(NAMES)} or all")
    if rounds < 1:
        raise ValueError(f"--rounds must be 1 or more, got {rounds}")
    require_threads(*threads)
    tables = list(dict.fromkeys(NAMES if "all" in names else names))
    pairs: List[Pair] = []
    if tables != ["training"]:  # which runs on PyTorch alone
        runtimes.require(backends, threads)
        pairs = runtimes.available(backends, precisions)
    require_all(("matplotlib", "psutil", "rich"), "rdpnet bench", "bench")
    measurable = []
    for name in tables:
        try:
            _require_table(name, output, pairs, precisions)
            measurable.append(name)
        except (ImportError, OSError, ValueError) as error:
            if "all" not in names:
                raise
            print(f"{name} is left out: {error}", flush=True)
    if not measurable:
        raise ValueError("there is nothing to measure, all tables are left out")
    return measurable, pairs


def _require_table(name: str, output: Path, pairs: Sequence[Pair], precisions: Sequence[str]) -> None:
    if name == "training":
        require_training(precisions)
    elif name == "throughput":
        streaming(pairs)
    require_unfinished(output / f"{name}.json")


@contextmanager
def _progress(name: str) -> Iterator[Start]:
    """Show, on a terminal, two bars, the table's runs and the turns of the present one, each with the time left.

    Gives a function ``start(description, done, total)`` for every run, which gives the run's own progress function.
    """
    from rich import get_console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    left = TimeRemainingColumn(elapsed_when_finished=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    quiet = not get_console().is_terminal
    with Progress(*columns, left, speed_estimate_period=600, disable=quiet) as progress:
        whole, part = progress.add_task(name, total=None), progress.add_task("", total=None)

        def start(description: str, done: int, total: int) -> Callable[[int, int], None]:
            progress.update(whole, completed=done, total=total)
            progress.reset(part, description=description, total=None)

            def turn(turns: int, of: int) -> None:
                progress.update(part, completed=turns, total=of)
                progress.update(whole, completed=done + turns / of)

            return turn

        yield start


@dataclass
class _Contestant:
    """A network in one form, and what the result keeps of it."""

    form: runtimes.Form
    facts: Dict[str, Any]


def _measure_table(
    table: Table,
    result: Result,
    pairs: Sequence[Tuple[str, str]],
    threads: Sequence[int],
    start: Start,
    save: Callable[[], Any],
) -> None:
    jobs, left_out = _jobs(table, pairs)
    result["note"] += left_out
    if result["quick"]:
        jobs = [job for job in jobs if job[0] in (*table.comparisons[:1], *table.whole[:1])]
    total = sum(len(able) for _, able in jobs) * len(threads)
    for comparison, able in jobs:
        is_whole = comparison in table.whole
        start(f"{comparison.title}: building", len(result["runs"]), total)
        torch.set_num_threads(max(threads))
        entries = _quick_entries(comparison) if result["quick"] else comparison.entries
        if crashing := [each for each in entries if each.name in isa.crashing(result["machine"]["isa_limit"])]:
            entries = [each for each in entries if each not in crashing]
            names = ", ".join(each.name for each in crashing)
            result["note"] += f" Left out, since OpenVINO held below AVX-512 crashes on it here: {names}."
        contestants = _build_whole(entries, result["quick"]) if is_whole else _build(table, entries)
        reference = f"{comparison.reference}, {list(table.forms)[-1]}"
        for group in _take_turns(able):
            for number in threads:
                turn = start(f"{comparison.title}: {_named(group)}, {number} threads", len(result["runs"]), total)
                runtimes.pin_threads(number)
                functions: Dict[Tuple[str, str], Dict[str, Callable[[], object]]] = {}
                runs: Dict[Tuple[str, str], Dict[str, Any]] = {}
                for pair in group:
                    allowed = list(table.forms) if pair[0] == "eager" else table.runtime_forms
                    chosen = {key: each for key, each in contestants.items() if each.facts["form"] in allowed}
                    functions[pair], facts, failures = _prepare(*pair, number, chosen)
                    if reference in failures:
                        raise RuntimeError(f"{reference} failed on {pair[0]} in {pair[1]}: {failures[reference]}")
                    runs[pair] = dict(
                        comparison=comparison.title,
                        reference=reference,
                        backend=pair[0],
                        precision=pair[1],
                        threads=number,
                        contestants=facts,
                        failures=failures,
                    )
                isa.keep_kernels(result, comparison.title, contestants[reference].form, group)
                measure_runs(result, functions, turn, runs, primed=not is_whole)
                save()


def _jobs(table: Table, pairs: Sequence[Tuple[str, str]]) -> Tuple[List[Tuple[Comparison, List[Tuple[str, str]]]], str]:
    """What is measured, each with the pairs of backend and precision that can run it; and what is left out, and why."""
    jobs = [(comparison, list(pairs)) for comparison in table.comparisons]
    if not table.whole:
        return jobs, ""
    able = [pair for pair in pairs if pair[0] in _WHOLE_BACKENDS]
    if not able:
        return jobs, f" Whole networks are left out: they run on {' and '.join(_WHOLE_BACKENDS)}."
    if not all(map(is_installed, _WHOLE_NEEDS)):
        return jobs, ' Whole networks are left out, they need OpenMMLab: `pip install "rdpnet-timm[openmmlab]"`.'
    return jobs + [(comparison, able) for comparison in table.whole], ""


def _take_turns(pairs: Sequence[Tuple[str, str]]) -> List[List[Tuple[str, str]]]:
    """What is measured in one interleaved run: all runtimes in all precisions, so that the best of them can be named;
    PyTorch, many times slower, on its own.
    """
    own = [[pair] for pair in pairs if pair[0] not in runtimes.RUNTIMES]
    together = [pair for pair in pairs if pair[0] in runtimes.RUNTIMES]
    return own + ([together] if together else [])


def _named(pairs: Sequence[Tuple[str, str]]) -> str:
    return ", ".join(dict.fromkeys(backend for backend, _ in pairs))


def _quick_entries(comparison: Comparison) -> Sequence[Entry]:
    reference = [entry for entry in comparison.entries if entry.name == comparison.reference]
    return [entry for entry in comparison.entries if entry not in reference][-1:] + reference


def _build(table: Table, entries: Sequence[Entry]) -> Dict[str, _Contestant]:
    """Every network in every form of the table; a form in which nothing changed is left out, but for the last."""
    contestants = {}
    for entry in entries:
        torch.manual_seed(0)
        model = settle_norms(entry.build(), x := _small_images(entry.size))
        forms = {name: make(model, x) for name, make in table.forms.items()}
        last = list(forms)[-1]
        for name, module in forms.items():
            if name == last or module is not forms[last]:
                form = runtimes.Form(module, torch.randn(1, *entry.size))
                facts = entry_facts(entry, name, *count(module, entry.size))
                contestants[f"{entry.name}, {name}"] = _Contestant(form, facts)
    return contestants


def _build_whole(entries: Sequence[Entry], quick: bool) -> Dict[str, _Contestant]:
    """As :func:`_build`, of whole networks, which have one form; a quick run gives them a small picture as it is."""
    from .whole_networks import PictureForm

    contestants = {}
    for entry in entries:
        network = entry.build()
        if quick:
            network.picture.resize = None
        form = PictureForm(network, (96, 128) if quick else (entry.size[0], entry.size[1]))
        params = sum(parameter.numel() for parameter in network.parameters())
        facts = entry_facts(entry, DEPLOY, params, count_macs(network, form.x))
        contestants[f"{entry.name}, {DEPLOY}"] = _Contestant(form, {**facts, "size": list(form.x.shape)})
    return contestants


def _small_images(size: Sequence[int]) -> torch.Tensor:
    """Images to make a network's forms with, halved while they have more pixels than that takes."""
    channels, height, width = size
    while max(height, width) > 160:
        height, width = height // 2, width // 2
    return runtimes.images_like((channels, height, width), 4)


def _prepare(
    backend: str, precision: str, threads: int, contestants: Mapping[str, _Contestant]
) -> Tuple[Dict[str, Callable[[], object]], Dict[str, Dict[str, Any]], Dict[str, str]]:
    """What to call, what is known of it, and why those that are missing there cannot run, by contestant."""
    functions: Dict[str, Callable[[], object]] = {}
    facts: Dict[str, Dict[str, Any]] = {}
    failures: Dict[str, str] = {}
    for key, contestant in contestants.items():
        try:
            snr: Optional[float] = None
            function: Callable[[], object]
            if backend in runtimes.RUNTIMES:
                run = runtimes.runner(backend, contestant.form, threads, precision)
                if contestant.form.has_snr:
                    snr = round(runtimes.signal_to_noise(contestant.form, run), 1)
                function = partial(run, contestant.form.x.numpy())
            else:
                function = runtimes.prepare(backend, contestant.form, threads)
            if not np.isfinite(np.asarray(function())).all() and (snr is None or precision == "float32"):
                raise FloatingPointError("its outputs are not finite")  # of INT8 the ratio, -300 then, says it
            functions[key], facts[key] = function, {**contestant.facts, "snr_db": snr}
        except Exception as error:  # whatever a runtime raises for a network that it cannot run
            failures[key] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return functions, facts, failures
