"""Prove, image by image, that no execution of a float16 graph within a stated model can change the answer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from pipeline import console
from pipeline.errors import PipelineError, UsageError
from pipeline.graph import load
from pipeline.graph.proof import PROBE, Parts, Proof
from pipeline.records import code, manifest
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Certificate, Certified, LabelledImages
from pipeline.stages import Data, Out, images, output, recorded

if TYPE_CHECKING:
    from pipeline.data.imagesets import ImageSet

KIND, FILE = "certificate", "{model}.certificate.json"
NEEDS = ("torch", "safetensors")
NO_BOUND = 1e300  # on record, which has finite numbers only
EXECUTIONS = ("A1", "A", "A1-float16-averages")  # those of docs/guarantees.md


def run(
    half: Artifact,
    *,
    out: Out,
    data: Data = None,
    executions: Annotated[str, f"What the device may do, of {', '.join(EXECUTIONS)}; see docs/guarantees.md."] = "A1,A",
    certify_minutes: Annotated[float, "Minutes that each execution may take for all images, judged by the first."] = 30,
) -> Artifact:
    """Bound, for each test image, how far every two logits can move under all executions that a model allows.

    An answer is certified if its lead over every other class is more than that. The result is a lower bound of the test
    accuracy on any device that computes as the model says, whatever the order of its sums. A graph with operators that
    are not covered gets a certificate that names them, and no proof; that is no failure. An execution under which none
    of the first 20 images can be certified is left out, and so is one that would take too long, judged by the same.

    Can be interrupted: the next run goes on. A file whose certificate is on record is not certified again.
    """
    expect(executions=executions, certify_minutes=certify_minutes)
    split, model = images(half, data), load.load(half)
    options = recorded(split, executions=executions)
    for folder in dict.fromkeys((out, half.path.parent) if half.path else (out,)):
        made = _made(folder, half)
        if made and (made.options, made.versions) == (options, _versions()) and not _cut(made):
            return made
    from pipeline.graph import operators

    unknown = operators.unknown(model)
    path = output(out, FILE, half)
    parts: dict[str, Parts] = {}
    if unknown:
        console.say(f"not certified: {', '.join(unknown)}")
    else:
        about = [half.sha256, options, code.digest(__name__), _versions()]
        proof = Proof(operators.read(model), split.images, _partial(path), about)
        parts = proof.parts(executions.split(","), certify_minutes)
    artifact = manifest.write(
        path,
        None,
        facts=Certificate(
            model=half.facts.model.name,
            data=LabelledImages(name=split.name, images=len(split), digests=split.digests),
            unknown=unknown,
            rows=[_row(half, split, execution, part) for execution, part in parts.items()],
            undecided={name: np.flatnonzero(~part["certified"]).tolist() for name, part in parts.items()},
        ),
        parents={half.name: half.sha256} | split.digests,
        options=options,
        versions=_versions(),
        code=code.digest(__name__),
    )
    if not _cut(artifact):  # else more minutes go on from there
        _partial(path).unlink(missing_ok=True)
    return artifact


def expect(*, executions: str, certify_minutes: float, **_: Any) -> None:
    """UsageError unless `executions` are some of EXECUTIONS, each once, and have time."""
    names = executions.split(",")
    if not set(names) <= set(EXECUTIONS) or len(set(names)) < len(names):
        raise UsageError(f"--executions {executions}: expected some of {','.join(EXECUTIONS)}, each once")
    if not certify_minutes > 0:
        raise UsageError(f"--certify-minutes {certify_minutes:g}: expected more than 0")


def options(half: Artifact, *, data: str | None, executions: str, **_: Any) -> dict[str, Any]:
    """Return what a certificate depends on besides the file; of one that time cut short, see `_cut`."""
    return recorded(images(half, data), executions=executions)


def absent(**_: Any) -> str | None:
    """Tell that PyTorch is not installed."""
    return None if importlib.util.find_spec("torch") else "torch is not installed"


def proven(forms: Iterable[Artifact], digests: Mapping[str, str]) -> list[Artifact]:
    """The certificates beside float16 files that this code made of these files and these images."""
    beside = [_made(form.path.parent, form) for form in forms if form.kind == "half" and form.path]
    return [made for made in beside if made and made.facts.data.digests == digests]


def of_all_images(certificate: Artifact) -> list[Certified]:
    """What a certificate proves of the whole test set, without executions that were left out after the first images."""
    whole = certificate.facts.data.images
    return [row for row in certificate.facts.rows if row.certified and row.images == whole]


def _cut(certificate: Artifact) -> bool:
    """Tell whether an execution was left out for the time that it would take, not for want of proofs."""
    whole = certificate.facts.data.images
    return any(row.images < whole and (row.certified or row.images < PROBE) for row in certificate.facts.rows)


def _made(folder: Path, half: Artifact) -> Artifact | None:
    """The certificate of a file in a folder, if this code made it."""
    try:
        made = manifest.read(output(folder, FILE, half))
    except PipelineError:
        return None
    return made if (made.parents.get(half.name), made.code) == (half.sha256, code.digest(__name__)) else None


def _versions() -> dict[str, str]:
    return manifest.versions("torch", "numpy", "onnx")


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _row(half: Artifact, split: ImageSet, execution: str, part: Parts) -> Certified:
    tried = len(part["answers"])
    right = int((part["certified"] & (part["answers"] == split.labels[:tried])).sum())
    wrong = int(part["certified"].sum()) - right
    bounds = np.nan_to_num(part["bounds"], nan=NO_BOUND, posinf=NO_BOUND)
    return Certified(
        form=half.name,
        sha256=half.sha256,
        execution=execution,
        images=tried,
        certified=right + wrong,
        right=right,
        at_least=right / len(split),
        at_most=1 - wrong / len(split),
        median=float(np.median(bounds)),
        p99=float(np.quantile(bounds, 0.99)),
    )


def show(certificate: Artifact) -> None:
    """Print what is certified, by execution."""
    facts = certificate.facts
    if facts.unknown:
        console.result(f"not certified: {', '.join(facts.unknown)}")
        return
    rows = []
    for row in facts.rows:
        left = facts.data.images - row.images
        certified = f"{row.certified:,} of {row.images:,}" + f", {left:,} left out" * (left > 0)
        shares = ["–" if left else f"{share:.2%}" for share in (row.at_least, row.at_most)]
        bounds = [f"{bound:.2f}" if bound < 1e6 else f"{bound:.0e}" for bound in (row.median, row.p99)]
        rows.append([row.execution, certified, f"{row.right:,}", *shares, *bounds])
    headers = "execution", "certified", "and right", "accuracy at least", "at most", "bound, median", "99 %"
    title = f"{facts.data.name}, {facts.data.images:,} images: answers that can't change"
    console.table(headers, rows, title=title, spare=("at most", "99 %"))
