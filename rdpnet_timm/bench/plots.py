"""Pictures of results: latency against accuracy, and latency along a sweep of depth, width or resolution."""

import io
from itertools import pairwise
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from ..files import atomic_path
from .report import Result, best, comparable, is_wrong, rows
from .tables import DEPLOY, TABLES

__all__ = ["draw", "pareto_front"]

OURS, THEIRS, LINES = "#c0392b", "#4c6a87", ("#c0392b", "#2f6fa8", "#3c8c5a")
MARKERS = ("o", "s", "^")
_DIRECTIONS = ((7, 0), (-7, 0), (0, 9), (0, -9), (6, 7), (-6, 7), (6, -7), (-6, -7))  # in points
_NEAR = 16  # points from which a label needs a line to its point
Row = Mapping[str, Any]


def draw(result: Result, directory: Path) -> List[Path]:
    """Draw the picture of a table that has one as ``TABLE.png``, and return its path, or no path."""
    table = TABLES.get(result["table"])
    if table is None:
        return []
    swept = [entry.name for comparison in table.comparisons for entry in comparison.entries if entry.x is not None]
    placed = table.accuracy or swept  # an older result may hold others
    lines = _best_by_precision([row for row in rows(result) if row["form"] == DEPLOY and row["network"] in placed])
    if not lines:
        return []
    import matplotlib
    from PIL import Image

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if table.accuracy:
        figure = _accuracy_figure(pyplot, lines, table.accuracy)
    else:
        figure = _sweep_figure(pyplot, result, lines)
    figure.suptitle(f"{table.title} (batch 1, {result['machine']['cpu']})", fontsize=10)
    path = directory / f"{result['table']}.png"
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    pyplot.close(figure)
    with atomic_path(path) as temporary:  # 64 colours: a third of the size, for repositories
        Image.open(drawn).convert("RGB").quantize(64).save(temporary, optimize=True)
    return [path]


