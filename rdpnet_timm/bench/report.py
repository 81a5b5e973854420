"""Results as files: JSON with every sample, CSV with a row per figure, Markdown to read.

A result is the plain dict that its JSON file holds; everything else is made from it, so that a table can be written
anew without measuring anew (:mod:`.docs`).
"""

import csv
import io
import json
from dataclasses import replace
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..files import atomic_path
from ..measure.machine import describe
from ..measure.timing import MIN_ROUNDS, Interrupted, Measurement, measure
from .backends import NOISY_DB, RUNTIMES, WRONG_DB
from .tables import DEPLOY, TABLES, Entry

__all__ = [
    "Result", "Start", "best", "comparable", "conditions", "describe_run", "entry_facts", "is_wrong", "markdown",
    "measure_run", "measure_runs", "record", "require_unfinished", "rows", "write",
]  # fmt: skip

UNFINISHED = "**Unfinished, or interrupted: what is here was measured, the rest is missing.**"

Result = Dict[str, Any]
# start(description, runs done, runs in all) gives progress(turns done, turns in all)
Start = Callable[[str, int, int], Callable[[int, int], None]]


def measure_run(
    result: Result, functions: Mapping[str, Callable[[], object]], progress: Callable[[int, int], object], **facts: Any
) -> None:
    """Time ``functions`` and append the run to the result; an interrupted one too, if a round of it was complete.

    Args:
        result: gets the run; says how many rounds.
        functions: what to call, by contestant.
        progress: as :func:`.timing.measure` takes it.
        facts: ``comparison``, ``reference`` (a contestant), ``backend``, ``threads``, ``contestants`` (by name: name,
            form, size, params, macs) and ``failures`` (by name: why it could not run).
    """
    warmup = 1 if result["quick"] else 3
    try:
        measurement = measure(functions, result["rounds"], warmup, progress=progress, primed=facts.pop("primed", True))
    except Interrupted as interrupted:
        _append(result, interrupted.measurement, facts)
        raise
    _append(result, measurement, facts)


def measure_runs(
    result: Result,
    functions: Mapping[Tuple[str, str], Mapping[str, Callable[[], object]]],
    progress: Callable[[int, int], object],
    runs: Mapping[Tuple[str, str], Dict[str, Any]],
    primed: bool = True,
) -> None:
    """As :func:`measure_run`, for several backends and precisions whose contestants all take turns with each other.

    Args:
        result: gets a run for each pair of backend and precision.
        functions: what to call, by pair and contestant.
        progress: as :func:`.timing.measure` takes it.
        runs: the facts of each run.
        primed: as :func:`.timing.measure` takes it.
    """
    together = {(pair, key): call for pair, calls in functions.items() for key, call in calls.items()}
    names = {f"{pair[0]}, {pair[1]}: {key}": (pair, key) for pair, key in together}

    def split(measurement: Measurement) -> None:
        for pair, facts in runs.items():
            own = {names[name][1]: times for name, times in measurement.samples.items() if names[name][0] == pair}
            _append(result, replace(measurement, samples=own, _medians={}), facts)

    try:
        calls = {name: together[each] for name, each in names.items()}
        measurement = measure(calls, result["rounds"], 1 if result["quick"] else 3, progress=progress, primed=primed)
    except Interrupted as interrupted:
        split(interrupted.measurement)
        raise
    split(measurement)


def _append(result: Result, measurement: Measurement, facts: Dict[str, Any]) -> None:
    if not any(measurement.samples.values()):  # interrupted before the first round was complete
        return
    ratios = [{"of": a, "to": b, **measurement.ratio(a, b)._asdict()} for a, b in combinations(measurement.samples, 2)]
    result["runs"].append({**facts, "measurement": measurement.to_dict(), "ratios": ratios})


