"""Draws block.png, RDPNet's block in both forms: python docs/images/make_block.py."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

CONV, NORM, OTHER = "#cfe0f1", "#f6e0b8", "#e6e6e6"
HEIGHT = 0.62


def box(axis, x, y, text, width, colour):
    """A rounded box whose left side is at ``x`` and whose middle is at ``y``."""
    shape = FancyBboxPatch(
        (x, y - HEIGHT / 2), width, HEIGHT, boxstyle="round,pad=0,rounding_size=0.1", fc=colour, ec="#555555", lw=0.9
    )
    axis.add_patch(shape)
    axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=9)


def arrow(axis, start, end):
    """An arrow from ``start`` to ``end``."""
    style = dict(arrowstyle="-|>", color="#555555", lw=0.9, shrinkA=0, shrinkB=0, mutation_scale=8)
    axis.annotate("", end, start, arrowprops=style)


def plus(axis, x, y):
    """The sum of branches."""
    axis.text(
        x,
        y,
        "+",
        ha="center",
        va="center",
        fontsize=12,
        bbox=dict(boxstyle="circle,pad=0.12", fc="white", ec="#555555"),
    )


def branches(axis, x, y, rows, width):
    """Parallel branches of boxes from ``x``; gives where their sum comes out."""
    tops = [y + 0.85 * ((len(rows) - 1) / 2 - i) for i in range(len(rows))]
    end = x + 0.6 + width
    for top, parts in zip(tops, rows):
        left = x + 0.6
        if len(parts) == 1:  # in line with the norms of the others
            left = end - 0.75
        axis.plot([x, x + 0.3, x + 0.3], [y, y, top], color="#555555", lw=0.9)
        arrow(axis, (x + 0.3, top), (left, top))
        for text, size, colour in parts:
            box(axis, left, top, text, size, colour)
            left += size + 0.15
        arrow(axis, (end, top), (end + 0.62, y)) if top == y else axis.plot(
            [end, end + 0.8, end + 0.8], [top, top, y + (0.2 if top > y else -0.2)], color="#555555", lw=0.9
        )
    plus(axis, end + 0.8, y)
    return end + 0.98


def main():
    """Draw both forms, one below the other."""
    figure, axis = pyplot.subplots(figsize=(10.4, 3.7))
    y = 2.6
    axis.text(-0.2, y + 1.45, "train form: five branches with batch norms", fontsize=10.5, fontweight="bold")
    norm = ("BN", 0.75, NORM)
    x = branches(axis, 0.0, y, [[("DW 3x3", 1.2, CONV), norm], [("DW 1x1", 1.2, CONV), norm], [norm]], 2.1)
    arrow(axis, (x, y), (x + 0.4, y))
    box(axis, x + 0.4, y, "ReLU", 0.95, OTHER)
    arrow(axis, (x + 1.35, y), (x + 1.75, y))
    box(axis, x + 1.75, y, "channel shuffle", 2.2, OTHER)
    x = branches(axis, x + 3.95, y, [[("PW 1x1", 1.2, CONV), norm], [("PW 1x1", 1.2, CONV), norm]], 2.1)
    arrow(axis, (x, y), (x + 0.4, y))
    box(axis, x + 0.4, y, "ReLU", 0.95, OTHER)
    arrow(axis, (x + 1.35, y), (x + 1.95, y))

    y, end = 0.0, x
    axis.text(-0.2, y + 0.72, "deploy form: one path, the same outputs", fontsize=10.5, fontweight="bold")
    arrow(axis, (0, y), (0.9, y))
    box(axis, 0.9, y, "DW 3x3 + bias", 2.1, CONV)
    arrow(axis, (3.0, y), (4.06, y))
    box(axis, 4.06, y, "ReLU", 0.95, OTHER)
    arrow(axis, (5.01, y), (8.9, y))
    box(axis, 8.9, y, "PW 1x1 + bias", 2.1, CONV)
    arrow(axis, (11.0, y), (end + 0.4, y))
    box(axis, end + 0.4, y, "ReLU", 0.95, OTHER)
    arrow(axis, (end + 1.35, y), (end + 1.95, y))
    axis.text(
        -0.2, y - 0.75,
        "DW: depthwise convolution, PW: pointwise convolution, BN: batch norm. The shuffle goes into the order of the "
        "pointwise weight's inputs.",
        fontsize=8.5, color="#444444",
    )  # fmt: skip
    axis.set(xlim=(-0.3, end + 2.1), ylim=(-1.0, 4.4))
    axis.set_aspect("equal")
    axis.axis("off")
    figure.savefig(Path(__file__).with_name("block.png"), dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
