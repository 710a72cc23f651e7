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

from pipeline.measure import statistics
from pipeline.records.reports import Proven, Row, Timed

# What is drawn in these becomes var(--NAME) of the page.
COLOURS = {"ink": "#010101", "faint": "#020202", "line": "#030303", "second": "#040404"}
CURVES = ("epoch", "lr", "train_accuracy", "test_accuracy", "train_loss", "test_loss")  # of a training's history


def training(history: Sequence[dict[str, float]]) -> str:
    """Accuracies and losses by epoch, with a line at each step of the learning rate. Rows are the history's CSV."""
    epochs = [row["epoch"] for row in history]
    with _drawn(2, (7.4, 2.9)) as (figure, (left, right)):
        for axes, name, unit in ((left, "accuracy", 100), (right, "loss", 1)):
            for part, colour, label in (("train", "second", "training, augmented"), ("test", "line", "test")):
                axes.plot(epochs, [row[f"{part}_{name}"] * unit for row in history], color=COLOURS[colour], label=label)
        least = min(97.5, *(row["test_accuracy"] * 100 for row in history))
        left.set(title="accuracy, %", xlabel="epoch", ylim=(least, 100))
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
    """Each form's accuracy with its 95 % interval, and the gate. Rows are a verification's."""
    with _drawn(1, (7.4, 0.7 + 0.42 * len(rows))) as (figure, (axes,)):
        for place, row in enumerate(reversed(rows)):
            _range(axes, place, [100 * end for end in row.interval])
            axes.plot(100 * row.accuracy, place, "o", color=COLOURS["line"], markersize=6)
        _name_rows(axes, rows)
        axes.axvline(100 * gate, color=COLOURS["second"], linewidth=1.2)
        axes.text(100 * gate, len(rows) - 0.45, f"gate {gate:.2%}", ha="center", va="bottom", fontsize=8)
        axes.set(xlabel="test accuracy, %, with its 95 % Wilson interval")
        return _svg(figure, "Accuracies of every form with its interval, against the gate")


def latency(rows: Sequence[Timed]) -> str:
    """Percentiles of single requests, a bar for each form and runtime. Rows are a bench's, of one batch size."""
    with _drawn(1, (7.4, 0.8 + 0.42 * len(rows))) as (figure, (axes,)):
        for place, row in enumerate(reversed(rows)):
            times = list(row.microseconds.values())
            _range(axes, place, [times[0], times[-1]])
            for name, time in row.microseconds.items():
                axes.plot(time, place, "o", color=COLOURS["line"], markersize=7 if name == "p50" else 4)
        _name_rows(axes, rows)
        percentiles, batch = ", ".join(rows[0].microseconds), rows[0].batch
        size = "one image" if batch == 1 else f"{batch} images"
        axes.set(xlabel=f"µs a request of {size}, at {percentiles}; log scale", xscale="log")
        _plain_logs(axes.xaxis)
        return _svg(figure, f"Latency of every form in every runtime at batch {batch}")


def calibration(bins: Sequence[dict[str, Any]]) -> str:
    """How often answers are right, by their probability; the interval of each point is Wilson's."""
    with _drawn(1, (3.6, 3.3)) as (figure, (axes,)):
        axes.plot([30, 100], [30, 100], color=COLOURS["faint"], linestyle="--", linewidth=1)
        for each in bins:
            interval = [100 * end for end in statistics.wilson(each["right"], each["n"])]
            axes.plot([100 * each["confidence"]] * 2, interval, color=COLOURS["faint"], linewidth=2)
        confidence = [100 * each["confidence"] for each in bins]
        right = [100 * each["right"] / each["n"] for each in bins]
        axes.plot(confidence, right, "o-", color=COLOURS["line"], markersize=4)
        axes.set(xlabel="probability given, %", ylabel="right, %")
        return _svg(figure, "Calibration: share of right answers by the probability given; dashed: perfect")


def _range(axes: Any, place: int, ends: list[float]) -> None:
    axes.plot(ends, [place, place], color=COLOURS["faint"], linewidth=5, solid_capstyle="butt")


def _name_rows(axes: Any, rows: Sequence[Row]) -> None:
    """Name the rows beside the axis, the first one on top."""
    labels = [f"{row.form}\n{row.runtime}: {row.arithmetic}" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), labels, fontsize=7.5)
    axes.set(ylim=(-0.6, len(rows) - 0.4))


def _plain_logs(axis: Any) -> None:
    """A logarithmic axis with 1, 2, 5, 10 for ticks, written out."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


@contextlib.contextmanager
def _drawn(columns: int, size: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its axes, side by side; draw and save it within."""
    import matplotlib
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    style = {"svg.fonttype": "none", "svg.hashsalt": "edge-pipeline", "font.family": "sans-serif", "font.size": 9}
    style |= {"axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none"}
    with matplotlib.rc_context(style | dict.fromkeys(inked, COLOURS["ink"])):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(1, columns, squeeze=False)[0]


def _svg(figure: Any, title: str) -> str:
    """The drawing alone, without XML's head, with CSS variables for colours, and a title for screen readers."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = file.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    for name, colour in COLOURS.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    drawn = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', r'style="max-width: \1pt"', drawn, count=1)
    # Names within the drawing must not clash with those of the page's other drawings.
    used, own = set(re.findall(r"#([\w-]+)[)\"]", drawn)), title.split()[0].strip(":").lower()
    drawn = re.sub(r' id="([\w-]+)"', lambda match: f' id="{own}-{match[1]}"' if match[1] in used else "", drawn)
    drawn = re.sub(r"#([\w-]+)(?=[)\"])", rf"#{own}-\1", drawn)
    return drawn.replace("<svg", '<svg role="img"', 1).replace("<defs>", f"<title>{title}</title>\n <defs>", 1)
