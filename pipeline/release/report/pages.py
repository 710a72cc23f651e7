"""The pages of a release that people read: MODEL_CARD.md and report.html. Templates hold the words."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.data.imagesets import ImageSet
from pipeline.errors import CheckFailed, reason
from pipeline.measure import statistics
from pipeline.records import manifest
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Timed
from pipeline.release.contents import Contents
from pipeline.release.report import charts
from pipeline.stages import train

HUBS = {"mnist": "ylecun/mnist"}  # a data set's name on Hugging Face


def card(contents: Contents, against: list[str], digests: Mapping[str, str]) -> bytes:
    """MODEL_CARD.md: what the model is, how to feed it, how good it is; with the YAML head that model hubs read."""
    rows = contents.verification.facts.rows if contents.verification else []
    shipped = {form.name for form in contents.forms}
    return _render(
        "model_card.md.j2",
        model=contents.model,
        forms=contents.forms,
        rows=[row for row in rows if row.form in shipped],
        latency=_latency(contents),
        timing=contents.latency and contents.latency.facts,
        quick=_quick(contents),
        verification=contents.verification and contents.verification.facts,
        training=_training(contents),
        dataset=HUBS.get(contents.model.data),
        against=against,
        digests=digests,
    )


def report(
    contents: Contents, against: list[str], split: ImageSet, measured: dict[str, Any], code: dict[str, Any]
) -> bytes:
    """report.html: one file that shows how the model was made, how it behaves and where it errs."""
    verification = contents.verification.facts if contents.verification else None
    latency = contents.latency.facts if contents.latency else None
    training = _training(contents)
    line = [*contents.ancestors, *contents.forms]
    return _render(
        "report.html.j2",
        model=contents.model,
        against=against,
        verification=verification,
        latency=latency,
        latency_rows=_latency(contents),
        quick=_quick(contents),
        layers=training.facts.layers if training else [],
        training=training,
        line=line,
        pixels={n: sha for each in line for n, sha in each.parents.items() if n not in {other.name for other in line}},
        reports=contents.reports,
        measured=measured,
        images={row["index"]: _png(split.images[row["index"]]) for row in measured["mistakes"]},
        interval=statistics.wilson,
        code=code,
        charts=_charts(contents, measured),
    )


def _training(contents: Contents) -> Artifact | None:
    return next((each for each in contents.ancestors if each.kind == train.KIND), None)


def _latency(contents: Contents) -> list[Timed]:
    """What was timed at the smallest batch, which is one image unless other sizes alone were asked for."""
    rows = contents.latency.facts.rows if contents.latency else []
    least = min((row.batch for row in rows), default=1)
    return [row for row in rows if row.batch == least]


def _quick(contents: Contents) -> bool:
    return bool(contents.latency and contents.latency.options.get("quick"))


def _charts(contents: Contents, measured: dict[str, Any]) -> dict[str, str]:
    drawn = {"calibration": charts.calibration(measured["calibration"]["bins"])}
    if contents.history:
        drawn["training"] = charts.training(_epochs(contents.history))
    if contents.verification:
        drawn["accuracy"] = charts.accuracy(contents.verification.facts.rows, contents.model.gate)
    if timed := _latency(contents):
        drawn["latency"] = charts.latency(timed)
    return drawn


def _epochs(history: Artifact) -> list[dict[str, float]]:
    """A training's figures, epoch by epoch. CheckFailed if the file doesn't have them."""
    try:
        text = manifest.content(history).decode()
        rows = [{name: float(row[name]) for name in charts.CURVES} for row in csv.DictReader(io.StringIO(text))]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        expected = f"{history.path}: expected {', '.join(charts.CURVES)} of every epoch"
        raise CheckFailed(f"{expected}: {reason(error)}") from error
    if not rows or not all(math.isfinite(value) for row in rows for value in row.values()):
        raise CheckFailed(f"{history.path}: expected {', '.join(charts.CURVES)} of every epoch, finite numbers")
    return rows


def _png(image: np.ndarray) -> str:
    """An image `[channels, height, width]` as a data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _render(template: str, **values: Any) -> bytes:
    import jinja2

    loader = jinja2.PackageLoader("pipeline.release.report", "")
    settings = {"autoescape": template.endswith(".html.j2"), "undefined": jinja2.StrictUndefined}
    page = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, **settings
    )
    return page.get_template(template).render(**values).encode()
