"""The paper's tables of accuracies: which runs they are made of, and what was found beside what the paper says."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from ..measure.published import ABLATIONS, PAPER
from .data import Images
from .progress import epoch_line, say, say_aside
from .recipe import Recipe
from .release import finish
from .run import Run
from .trainer import Job, train_together

__all__ = ["TABLES", "Network", "accuracy_column", "format_table", "networks", "run_table"]


class Network(NamedTuple):
    """What makes a row of a table: a timm model and its arguments."""

    model: str
    model_args: Dict[str, Any] = {}

    @property
    def options(self) -> List[str]:
        """Of ``rdpnet train``."""
        return ["--model", self.model, "--model-args", *(f"{name}={value}" for name, value in self.model_args.items())]


_POLLING = 0.1  # seconds between two looks at the processes
Work = Tuple[str, Run, Path]  # a run with a name for messages and its folder

TABLES: Dict[int, Dict[str, Network]] = {
    3: {
        f"RDPNet-{width}x": Network(f"rdpnet_{name}_cifar")
        for width, name in (
            ("0.25", "025"),
            ("0.5", "050"),
            ("0.75", "075"),
            ("1.0", "100"),
            ("1.25", "125"),
            ("1.5", "150"),
        )
    },
    8: {row: Network("rdpnet_100_cifar", arguments) for row, arguments in ABLATIONS.items()},
}


def networks(number: int, model: Optional[str] = None) -> Dict[str, Network]:
    """The rows of a table, Table 8's of another ``model`` where one is given: its ablations are of any width.

    Raises:
        ValueError: ``model`` for a table whose rows are models.
    """
    rows = TABLES[number]
    if model is None:
        return rows
    if len({network.model for network in rows.values()}) > 1:
        raise ValueError(f"the rows of Table {number} are its models: leave out --model {model}")
    return {row: network._replace(model=model) for row, network in rows.items()}


def run_table(
    number: int,
    output: Path,
    seeds: Sequence[int],
    options: Sequence[str],
    run: Run,
    data: Tuple[Images, Images],
    jobs: int = 1,
    model: Optional[str] = None,
    data_name: str = "",
    first: Optional[int] = None,
) -> None:
    """Make the runs of a table, each in a folder of its own; those that are finished are left out.

    On a CPU each is a process of its own; on a GPU they share this one, see :func:`.trainer.train_together`.

    Args:
        number: 3 or 8.
        output: a folder; its subfolders are the runs.
        seeds: the seeds to run every row with.
        options: the data and more options of ``rdpnet train``, the same for all.
        run: what these options say, but for network and seed: a finished run is one of the same settings.
        data: what is read from the data that ``options`` name.
        jobs: how many runs at the same time; several small ones can share one GPU.
        model: of all rows, see :func:`networks`.
        data_name: the name of the data set, for the cards.
        first: how many rows, from the top; all by default.

    Raises:
        ValueError: a folder holds a finished run of other settings or data; nothing was run then.
        RuntimeError: a run failed; the others go on to their end first.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    common = _settings(dict(recipe=asdict(run.recipe), amp=run.amp, weights="", **_digests(data)))
    rows = dict(list(networks(number, model).items())[:first])
    unfinished = []
    for seed in dict.fromkeys(seeds):  # given twice, it would run twice in one folder
        for row, network in rows.items():
            card = _folder(output, row, seed) / "weights.json"
            if card.exists():
                settings, _, _ = _read_card(card)
                _require_same(card, settings, {**common, **_settings(network._asdict()), "seed": seed})
            else:
                unfinished.append((row, seed))

    work = [
        (
            f"{row}, seed {seed}",
            replace(run, model=rows[row].model, model_args=_arguments(rows[row]), seed=seed),
            folder,
        )
        for row, seed in unfinished
        for folder in [_folder(output, row, seed)]
    ]
    if run.device == "cpu":
        failures = _in_processes(work, jobs, options)
    else:
        failures = _in_this_process(work, jobs, data, data_name)
    if failures:
        raise RuntimeError(f"{len(failures)} runs failed, see their messages above: {'; '.join(failures)}")


def _arguments(network: Network) -> Tuple[Tuple[str, Any], ...]:
    return tuple(sorted(network.model_args.items()))


def _in_processes(work: Sequence[Work], jobs: int, options: Sequence[str]) -> List[str]:
    """Make the runs by ``rdpnet train``, and say which failed."""
    waiting, failures = list(work), []
    running: Dict[subprocess.Popen[bytes], str] = {}
    try:
        while waiting or running:
            if waiting and len(running) < jobs:
                name, run, folder = waiting.pop(0)
                command = [sys.executable, "-m", "rdpnet_timm.cli", "train", *options]
                command += Network(run.model, dict(run.model_args)).options
                process = subprocess.Popen([*command, "--seed", str(run.seed), "--output", str(folder)])
                running[process] = name
                continue
            for process in [each for each in running if each.poll() is not None]:
                name = running.pop(process)
                if process.returncode:
                    failures.append(f"{name}: exit status {process.returncode}")
            time.sleep(_POLLING)
    except BaseException:
        for process in running:  # which have it already, where a terminal told the whole group
            process.terminate()
        for process in running:  # they write their checkpoints
            process.wait()
        raise
    return failures


