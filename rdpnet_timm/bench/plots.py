"""Pictures of results: latency against accuracy, and latency along a sweep of depth, width or resolution."""

import io
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from .report import Result, best, is_wrong, rows
from .tables import DEPLOY, TABLES

__all__ = ["draw", "pareto_front"]

OURS, THEIRS, LINES = "#c0392b", "#4c6a87", ("#c0392b", "#2f6fa8", "#3c8c5a")
MARKERS = ("o", "s", "^")
_DIRECTIONS = ((7, 0), (-7, 0), (0, 9), (0, -9), (6, 7), (-6, 7), (6, -7), (-6, -7))
Row = Mapping[str, Any]


def draw(result: Result, directory: Path) -> List[Path]:
    """Draw the picture of a table that has one as ``TABLE.png``, and return its path, or no path."""
    lines = _best_by_precision([row for row in rows(result) if row["form"] == DEPLOY])
    if not lines or result["table"] not in TABLES:
        return []
    import matplotlib
    from PIL import Image

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = TABLES[result["table"]]
    if table.accuracy:
        figure = _accuracy_figure(pyplot, lines, table.accuracy)
    elif any(entry.x is not None for comparison in table.comparisons for entry in comparison.entries):
        figure = _sweep_figure(pyplot, result, lines)
    else:
        return []
    figure.suptitle(f"{table.title} (batch 1, {result['machine']['cpu']})", fontsize=10)
    path = directory / f"{result['table']}.png"
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    pyplot.close(figure)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)  # a third of the size, for repositories
    return [path]


def _best_by_precision(lines: Sequence[Row]) -> List[Dict[str, Any]]:
    """For each network the fastest runtime of each precision, and of all where there are several; ``panel`` says which.

    What quantises wrongly is left out.
    """
    precisions = list(dict.fromkeys(row["precision"] for row in lines))
    panels = {f"{precision}, fastest runtime": [precision] for precision in precisions}
    if len(precisions) > 1:
        panels["each in its best precision"] = precisions
    groups: Dict[Any, List[Row]] = {}
    for row in lines:
        for panel, allowed in panels.items():
            if row["precision"] in allowed and not is_wrong(row):
                key = (panel, row["comparison"], row["threads"], row["network"])
                groups.setdefault(key, []).append(row)
    chosen = {key: best(group) for key, group in groups.items()}
    order = list(panels)
    return [{**row, "panel": key[0]} for key, row in sorted(chosen.items(), key=lambda i: order.index(i[0][0])) if row]


