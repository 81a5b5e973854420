"""The paper's tables of accuracies: which runs they are made of, and what was found beside what the paper says."""

import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from ..measure.published import PAPER

__all__ = ["TABLES", "format_table", "run_table"]

# the row of the paper's table, and the options that make it
TABLES: Dict[int, Dict[str, Tuple[str, ...]]] = {
    3: {
        f"RDPNet-{width}x": ("--model", f"rdpnet_{name}_cifar")
        for width, name in (
            ("0.25", "025"),
            ("0.5", "050"),
            ("0.75", "075"),
            ("1.0", "100"),
            ("1.25", "125"),
            ("1.5", "150"),
        )
    },
    8: {
        row: ("--model", "rdpnet_100_cifar", "--model-args", *arguments)
        for row, arguments in (
            ("identity in PW, no shuffle", ("pointwise_identity=True", "shuffle_groups=0")),
            ("no identity, no shuffle", ("shuffle_groups=0",)),
            ("identity in PW, shuffle", ("pointwise_identity=True",)),
            ("no identity, shuffle (RDPNet)", ("shuffle_groups=2",)),
        )
    },
}


def run_table(number: int, output: Path, seeds: Sequence[int], options: Sequence[str], jobs: int = 1) -> None:
    """Make the runs of a table, each in a process and a folder of its own; those that are finished are left out.

    Args:
        number: 3 or 8.
        output: a folder; its subfolders are the runs.
        seeds: the seeds to run every row with.
        options: the data and more options of ``rdpnet train``, the same for all.
        jobs: how many runs at the same time; several small ones can share one GPU.

    Raises:
        RuntimeError: a run failed; the others go on to their end first.
    """

    def start(work: Tuple[str, int]) -> str:
        row, seed = work
        folder = _folder(output, row, seed)
        if (folder / "weights.json").exists():
            return ""
        command = [sys.executable, "-m", "rdpnet_timm.cli", "train", *options, *TABLES[number][row]]
        finished = subprocess.run([*command, "--seed", str(seed), "--output", str(folder)])
        return f"{row}, seed {seed}: exit status {finished.returncode}" if finished.returncode else ""

    with ThreadPoolExecutor(jobs) as pool:
        failures = [failure for failure in pool.map(start, [(r, s) for s in seeds for r in TABLES[number]]) if failure]
    if failures:
        raise RuntimeError(f"{len(failures)} runs failed, see their messages above: {'; '.join(failures)}")


def format_table(number: int, output: Path, column: str) -> str:
    """A Markdown table of the paper's accuracies in ``column`` ('CIFAR-10 %') and the mean of those in ``output``."""
    paper = PAPER[f"table{number}"]
    lines = [f"| {column} | paper | ours | spread | seeds | difference |", "|---|---|---|---|---|---|"]
    for row in TABLES[number]:
        theirs = paper.rows[row][paper.columns.index(column)] if column in paper.columns else None
        found = _accuracies(output, row)
        cells = [row, "" if theirs is None else f"{theirs:.1f}"]
        if found:
            mean = statistics.fmean(found)
            spread = f"±{statistics.stdev(found):.2f}" if len(found) > 1 else ""
            cells += [f"{mean:.2f}", spread, str(len(found)), "" if theirs is None else f"{mean - theirs:+.2f}"]
        else:
            cells += ["not run", "", "0", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _folder(output: Path, row: str, seed: int) -> Path:
    name = "".join(character if character.isalnum() or character in ".-" else "_" for character in row)
    return output / name / f"seed{seed}"


def _accuracies(output: Path, row: str) -> List[float]:
    cards = sorted(_folder(output, row, 0).parent.glob("seed*/weights.json"))
    return [json.loads(card.read_text())["accuracy_deploy_form"] for card in cards]
