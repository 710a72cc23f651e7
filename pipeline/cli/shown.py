"""What `show`, `status` and `models` print: a model, an artifact with its record, or rows of anything."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline import commands, console
from pipeline.records import kinds
from pipeline.records.manifest import Artifact
from pipeline.training import models


def model(name: str, as_json: bool) -> None:
    """A model's layers and recipes."""
    from pipeline.stages import check

    found = models.get(name)
    card, layers = found.card(name), check.facts(name).layers
    total = sum(row.parameters for row in layers)
    if as_json:
        console.json(kinds.plain({"card": card, "layers": layers, "parameters": total}))
        return
    cells = [[f"{row.layer}-{n}", str(row.output), f"{row.parameters:,}"] for n, row in enumerate(layers, 1)]
    console.table(["layer (type)", "output shape", "parameters"], cells, title=card.title)
    console.result(f"Total params: {total:,}")
    for title, recipe in found.recipes.items():
        numbers = ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(recipe).items())
        console.result(f"Recipe {title}: {numbers}")


def artifact(given: Artifact, as_json: bool) -> None:
    """An artifact as the command that makes its kind shows it, then what else is on record about it."""
    record = given.record()
    if as_json:
        console.json(record)
        return
    adopted = getattr(given.facts, "adopted", None)  # of the kind that `export` makes, too
    names = ["adopt"] if adopted else commands.COMMANDS
    every = (commands.COMMANDS[name].load() for name in names)
    if maker := next((each for each in every if getattr(each, "KIND", None) == given.kind), None):
        maker.show(given)
    cells = [["kind", given.kind], ["sha256", given.sha256], ["bytes", f"{given.bytes:,}"], ["code", given.code]]
    for key in ("parents", "options", "versions"):
        cells += [[f"{key[:-1]} {name}", _words(value)] for name, value in record[key].items()]
    console.table(["record", ""], cells, title=str(given.path))


def _words(value: Any) -> str:
    """An option as on record, in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list) else "–" if value is None else str(value)


def rows(some: list[dict[str, Any]], title: str, as_json: bool) -> None:
    """A list of rows, as JSON or as a table whose headers are the rows' keys."""
    if as_json:
        console.json(some)
    else:
        cells = [[f"{each:.2%}" if isinstance(each, float) else each for each in row.values()] for row in some]
        console.table(list(some[0]) if some else [], cells, title=title)