def pareto_front(points: Mapping[str, Tuple[float, float]]) -> List[str]:
    """Names of the ``(latency, accuracy)`` points that no other one beats in both, the fastest first."""
    front: List[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front


def _panels(pyplot: Any, lines: Sequence[Row], height: float) -> Tuple[Any, Dict[Tuple[str, int], Any]]:
    """A figure with a column of panels per precision and a row per number of threads."""
    backends, threads = (list(dict.fromkeys(row[key] for row in lines)) for key in ("panel", "threads"))
    size = (5.2 * len(backends), height * len(threads))
    figure, axes = pyplot.subplots(len(threads), len(backends), figsize=size, squeeze=False, layout="constrained")
    panels = {}
    for number, line_of_axes in zip(threads, axes):
        for backend, axis in zip(backends, line_of_axes):
            axis.set_title(_panel(backend, number), fontsize=10)
            axis.grid(alpha=0.3)
            panels[backend, number] = axis
    return figure, panels


def _accuracy_figure(pyplot: Any, lines: Sequence[Row], accuracy: Mapping[str, float]) -> Any:
    """A panel per precision, and in it a Pareto front for each comparison: only its networks took turns."""
    figure, panels = _panels(pyplot, lines, 5.2)
    labelled: Dict[Any, Dict[str, Tuple[float, float]]] = {}
    for (panel, threads), axis in panels.items():
        points: Dict[str, Tuple[float, float]] = {}
        own = [row for row in lines if (row["panel"], row["threads"]) == (panel, threads)]
        for comparison in dict.fromkeys(row["comparison"] for row in own):
            group = {
                row["network"]: (row["min_ms"], accuracy[row["network"]])
                for row in own
                if row["comparison"] == comparison and row["network"] in accuracy
            }
            axis.plot(*zip(*(group[name] for name in pareto_front(group))), "--", color="#999999", lw=1, zorder=1)
            points |= group
        for name, point in points.items():
            marker, area = ("*", 90) if _is_ours(name) else ("o", 28)
            axis.scatter(*point, color=_colour(name), marker=marker, s=area)
        axis.margins(x=0.15, y=0.1)
        axis.set(xlabel="shortest time, ms", ylabel="ImageNet top-1, %, as published")
        labelled[axis] = points
    figure.canvas.draw()  # only a figure once drawn knows where its points are
    for axis, points in labelled.items():
        _label(axis, points)
    return figure


def _panel(panel: str, threads: int) -> str:
    return f"{panel}, {threads} thread{'s' * (threads > 1)}"


def _is_ours(name: str) -> bool:
    return name.startswith("RDPNet")


def _colour(name: str) -> str:
    return OURS if _is_ours(name) else THEIRS


def _label(axis: Any, points: Mapping[str, Tuple[float, float]]) -> None:
    """Write each point's name at the nearest place where it covers least: other names, points, the panel's edge."""
    pixels = [axis.transData.transform(point) for point in points.values()]
    boxes: List[Any] = []

    def covers(box: Any) -> int:
        edge = not (axis.bbox.contains(box.x0, box.y0) and axis.bbox.contains(box.x1, box.y1))
        return sum(map(box.overlaps, boxes)) + sum(box.contains(*pixel) for pixel in pixels) + edge

    places = [(dx * far, dy * far - 3) for far in (1, 2, 3, 4) for dx, dy in _DIRECTIONS]
    for name in sorted(points, key=lambda name: -points[name][1]):
        texts = [
            axis.annotate(
                name,
                points[name],
                place,
                textcoords="offset points",
                ha={-1: "right", 0: "center", 1: "left"}[(place[0] > 0) - (place[0] < 0)],
                fontsize=7,
                color=_colour(name),
            )
            for place in places
        ]
        costs = [covers(text.get_window_extent()) for text in texts]
        chosen = texts.pop(costs.index(min(costs)))
        for text in texts:
            text.remove()
        boxes.append(chosen.get_window_extent())


def _sweep_figure(pyplot: Any, result: Result, lines: Sequence[Row]) -> Any:
    """A row of panels per precision: one for each comparison, and one over MACs where widths are compared."""
    table = TABLES[result["table"]]
    points = {entry.name: entry for comparison in table.comparisons for entry in comparison.entries}
    columns = [(comparison.title, comparison.title, comparison.x_label) for comparison in table.comparisons]
    if result["table"] == "scaling":
        columns.insert(0, ("The same widths over MACs", table.comparisons[0].title, "M MACs"))
    runs = list(dict.fromkeys((row["panel"], row["threads"]) for row in lines))
    size = (4.4 * len(columns), 3.4 * len(runs))
    figure, axes = pyplot.subplots(len(runs), len(columns), figsize=size, squeeze=False, layout="constrained")
    for (panel, threads), line_of_axes in zip(runs, axes):
        for (title, comparison, x_label), axis in zip(columns, line_of_axes):
            own = [row for row in lines if (row["panel"], row["threads"]) == (panel, threads)]
            own = [row for row in own if row["comparison"] == comparison]
            for index, series in enumerate(dict.fromkeys(points[row["network"]].series for row in own)):
                curve = [row for row in own if points[row["network"]].series == series]
                x = [row["macs"] / 1e6 if x_label == "M MACs" else points[row["network"]].x for row in curve]
                style = dict(color=LINES[index], marker=MARKERS[index], markersize=4, linewidth=1.3, label=series)
                axis.plot(x, [row["min_ms"] for row in curve], **style)
            axis.set_title(f"{title}\n{_panel(panel, threads)}", fontsize=9)
            axis.set(xlabel=x_label, ylabel="shortest time, ms", ylim=(0, None))
            axis.grid(alpha=0.3)
            if own:  # a quick run leaves panels empty
                axis.legend(fontsize=7)
    return figure
