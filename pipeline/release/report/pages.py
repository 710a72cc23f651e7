"""The pages of a release that people read: MODEL_CARD.md and report.html. Templates hold the words."""

from __future__ import annotations

import base64
import csv
import io
import math
from typing import Any

import numpy as np

from pipeline import console
from pipeline.data.imagesets import ImageSet
from pipeline.errors import CheckFailed, reason
from pipeline.records import manifest
from pipeline.records.manifest import Artifact
from pipeline.records.releases import Deployed
from pipeline.records.reports import Timed
from pipeline.release.contents import Contents, sources
from pipeline.release.report import charts
from pipeline.stages import bench, train

SHOWN = 200  # misclassified images: a page has to load
HUBS = {"mnist": "ylecun/mnist"}  # a data set's name on Hugging Face


def card(contents: Contents) -> bytes:
    """MODEL_CARD.md: what the model is, how to feed it, how good it is; with the YAML head that model hubs read."""
    shipped = [form.name for form in contents.forms]
    return _render("model_card.md.j2", contents, shipped=shipped, dataset=HUBS.get(contents.model.data))


def report(contents: Contents, split: ImageSet, measured: dict[str, Any], code: dict[str, Any]) -> bytes:
    """report.html: one file that shows how the model was made, how it behaves and where it errs.

    `measured` is the `measures.summary` of the images, `code` comes from `provenance.code`.
    """
    drawn = {"calibration": charts.calibration(measured["calibration"]["bins"])}
    if contents.history:
        drawn["training"] = charts.training(epochs(contents.history))
    if contents.verification:
        drawn["accuracy"] = charts.accuracy(contents.verification.facts.rows, contents.model.gate)
    if contents.latency:
        drawn["latency"] = charts.latency(_latency_rows(contents.latency))
    return _render(
        "report.html.j2",
        contents,
        pixels=sources(contents.line),
        measured=measured,
        mistakes=measured["mistakes"][:SHOWN],
        images={row["index"]: _png(split.images[row["index"]]) for row in measured["mistakes"][:SHOWN]},
        code=code,
        charts=drawn,
        times=_times,
    )


def _render(template: str, contents: Contents, **values: Any) -> bytes:
    """Fill a template with what both pages show, and with values of its own."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.release.report", ""),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
    )
    verification, latency = contents.verification, contents.latency
    page = environment.get_template(template).render(
        contents=contents,
        model=contents.model,
        verification=verification and verification.facts,
        latency=latency and latency.facts,
        latency_rows=_latency_rows(latency) if latency else [],
        size=console.size,
        quick=latency and latency.options.get("quick"),
        training=next((each for each in contents.ancestors if each.kind == train.KIND), None),
        **values,
    )
    return page.encode()


def _times(row: Deployed) -> list[str]:
    """Batch, p50, p90, p99, the GPU's p50 in microseconds, and millijoules an image; – for what was not measured."""
    timed = row.smallest
    if not timed:
        return ["–"] * 6
    estimates = {f"p{each.percent:g}": each.microseconds for each in timed.estimates}
    cells = [str(timed.batch)]
    for name in ("p50", "p90", "p99"):
        estimate = estimates.get(name)
        cells.append(bench.cell(timed.microseconds.get(name), 0) if estimate is None else f"{estimate:.0f}*")
    gpu = (timed.gpu_microseconds or {}).get("p50")
    return [*cells, bench.cell(gpu, 0), bench.cell(timed.millijoules_per_image, 2)]


def _latency_rows(latency: Artifact) -> list[Timed]:
    """The rows of the smallest batch, which is one image unless only other sizes were timed."""
    least = min(row.batch for row in latency.facts.rows)
    return [row for row in latency.facts.rows if row.batch == least]


def epochs(history: Artifact) -> list[dict[str, float]]:
    """A training's figures by epoch. CheckFailed if the file doesn't have them."""
    try:
        text = manifest.content(history).decode()
        rows = [{name: float(row[name]) for name in charts.CURVES} for row in csv.DictReader(io.StringIO(text))]
        if not rows or not all(math.isfinite(value) for row in rows for value in row.values()):
            raise ValueError("received none, or numbers that are not finite")
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        expected = f"expected {', '.join(charts.CURVES)} of every epoch"
        raise CheckFailed(f"{history.path}: {expected}: {reason(error)}") from error
    return rows


def _png(image: np.ndarray) -> str:
    """An image `[channels, height, width]` as a data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
