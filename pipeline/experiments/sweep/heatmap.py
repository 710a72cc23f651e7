"""A picture of a sweep: accuracy by learning rate and gamma."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from pipeline.records.experiments import Trial


def draw(rows: Sequence[Trial], *, grid: bool, title: str) -> bytes:
    """Draw trials, the best first: a grid as a heat map, drawn pairs as a scatter with a ring round the best.

    Colours span the trials that were trained to their end. Pruned ones have none: in a heat map they are in italics
    with the accuracy at which they were given up, in a scatter they are crosses.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
    coloured = [100 * row.accuracy for row in rows if not row.pruned] or [100 * row.accuracy for row in rows]
    scale = plt.Normalize(min(coloured), max(max(coloured), min(coloured) + 0.01))
    (_cells if grid else _points)(axes, rows, scale)
    extend = "min" if any(row.pruned for row in rows) else "neither"
    figure.colorbar(plt.cm.ScalarMappable(scale, "viridis"), ax=axes, extend=extend, label="accuracy, %")
    best = rows[0]
    axes.set(xlabel="learning rate", ylabel="gamma of StepLR")
    axes.set_title(f"{title}; best {best.accuracy:.2%} at lr {best.lr:g}, gamma {best.gamma:g}")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)
    return file.getvalue()


def _cells(axes: Any, rows: Sequence[Trial], scale: Any) -> None:
    import numpy as np

    lrs, gammas = sorted({row.lr for row in rows}), sorted({row.gamma for row in rows})
    table = np.full((len(gammas), len(lrs)), np.nan)
    for row in rows:
        x, y, value = lrs.index(row.lr), gammas.index(row.gamma), 100 * row.accuracy
        if row.pruned:
            style = {"style": "italic", "color": "gray"}
        else:
            style = {"color": "black" if scale(value) > 0.6 else "white"}
            table[y, x] = value
        axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=9, **style)
    axes.imshow(table, cmap="viridis", norm=scale, origin="lower", aspect="auto")
    axes.set_xticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])
    axes.set_yticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])


def _points(axes: Any, rows: Sequence[Trial], scale: Any) -> None:
    for pruned, marker in ((True, "x"), (False, "o")):
        some = [row for row in rows if row.pruned is pruned]
        colours = {"color": "gray"} if pruned else {"c": [100 * row.accuracy for row in some], "norm": scale}
        axes.scatter([row.lr for row in some], [row.gamma for row in some], s=70, marker=marker, **colours)
    axes.scatter(rows[0].lr, rows[0].gamma, s=180, facecolors="none", edgecolors="crimson", linewidths=1.5)
