"""Measure tables: build the contestants, let them take turns, write what comes out after every run."""

import importlib.util
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Sequence, Tuple

import torch

from ..measure.forms import settle_norms
from ..measure.machine import describe
from ..measure.size import count
from . import backends as runtimes
from .report import Result, Start, entry_facts, markdown, measure_run, write
from .tables import TABLES, Comparison, Entry, Table
from .training import TRAINING_NOTE, TRAINING_TITLE, measure_training

__all__ = ["BACKENDS", "NAMES", "run"]

BACKENDS = ("eager", "onnxruntime", "openvino")  # torch.compile takes a minute per network
NAMES = (*TABLES, "training")
QUICK_ROUNDS = 2


def run(
    names: Sequence[str],
    output: Path,
    backends: Sequence[str] = BACKENDS,
    threads: Sequence[int] = (1,),
    rounds: int = 30,
    quick: bool = False,
    command: str = "",
) -> List[Path]:
    """Measure the tables ``names`` and write ``TABLE.md``, ``.csv``, ``.json`` and, where there is one, ``.png``.

    Args:
        names: of :data:`NAMES`.
        output: folder for the files; made where it is missing.
        backends: what runs the networks, of :data:`.backends.BACKENDS`.
        threads: numbers of threads, each measured on its own.
        rounds: timed calls of each contestant; the paper's figures are means of 500.
        quick: two rounds of the reference and one other network of each table, to see that all works.
        command: what the user typed, for the record.

    Raises:
        ValueError: an unknown table or backend, no rounds or no threads.
        ImportError: something is needed that is not installed.
        OSError: nothing can be written to ``output``.
        KeyboardInterrupt: on Ctrl-C, after the complete rounds have been written.
    """
    _check(names, backends, threads, rounds)
    _check_writable(output)
    from . import plots

    written = []
    for name in dict.fromkeys(names):
        title, note = (TABLES[name].title, TABLES[name].note) if name in TABLES else (TRAINING_TITLE, TRAINING_NOTE)
        result: Result = {
            "table": name,
            "title": title,
            "note": note,
            "complete": False,
            "quick": quick,
            "rounds": QUICK_ROUNDS if quick else rounds,
            "command": command,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": describe(),
            "runs": [],
        }
        save = partial(write, result, output)
        try:
            with _progress(name) as start:
                if name == "training":
                    measure_training(result, threads, start, save)
                else:
                    _measure_table(TABLES[name], result, backends, threads, start, save)
            result["complete"] = True
        except KeyboardInterrupt:
            kept = sum(any(run["measurement"]["samples"].values()) for run in result["runs"])
            print(f"interrupted: {kept} runs of {name} were measured, wholly or in part, and are kept in {output}")
            raise
        finally:
            if result["runs"]:
                written += [*save(), *plots.draw(result, output)]
        print(markdown(result, details=False))
    return written


def _check(names: Sequence[str], backends: Sequence[str], threads: Sequence[int], rounds: int) -> None:
    for name in names:
        if name not in NAMES:
            raise ValueError(f"there is no table '{name}'; choose from {', '.join(NAMES)} or all")
    if rounds < 1:
        raise ValueError(f"--rounds must be 1 or more, got {rounds}")
    if not threads or min(threads) < 1:
        raise ValueError(f"--threads must be 1 or more, got {' '.join(map(str, threads))}")
    runtimes.require(backends)
    missing = [package for package in ("matplotlib", "psutil", "rich") if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f'rdpnet bench needs {" and ".join(missing)}: pip install "rdpnet-timm[bench]"')


def _check_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise OSError(f"cannot write results to '{output}' ({error.strerror}); choose another folder with -o") from None


@contextmanager
def _progress(name: str) -> Iterator[Start]:
    """Show two bars, the table's runs and the turns of the present one, each with the time left.

    Gives a function ``start(description, done, total)`` for every run, which gives the run's own progress function.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), speed_estimate_period=600) as progress:
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
    table: Table, result: Result, backends: Sequence[str], threads: Sequence[int], start: Start, save: Callable[[], Any]
) -> None:
    comparisons = table.comparisons[:1] if result["quick"] else table.comparisons
    total = len(comparisons) * len(backends) * len(threads)
    for comparison in comparisons:
        start(f"{comparison.title}: building", len(result["runs"]), total)
        torch.set_num_threads(max(threads))
        contestants = _build(table, _quick_entries(comparison) if result["quick"] else comparison.entries)
        for backend in backends:
            allowed = list(table.forms) if backend == "eager" else table.runtime_forms
            chosen = {key: each for key, each in contestants.items() if each.facts["form"] in allowed}
            for number in threads:
                turn = start(f"{comparison.title}: {backend}, {number} threads", len(result["runs"]), total)
                runtimes.pin_threads(number)
                functions, failures = _prepare(backend, number, chosen)
                reference = f"{comparison.reference}, {list(table.forms)[-1]}"
                if reference in failures:
                    raise RuntimeError(f"{reference} failed on {backend}: {failures[reference]}")
                measure_run(
                    result,
                    functions,
                    turn,
                    comparison=comparison.title,
                    reference=reference,
                    backend=backend,
                    threads=number,
                    contestants={key: chosen[key].facts for key in functions},
                    failures=failures,
                )
                save()


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


def _small_images(size: Sequence[int]) -> torch.Tensor:
    """Two images to make a network's forms with, halved while they have more pixels than that takes."""
    channels, height, width = size
    while max(height, width) > 160:
        height, width = height // 2, width // 2
    return torch.randn(2, channels, height, width)


def _prepare(
    backend: str, threads: int, contestants: Mapping[str, _Contestant]
) -> Tuple[Dict[str, Callable[[], object]], Dict[str, str]]:
    """What to call, by contestant, and why those that are missing there cannot run."""
    functions: Dict[str, Callable[[], object]] = {}
    failures: Dict[str, str] = {}
    for key, contestant in contestants.items():
        try:
            function = runtimes.prepare(backend, contestant.form, threads)
            function()
            functions[key] = function
        except Exception as error:  # whatever a runtime raises for a network that it cannot run
            failures[key] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return functions, failures
