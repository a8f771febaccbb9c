"""Draws kernel.png, the picture of docs/kernels.md: python docs/images/kernel.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

INK, BLUE, ORANGE, GREEN, GREY = "#222222", "#2b6cb0", "#dd6b20", "#2f855a", "#e2e8f0"


def main() -> None:
    figure, axes = plt.subplots(figsize=(11, 4.6), dpi=130)
    axes.set_xlim(0, 22)
    axes.set_ylim(0, 9.2)
    axes.axis("off")

    def box(x: float, y: float, width: float, height: float, colour: str, fill: bool = True) -> None:
        axes.add_patch(
            Rectangle((x, y), width, height, facecolor=colour if fill else "none", edgecolor=INK, linewidth=0.8)
        )

    def say(x: float, y: float, text: str, size: float = 9, colour: str = INK, align: str = "center") -> None:
        axes.text(x, y, text, fontsize=size, color=colour, ha=align, va="center")

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=INK, linewidth=1))

    say(3.6, 8.8, "all pairs, never stored", 11)
    for i in range(6):
        for j in range(6):
            box(1.2 + 0.8 * j, 2.8 + 0.8 * (5 - i), 0.8, 0.8, ORANGE if j == 3 else GREY)
    axes.text(0.8, 5.2, "rows of X", fontsize=9, color=INK, ha="center", va="center", rotation=90)
    say(3.6, 8.05, "rows of Y", 9)
    say(3.6, 2.2, "a strip: one column tile,\na run of row tiles", 9, ORANGE)

    arrow((6.2, 5.2), (7.5, 5.2))
    say(10.3, 8.8, "a tile, in registers", 11)
    box(7.8, 3.2, 5.0, 4.6, "#fffaf0")
    lines = [
        (7.3, r"$a = X_{tile}\,Y_{tile}^{\top}$   (tensor cores)"),
        (6.4, r"$d^2 = |\;|x|^2 + |y|^2 - 2a\;|$"),
        (5.5, r"$k_0 = \sqrt{d^2}$"),
        (4.6, r"$k_1 = 2^{-\gamma d^2}$     $k_2 = (k_1^2)^2$ ..."),
        (3.7, r"labels:  $z^{\top} k\, z$"),
    ]
    for height, text in lines:
        say(8.0, height, text, 9.5, align="left")

    arrow((12.9, 6.6), (14.2, 7.2))
    arrow((12.9, 5.2), (14.2, 5.2))
    arrow((12.9, 3.9), (14.2, 3.2))
    say(16.3, 8.8, "partial sums, a slot each", 11)
    for y, colour, text in (
        (6.9, BLUE, "row sums: every tile"),
        (4.9, GREEN, "column sums: every strip"),
        (2.9, ORANGE, "squares, z'Kz: every strip"),
    ):
        box(14.4, y, 3.8, 0.6, colour)
        say(16.3, y + 0.95, text, 9, colour)

    arrow((18.3, 5.2), (19.4, 5.2))
    say(20.6, 8.8, "float64", 11)
    say(20.6, 5.2, "slots added\nin a fixed order:\nthe same bits\nevery run", 9)
    say(
        10.9,
        1.0,
        "row sums $\\to$ witness values and standard errors      squares $\\to$ variance      "
        "z'Kz $\\to$ permutation test      totals $\\to$ energy distance, MMD$^2$",
        9,
    )
    figure.savefig(Path(__file__).with_suffix(".png"), bbox_inches="tight", pad_inches=0.15)


if __name__ == "__main__":
    main()
