"""Charts as inline SVG, in colours that the page decides: light, dark or on paper.

Drawn by matplotlib with stand-in colours, which become CSS variables; the same figures give the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.records.reports import Proven, Timed

# What is drawn in these becomes var(--NAME) of the page.
COLOURS = {"ink": "#010101", "faint": "#020202", "line": "#030303", "second": "#040404", "good": "#050505"}


CURVES = ("epoch", "lr", "train_accuracy", "test_accuracy", "train_loss", "test_loss")  # of a training's history


def training(history: Sequence[dict[str, float]]) -> str:
    """Test accuracy and losses by epoch, a line at each step of the learning rate. Rows as in the history's CSV."""
    epochs = [row["epoch"] for row in history]
    with _drawn(2, (7.4, 2.9)) as (figure, (left, right)):
        left.plot(
            epochs,
            [row["train_accuracy"] * 100 for row in history],
            color=COLOURS["second"],
            label="training, augmented",
        )
        left.plot(epochs, [row["test_accuracy"] * 100 for row in history], color=COLOURS["line"], label="test")
        left.set(
            title="accuracy, %", xlabel="epoch", ylim=(min(97.5, min(r["test_accuracy"] for r in history) * 100), 100)
        )
        right.plot(epochs, [row["train_loss"] for row in history], color=COLOURS["second"], label="training, augmented")
        right.plot(epochs, [row["test_loss"] for row in history], color=COLOURS["line"], label="test")
        right.set(title="loss, nats", xlabel="epoch", yscale="log")
        _plain_logs(right.yaxis)
        for before, row in itertools.pairwise(history):
            if row["lr"] != before["lr"]:
                for axes in (left, right):
                    axes.axvline(row["epoch"] - 0.5, color=COLOURS["faint"], linestyle="--", linewidth=1)
                left.text(row["epoch"] - 0.4, left.get_ylim()[0], f" lr {row['lr']:.2g}", fontsize=8, va="bottom")
        right.legend(frameon=False, fontsize=8, labelcolor=COLOURS["ink"])
        return _svg(figure, "Training curves: accuracy and loss by epoch; dashed lines where the learning rate steps")


def accuracy(rows: Sequence[Proven], gate: float) -> str:
    """Each form's accuracy with its 95 % interval, against the gate. Rows as in a verification."""
    with _drawn(1, (7.4, 0.7 + 0.42 * len(rows))) as (figure, (axes,)):
        for place, row in enumerate(reversed(rows)):
            low, high = (100 * end for end in row.interval)
            axes.plot([low, high], [place, place], color=COLOURS["faint"], linewidth=5, solid_capstyle="butt")
            axes.plot(100 * row.accuracy, place, "o", color=COLOURS["line"], markersize=6)
        labels = [f"{row.form}\n{row.runtime}: {row.arithmetic}" for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), labels, fontsize=7.5)
        axes.axvline(100 * gate, color=COLOURS["second"], linewidth=1.2)
        axes.text(100 * gate, len(rows) - 0.45, f"gate {gate:.2%}", ha="center", va="bottom", fontsize=8)
        axes.set(xlabel="test accuracy, %, with its 95 % Wilson interval", ylim=(-0.6, len(rows) - 0.4))
        return _svg(figure, "Accuracies of every form with its interval, against the gate")


def calibration(bins: Sequence[dict[str, Any]]) -> str:
    """How often answers are right, by how sure they were; the interval of each point is Wilson's."""
    from pipeline.measure import statistics

    with _drawn(1, (3.6, 3.3)) as (figure, (axes,)):
        axes.plot([30, 100], [30, 100], color=COLOURS["faint"], linestyle="--", linewidth=1)
        for each in bins:
            low, high = statistics.wilson(each["right"], each["n"])
            axes.plot([100 * each["confidence"]] * 2, [100 * low, 100 * high], color=COLOURS["faint"], linewidth=2)
        axes.plot(
            [100 * each["confidence"] for each in bins],
            [100 * each["right"] / each["n"] for each in bins],
            "o-", color=COLOURS["line"], markersize=4,
        )  # fmt: skip
        axes.set(xlabel="probability given, %", ylabel="right, %")
        return _svg(figure, "Calibration: share of right answers by the probability given; dashed: perfect")


def latency(rows: Sequence[Timed]) -> str:
    """Percentiles of single requests, one bar a form and runtime. Rows of one batch size, as in a latency.json."""
    with _drawn(1, (7.4, 0.8 + 0.42 * len(rows))) as (figure, (axes,)):
        for place, row in enumerate(reversed(rows)):
            times = list(row.microseconds.values())
            axes.plot([times[0], times[-1]], [place, place], color=COLOURS["faint"], linewidth=5, solid_capstyle="butt")
            for name, time in row.microseconds.items():
                axes.plot(time, place, "o", color=COLOURS["line"], markersize=7 if name == "p50" else 4)
        labels = [f"{row.form}\n{row.runtime}: {row.arithmetic}" for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), labels, fontsize=7.5)
        which = ", ".join(rows[0].microseconds)
        size = "one image" if rows[0].batch == 1 else f"{rows[0].batch} images"
        axes.set(xlabel=f"µs a request of {size}, at {which}; log scale", xscale="log", ylim=(-0.6, len(rows) - 0.4))
        _plain_logs(axes.xaxis)
        return _svg(figure, f"Latency of every form in every runtime at batch {rows[0].batch}")


def _plain_logs(axis: Any) -> None:
    """A logarithmic axis with 1, 2, 5, 10 for ticks, written out."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


@contextlib.contextmanager
def _drawn(columns: int, size: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ink = COLOURS["ink"]
    style = {"svg.fonttype": "none", "svg.hashsalt": "edge-pipeline", "font.family": "sans-serif", "font.size": 9}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), ink)
    style |= {"axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none"}
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained", squeeze=False)
        try:
            yield figure, axes[0]
        finally:
            plt.close(figure)


def _svg(figure: Any, title: str) -> str:
    """The drawing alone, without XML's head, with CSS variables for colours, and a title for those who don't see it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = file.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    for name, colour in COLOURS.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    drawn = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', r'style="max-width: \1pt"', drawn, count=1)
    # Names within the drawing must not clash with those of the page's other drawings.
    used, own = set(re.findall(r"#([\w-]+)[)\"]", drawn)), title.split()[0].strip(":").lower()
    drawn = re.sub(r' id="([\w-]+)"', lambda found: f' id="{own}-{found[1]}"' if found[1] in used else "", drawn)
    drawn = re.sub(r"#([\w-]+)(?=[)\"])", rf"#{own}-\1", drawn)
    return drawn.replace("<svg", '<svg role="img"', 1).replace("<defs>", f"<title>{title}</title>\n <defs>", 1)