def _best_by_precision(lines: Sequence[Row]) -> List[Dict[str, Any]]:
    """For each network the fastest runtime of each precision, and of all where there are several; ``panel`` says which.

    What quantises wrongly is left out.
    """
    precisions = list(dict.fromkeys(row["precision"] for row in lines))
    panels = {"each in its best precision": precisions} if len(precisions) > 1 else {}
    panels |= {f"{precision}, fastest runtime": [precision] for precision in precisions}
    groups: Dict[Any, List[Row]] = {}
    for row in comparable(lines):
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
    """A figure with a panel for each precision and number of threads, two in a row, which a page shows in full size."""
    precisions, threads = (list(dict.fromkeys(row[key] for row in lines)) for key in ("panel", "threads"))
    panels = [(precision, number) for number in threads for precision in precisions]
    columns = min(2, len(panels))
    rows_needed = -(-len(panels) // columns)
    size = (5.2 * columns, height * rows_needed)
    figure, axes = pyplot.subplots(rows_needed, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    drawn = dict(zip(panels, axes.flat))
    for panel, axis in drawn.items():
        axis.set_title(_panel(*panel), fontsize=10)
        axis.grid(alpha=0.3)
    return figure, drawn


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
                if row["comparison"] == comparison
            }
            axis.plot(*zip(*(group[name] for name in pareto_front(group))), "--", color="#999999", lw=1, zorder=1)
            points |= group
        for name, point in points.items():
            marker, area = ("*", 90) if _is_ours(name) else ("o", 28)
            axis.scatter(*point, color=_colour(name), marker=marker, s=area)
        axis.set_xscale("log", subs=[])
        axis.set_xticks([0.5, 1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 50, 100], minor=False)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlim(*_spread([time for time, _ in points.values()]))
        axis.margins(y=0.1)
        axis.set(xlabel="shortest time, ms, log scale", ylabel="ImageNet top-1, %, as published")
        labelled[axis] = points
    figure.canvas.draw()  # only a figure once drawn knows where its points are
    for axis, points in labelled.items():
        _label(axis, points)
    return figure


def _spread(times: Sequence[float]) -> Tuple[float, float]:
    """Ends of a logarithmic axis that leaves room for names beside the fastest and the slowest."""
    room = (max(times) / min(times)) ** 0.2
    return min(times) / room, max(times) * room


def _panel(panel: str, threads: int) -> str:
    return f"{panel}, {threads} thread{'s' * (threads > 1)}"


def _is_ours(name: str) -> bool:
    return name.startswith("RDPNet")


def _colour(name: str) -> str:
    return OURS if _is_ours(name) else THEIRS


def _label(axis: Any, points: Mapping[str, Tuple[float, float]]) -> None:
    """Write each point's name near it: over no other name, no point, no line and not the edge, where that can be.

    All start at their best place; then each moves, in a few rounds, to where it disturbs least. A name that had to go
    far has a thin line to its point.
    """
    pixels = {name: axis.transData.transform(point) for name, point in points.items()}
    fronts = [axis.transData.transform(line.get_xydata()) for line in axis.get_lines()]
    lines = np.concatenate([_along(front) for front in fronts]) if fronts else np.empty((0, 2))
    marks = np.array(list(pixels.values()))
    scale = axis.figure.dpi / 72  # pixels in a point
    sizes = {}
    for name in points:
        text = axis.text(0, 0, name, fontsize=7)
        extent = text.get_window_extent()
        sizes[name] = np.array([extent.width, extent.height])
        text.remove()
    frame = np.array([[axis.bbox.x0, axis.bbox.y0], [axis.bbox.x1, axis.bbox.y1]])

    def box_at(name: str, place: Tuple[float, float]) -> np.ndarray:
        width, height = sizes[name]
        x = {-1: -width, 0: -width / 2, 1: 0.0}[int(np.sign(place[0]))]
        corner = pixels[name] + scale * np.array(place) + [x, -height / 2]
        return np.stack([corner - 2, corner + [width + 2, height + 2]])

    def leader_at(name: str, place: Tuple[float, float]) -> np.ndarray:
        if np.hypot(*place) <= _NEAR:
            return np.empty((0, 2))
        return _along(np.stack([pixels[name], pixels[name] + scale * np.array(place)]))[2:]

    places = [(dx * far, dy * far) for far in (1, 1.6, 2.3, 3.2, 4.5, 6) for dx, dy in _DIRECTIONS]
    boxes = {(name, place): box_at(name, place) for name in points for place in places}
    leaders = {(name, place): leader_at(name, place) for name in points for place in places}
    # what of a place's cost does not depend on the other names
    own = {
        (name, place): 4 * _inside(marks, box, 4 * scale)
        + 0.3 * _inside(lines, box, 1)
        + np.clip(frame[0] - box[0], 0, None).sum()
        + np.clip(box[1] - frame[1], 0, None).sum()
        + 0.02 * float(np.hypot(*place))
        for (name, place), box in boxes.items()
    }
    chosen: Dict[str, Tuple[float, float]] = {}
    for _ in range(6):
        before = dict(chosen)
        for name in sorted(points, key=lambda name: -points[name][1]):
            others = [(other, at) for other, at in chosen.items() if other != name]
            taken = np.array([boxes[other] for other in others]).reshape(-1, 2, 2)
            drawn = np.concatenate([np.empty((0, 2)), *(leaders[other] for other in others)])

            def cost(place: Tuple[float, float], name=name, taken=taken, drawn=drawn) -> float:
                box, leader = boxes[name, place], leaders[name, place]
                crossed = _inside(drawn, box, 0) + sum(_inside(leader, other, 0) for other in taken if len(leader))
                return own[name, place] + 10 * _overlaps(box, taken) / sizes[name].prod() + 0.5 * crossed

            chosen[name] = min(places, key=cost)
        if chosen == before:
            break
    for name, place in chosen.items():
        axis.annotate(
            name,
            points[name],
            place,
            textcoords="offset points",
            ha={-1: "right", 0: "center", 1: "left"}[int(np.sign(place[0]))],
            va="center",
            fontsize=7,
            color=_colour(name),
            arrowprops=dict(arrowstyle="-", lw=0.5, color=_colour(name), shrinkA=0, shrinkB=2)
            if np.hypot(*place) > _NEAR
            else None,
        )


def _along(corners: np.ndarray) -> np.ndarray:
    """Points ``(n, 2)`` a few pixels apart along a line through ``corners``."""
    parts = [np.linspace(a, b, max(2, int(np.hypot(*(b - a)) / 3))) for a, b in pairwise(corners)]
    return np.concatenate(parts) if parts else corners


def _inside(points: np.ndarray, box: np.ndarray, margin: float) -> int:
    """How many of ``points`` lie in ``box``, which is made larger by ``margin`` pixels."""
    return int(((points > box[0] - margin) & (points < box[1] + margin)).all(1).sum())


def _overlaps(box: np.ndarray, others: np.ndarray) -> float:
    """The area that ``box`` ``(2, 2)`` shares with each of ``others`` ``(n, 2, 2)``, summed up."""
    sides = np.minimum(box[1], others[:, 1]) - np.maximum(box[0], others[:, 0])
    return float(np.clip(sides, 0, None).prod(1).sum())


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