def require_unfinished(path: Path) -> None:
    """Raise a FileExistsError where a result is there that was measured to its end, in all its rounds."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        is_whole = result["complete"] and not result.get("quick")
    except (AttributeError, OSError, LookupError, TypeError, ValueError):  # none, or what is left of one
        return
    if is_whole:
        raise FileExistsError(f"'{path}' is a complete result: choose another folder, or move it away")


def describe_run(run: Mapping[str, Any]) -> str:
    """Backend, precision where it is not float32, and threads, as a heading says them."""
    return f"{_backend(run)}, {_threads(run)}"


def _backend(run: Mapping[str, Any]) -> str:
    precision = run.get("precision") or "float32"
    return run["backend"] if precision == "float32" else f"{run['backend']} {precision}"


def _threads(run: Mapping[str, Any]) -> str:
    return f"{run['threads']} thread{'s' if run['threads'] != 1 else ''}"


def rows(result: Result) -> Iterator[Dict[str, Any]]:
    """One row for each contestant of each run: medians and minima in ms, and the ratio to the reference of the run."""
    for run in result["runs"]:
        measurement = Measurement.from_dict(run["measurement"])
        reference = run["reference"]
        for key, contestant in run["contestants"].items():
            ratio = measurement.ratio(key, reference)
            verdict = "tie" if ratio.is_tie else "slower" if ratio.estimate > 1 else "faster"
            yield {
                "table": result["table"],
                "comparison": run["comparison"],
                "network": contestant["name"],
                "form": contestant["form"],
                "backend": run["backend"],
                "precision": run.get("precision") or "float32",
                "threads": run["threads"],
                "size": "x".join(map(str, contestant["size"])),
                "params": contestant["params"],
                "macs": contestant["macs"],
                "rounds": len(measurement.samples[key]),
                "median_ms": round(measurement.median(key), 4),
                "min_ms": round(measurement.minimum(key), 4),
                "ratio": round(ratio.estimate, 4),
                "ratio_low": None if ratio.low is None else round(ratio.low, 4),
                "ratio_high": None if ratio.high is None else round(ratio.high, 4),
                "ratio_of_minima": round(measurement.minimum(key) / measurement.minimum(reference), 4),
                "verdict": "reference" if key == reference else verdict,
                "snr_db": contestant.get("snr_db"),
                **_extra(contestant.get("extra", {}), measurement.median(key)),
            }


def _extra(extra: Mapping[str, Any], median: float) -> Dict[str, Any]:
    """What only training has: the batch, the peak memory, and images per second."""
    return {**extra, "images/s": round(extra["batch"] / median * 1e3, 1)} if extra else {}


def markdown(result: Result, details: bool = True, ties: bool = True) -> str:
    """The result as Markdown: the conditions, a table per comparison, warnings.

    ``details`` adds a table of every figure, ``ties`` the neighbours in each ranking that cannot be told apart.
    """
    parts = [f"### {result['title']}", conditions(result)]
    if result["quick"]:
        parts.append("**A quick run, to see that everything works: its times are not to be quoted.**")
    if not result["complete"]:
        parts.append(UNFINISHED)
    sweeps = [run for run in result["runs"] if any(one.get("x") for one in run["contestants"].values())]
    many_threads = not sweeps and len({run["threads"] for run in result["runs"]}) > 1
    groups: Dict[str, List[Dict[str, Any]]] = {}  # by heading
    for row in rows(result):
        threads = f", {_threads(row)}" if many_threads else ""
        groups.setdefault(f"{row['comparison']}{threads}", []).append(row)
    for title, group in groups.items():
        parts += [f"#### {title}"] if len(groups) > 1 else []
        parts.append(
            _sweep([run for run in sweeps if run["comparison"] == title]) if sweeps else _summary(result, group)
        )
    last_form = "train" if result["table"] == "training" else "deploy"
    over = "the first curve in the same line" if sweeps else f"the network in bold in its {last_form} form"
    what = "Images per second" if result["table"] == "throughput" else "Times are medians in ms"
    parts.append(
        f"{what}; the factor is the time over that of {over}, above 1 being slower; *tie*: the 95 % "
        f"interval of the factor holds 1, or there is none for want of {MIN_ROUNDS} rounds."
        + _precision_note(result)
        + ("" if sweeps else f" Parameters and MACs are those of the {last_form} form.")
    )
    parts += [text for text in (_paper_note(result), result["note"]) if text]
    parts += _warnings(result, ties)
    if details and groups:
        every = [row for group in groups.values() for row in group]
        parts.append(f"<details><summary>Every figure</summary>\n\n{_table(every[0], every)}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _precision_note(result: Result) -> str:
    has_many = len({run.get("precision") or "float32" for run in result["runs"]}) > 1
    note = (
        " *best* is a runtime's shortest time, or most images per second, and says which runtime and precision it "
        "was; all took turns in one run."
    )
    figures = (
        f" A figure in dB, given below {NOISY_DB:.0f}, is the signal-to-noise ratio against the float output on other "
        "images, of random weights; **wrong** marks an output no larger than its error, whose time never counts as "
        "the best."
    )
    is_noisy = any(_noise(one) for run in result["runs"] for one in run["contestants"].values())
    return (note if has_many else "") + _int8_note(result) + (figures if has_many or is_noisy else "")


def _int8_note(result: Result) -> str:
    used = list(dict.fromkeys(run["backend"] for run in result["runs"] if run.get("precision") == "int8"))
    edge = [backend for backend in used if backend not in ("onnxruntime", "openvino")]
    if not used:
        return ""
    quantisers = [f"{' and '.join(edge)}'s own"] if edge else []
    if edge != used:
        quantisers.insert(0, "ONNX Runtime's (7 bits for weights where the CPU has no VNNI: 8 overflow there)")
    named = ", ".join(quantisers)
    return f" The INT8 quantiser is {named}, the same for every network; ranges are from the same images."


def record(command: str) -> Result:
    """What a result begins with: the command, the date, the machine with its versions."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"command": command, "date": date, "machine": describe()}