def _in_this_process(work: Sequence[Work], jobs: int, data: Tuple[Images, Images], data_name: str) -> List[str]:
    """Make the runs a step of each in turn, and say which failed."""

    def reporter(name: str) -> Callable[[int, int, Dict[str, float]], None]:
        def report(step: int, steps: int, record: Dict[str, float]) -> None:
            if record:
                say(f"{name}: {epoch_line(record)}")

        return report

    runs = [Job(run, data, folder, reporter(name)) for name, run, folder in work]
    results = train_together(
        runs, lambda job, result: finish(result, job.run, data[1], Path(job.output), data_name), jobs
    )
    failures = {name: result for (name, _, _), result in zip(work, results) if isinstance(result, Exception)}
    for name, error in failures.items():
        say_aside(f"{name}: {error}")
    return [f"{name}: {type(error).__name__}" for name, error in failures.items()]


def _digests(data: Tuple[Images, Images]) -> Dict[str, str]:
    return dict(training_data=data[0].digest(), test_data=data[1].digest())


def _settings(card: Dict[str, Any]) -> Dict[str, Any]:
    """What has to be the same of two runs, of a card's entries; a recipe's settings one by one."""
    names = ("model", "model_args", "amp", "training_data", "test_data", "weights")
    recipe = {**asdict(Recipe()), **card["recipe"]} if "recipe" in card else {}
    return {
        **{name: card[name] for name in names if name in card},
        **{f"recipe.{name}": value for name, value in recipe.items()},
    }


def _read_card(path: Path) -> Tuple[Dict[str, Any], float, int]:
    """Settings, accuracy and number of classes of a finished run.

    The accuracy is the run's own: rounded to half precision its weights are kept where that costs no picture, so that
    theirs is never below, and a mean of them would be above the truth.

    Raises:
        ValueError: ``path`` is not the card of one.
    """
    try:
        card = json.loads(path.read_text())
        settings = {"weights": "", **_settings(card), "seed": card["seed"]}
        return settings, float(card["accuracy_before_rounding"]), len(card.get("classes", ()))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{path}' is not the card of a finished run ({error!r}): delete this file, and `rdpnet table` with the "
            "data writes it again from the checkpoint beside it"
        ) from None


def _require_same(path: Path, found: Dict[str, Any], expected: Dict[str, Any]) -> None:
    differing = [
        f"{name} {found.get(name)} rather than {ours}" for name, ours in expected.items() if ours != found.get(name)
    ]
    if differing:
        raise ValueError(
            f"'{path}' is the card of another run, with {', '.join(differing)}; name another output folder or delete it"
        )


def accuracy_column(number: int, column: Optional[str] = None, classes: int = 0) -> str:
    """``column``, or else that of the paper's accuracies that data of this many ``classes`` belong beside.

    Raises:
        ValueError: the table has no such column, or it has one for this many classes and ``column`` is another.
    """
    columns = [name for name in PAPER[f"table{number}"].columns if name.endswith("%")]
    own = next((name for name in columns if name == f"CIFAR-{classes} %"), None)
    column = column or own or columns[0]
    if column not in columns:
        raise ValueError(f"the paper's Table {number} has the accuracies {', '.join(columns)}, got '{column}'")
    if own and column != own:
        raise ValueError(f"data of {classes} classes belong beside '{own}', not beside '{column}'")
    return column


def format_table(number: int, output: Path, column: Optional[str] = None, model: Optional[str] = None) -> str:
    """A Markdown table of the paper's accuracies in ``column`` ('CIFAR-10 %') and the mean of those in ``output``.

    Args:
        number: 3 or 8.
        output: the folder of the runs, see :func:`run_table`.
        column: of the paper; by default that which the data of the runs belong beside, see :func:`accuracy_column`.
        model: of all rows, see :func:`networks`; from that of the paper's no difference is taken.

    Raises:
        ValueError: the table has no such column, a card in ``output`` is none, or the runs there differ in more than
            network and seed, so that they make no table.
    """
    paper, rows = PAPER[f"table{number}"], networks(number, model)
    cards = {
        row: {path: _read_card(path) for path in sorted(_folder(output, row, 0).parent.glob("seed*/weights.json"))}
        for row in rows
    }
    classes = next((classes for of_row in cards.values() for _, _, classes in of_row.values()), 0)
    column = accuracy_column(number, column, classes)
    is_papers = rows == TABLES[number]
    theirs_of = "paper" if is_papers else f"paper, {next(iter(TABLES[number].values())).model}"
    common: Dict[str, Any] = {}
    lines = [f"| {column} | {theirs_of} | ours | spread | seeds | difference |", "|---|---|---|---|---|---|"]
    for row in rows:
        theirs = paper.rows[row][paper.columns.index(column)]
        found = []
        for path, (settings, accuracy, _) in cards[row].items():
            common = common or {
                name: value for name, value in settings.items() if name not in (*Network._fields, "seed")
            }
            _require_same(path, settings, {**common, **rows[row]._asdict()})
            found.append(accuracy)
        cells = [row, "" if theirs is None else f"{theirs:.1f}"]
        if found:
            mean = statistics.fmean(found)
            spread = f"±{statistics.stdev(found):.2f}" if len(found) > 1 else ""
            difference = f"{mean - theirs:+.2f}" if is_papers and theirs is not None else ""
            cells += [f"{mean:.2f}", spread, str(len(found)), difference]
        else:
            cells += ["not run", "", "0", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _folder(output: Path, row: str, seed: int) -> Path:
    name = "".join(character if character.isalnum() or character in ".-" else "_" for character in row)
    return output / name / f"seed{seed}"