def conditions(result: Result) -> str:
    """When, on what and by which command a result, as :func:`record` begins it, was measured, in a line."""
    machine = result["machine"]
    rounds = f"; {result['rounds']} rounds" if "rounds" in result else ""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number[0].isdigit())
    held = f", OpenVINO held to {machine['isa_limit']}" if machine.get("isa_limit") else ""
    return (
        f"{result['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, {machine['capability']}{held}"
        f"{', ' + machine['gpu'] if machine['gpu'] else ''}; {versions}{rounds}; `{result['command']}`"
    )


def _summary(result: Result, group: Sequence[Mapping[str, Any]]) -> str:
    """A line per network; a column per backend and form."""
    table = TABLES.get(result["table"])
    paper = table.paper if table else None
    reference = next(row["network"] for row in group if row["verdict"] == "reference")
    columns: Dict[Any, str] = {}
    forms = list(table.forms) if table else [row["form"] for row in group]
    for row in sorted(group, key=lambda row: (_order(result, row), forms.index(row["form"]))):
        has_many_forms = len({each["form"] for each in group if each["backend"] == row["backend"]}) > 1
        heading = _backend(row) + (f", {row['form']}" if has_many_forms else "")
        columns.setdefault((row["backend"], row["precision"], row["form"]), heading)
    cells = {(row["network"], row["backend"], row["precision"], row["form"]): row for row in group}
    has_many_precisions = len({row["precision"] for row in group}) > 1
    throughput = result["table"] == "throughput"
    lines = []
    for network in dict.fromkeys(row["network"] for row in group):
        own = [row for row in group if row["network"] == network]
        row = next((row for row in own if row["form"] == DEPLOY), own[-1])
        line = {"network": f"**{network}**" if network == reference else network}
        line |= {"M params": f"{row['params'] / 1e6:.2f}", "M MACs": f"{row['macs'] / 1e6:.0f}"}
        if not throughput:
            line |= {name: f"{row[name]:,}" for name in ("batch", "images/s", "peak MB") if name in row}
        if table and paper and table.accuracy and not paper.columns:
            line["top-1 %"] = f"{table.accuracy[network]:.1f}" if network in table.accuracy else ""
        if paper:
            for index, column in enumerate(paper.columns):
                line[f"paper: {column}"] = _paper_cell(paper.rows, network, reference, index, column)
        for column, heading in columns.items():
            line[heading] = _cell(cells.get((network, *column)), throughput)
        if has_many_precisions:
            ranked = [row for row in comparable(group) if row["network"] == network]
            line["best"] = _best_cell(best(ranked, "median_ms" if throughput else "min_ms"), throughput)
        lines.append(line)
    return _table(lines[0], lines)


def is_wrong(row: Mapping[str, Any]) -> bool:
    """Whether a row's output has so little to do with the float one that its time is worth nothing."""
    return row.get("snr_db") is not None and not row["snr_db"] >= WRONG_DB  # NaN, as older results have it, is wrong


def comparable(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The rows of the runtimes, where there are any: eager and compiled networks did not take turns with them."""
    return [row for row in rows if row["backend"] in RUNTIMES] or rows


def best(rows: Sequence[Mapping[str, Any]], by: str = "min_ms") -> Optional[Mapping[str, Any]]:
    """The row of the shortest time, of those whose output is right."""
    return min((row for row in rows if not is_wrong(row)), key=lambda row: row[by], default=None)


def _best_cell(row: Optional[Mapping[str, Any]], throughput: bool) -> str:
    if row is None:
        return "none is right"
    value = f"{row['images/s']:.0f}" if throughput else _milliseconds(row["min_ms"])
    return f"**{value}** ({row['backend']} {row['precision']})"


def _sweep(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line per depth, width or resolution; a column per backend, number of threads and curve."""
    lines: Dict[float, Dict[str, str]] = {}
    for run in runs:
        measurement = Measurement.from_dict(run["measurement"])
        keys = {(one["series"], one["x"]): key for key, one in run["contestants"].items()}
        curves = list(dict.fromkeys(curve for curve, _ in keys))
        for (curve, x), key in keys.items():
            cell = _milliseconds(measurement.median(key))
            if curve != curves[0] and (curves[0], x) in keys:
                ratio = measurement.ratio(key, keys[curves[0], x])
                cell += f" ({ratio.estimate:.2f}x{', tie' if ratio.is_tie else ''})"
            lines.setdefault(x, {"": f"{x:g}"})[f"{describe_run(run)}: {curve}"] = cell
    headings = {heading: "" for line in lines.values() for heading in line}
    return _table(headings, [lines[x] for x in sorted(lines)])


def _milliseconds(value: float) -> str:
    return f"{value:.{2 if value < 100 else 0}f}"


def _order(result: Result, row: Mapping[str, Any]) -> int:
    pairs = [(run["backend"], run.get("precision") or "float32") for run in result["runs"]]
    return list(dict.fromkeys(pairs)).index((row["backend"], row["precision"]))


def _cell(row: Optional[Mapping[str, Any]], throughput: bool = False) -> str:
    if row is None:
        return ""
    factor = {"reference": "", "tie": f" ({row['ratio']:.2f}x, tie)"}.get(row["verdict"], f" ({row['ratio']:.2f}x)")
    value = f"{row['images/s']:.0f}" if throughput else _milliseconds(row["median_ms"])
    return f"{value}{factor}{_noise(row)}"


def _noise(row: Mapping[str, Any]) -> str:
    """The signal-to-noise ratio where it is low."""
    snr = row.get("snr_db")
    if snr is None or snr >= NOISY_DB:
        return ""
    return f", **wrong: {snr:.0f} dB**" if is_wrong(row) else f", *{snr:.0f} dB*"


def _paper_cell(rows: Mapping[str, Sequence[Any]], network: str, reference: str, index: int, column: str) -> str:
    if network not in rows or rows[network][index] is None:
        return ""
    value = rows[network][index]
    compared = column.startswith("CPU") and network != reference
    return f"{value} ({value / rows[reference][index]:.2f}x)" if compared else f"{value}"


def _paper_note(result: Result) -> str:
    return TABLES[result["table"]].paper.note if result["table"] in TABLES else ""


def _warnings(result: Result, ties: bool) -> List[str]:
    """Where others used the machine meanwhile, what could not be measured, and with ``ties`` what cannot be ranked."""
    lines, noisy, load = [], [], 0.0
    for run in result["runs"]:
        measurement = Measurement.from_dict(run["measurement"])
        where = f"{run['comparison']}, {describe_run(run)}"
        if measurement.is_noisy:
            noisy.append(where)
            load = max(load, measurement.load_before or 0, measurement.load_after or 0)
        if ties and measurement.has_intervals:
            pairs = "; ".join(f"{a} and {b}" for a, b in measurement.ties())
            lines += [f"- {where}: too noisy to rank (tie): {pairs}"] if pairs else []
        lines += [f"- {where}: {key} could not be measured: {reason}" for key, reason in run["failures"].items()]
    if noisy:
        runs = "all runs" if len(noisy) == len(result["runs"]) else "; ".join(noisy)
        lines.insert(0, f"- other programs used up to {load:.0f} % of the machine before or after {runs}")
    return ["Warnings:\n\n" + "\n".join(lines)] if lines else []


def _table(header: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    text = [list(header), ["---", *["---:"] * (len(header) - 1)]]
    text += [[str(line.get(column, "")) for column in header] for line in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in text)


def write(result: Result, directory: Path) -> List[Path]:
    """Write ``TABLE.json``, ``TABLE.csv`` and ``TABLE.md``, each as a whole or not at all, and return their paths."""
    lines = list(rows(result))
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    texts = {"json": json.dumps(result, indent=1), "csv": table.getvalue(), "md": markdown(result)}
    paths = []
    for ending, text in texts.items():
        path = directory / f"{result['table']}.{ending}"
        with atomic_path(path) as partial:
            partial.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def entry_facts(entry: Entry, form: str, params: int, macs: int) -> Dict[str, Any]:
    """What a result keeps of a contestant besides its samples."""
    return {
        "name": entry.name,
        "form": form,
        "size": list(entry.size),
        "params": params,
        "macs": macs,
        "x": entry.x,
        "series": entry.series,
    }
