"""Prove, image by image, that no execution of a float16 graph within a stated model can change the answer."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from pipeline import console
from pipeline.errors import PipelineError, UsageError
from pipeline.graph import load
from pipeline.machine import host
from pipeline.records import code, disk, manifest
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Certificate, Certified, LabelledImages
from pipeline.stages import Data, Out, images, output, recorded

if TYPE_CHECKING:
    from pipeline.data.imagesets import ImageSet
    from pipeline.graph.operators import Operator

KIND, FILE = "certificate", "{model}.certificate.json"
NEEDS = ("torch", "safetensors")
PROBE, BATCH, CHUNK = 20, 50, 500  # images to try first, at once, and between two savings
EXECUTIONS = ("A1", "A", "A1-float16-averages")  # those of docs/guarantees.md
Parts = dict[str, np.ndarray]  # of an execution: certified, answers and bounds so far, and the seconds they took


def run(
    half: Artifact,
    *,
    out: Out,
    data: Data = None,
    executions: Annotated[str, f"What the device may do, of {', '.join(EXECUTIONS)}; see docs/guarantees.md."] = "A1,A",
) -> Artifact:
    """Bound, for each test image, how far every two logits can move under all executions that a model allows.

    An answer is certified if its lead over every other class is more than that. The result is a lower bound of the test
    accuracy on any device that computes as the model says, whatever the order of its sums. A graph with operators that
    are not covered gets a certificate that names them, and no proof; that is no failure.

    Can be interrupted: the next run goes on. A file whose certificate is on record is not certified again.
    """
    expect(executions=executions)
    split, model = images(half, data), load.load(half)
    options = recorded(split, executions=executions)
    for folder in dict.fromkeys((out, half.path.parent) if half.path else (out,)):
        made = _made(folder, half)
        if made and (made.options, made.versions) == (options, _versions()):
            return made
    from pipeline.graph import operators

    unknown = operators.unknown(model)
    path = output(out, FILE, half)
    parts: dict[str, Parts] = {}
    if unknown:
        console.say(f"not certified: {', '.join(unknown)}")
    else:
        parts = _Proof(operators.read(model), split, path, half, options).parts(executions.split(","))
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
    _partial(path).unlink(missing_ok=True)
    return artifact


def expect(*, executions: str, **_: Any) -> None:
    """UsageError unless `executions` are some of EXECUTIONS, each once."""
    names = executions.split(",")
    if not set(names) <= set(EXECUTIONS) or len(set(names)) < len(names):
        raise UsageError(f"--executions {executions}: expected some of {','.join(EXECUTIONS)}, each once")


def options(half: Artifact, *, data: str | None, executions: str, **_: Any) -> dict[str, Any]:
    """Return what a certificate depends on besides the file."""
    return recorded(images(half, data), executions=executions)


def absent(**_: Any) -> str | None:
    """Tell that PyTorch is not installed."""
    return None if importlib.util.find_spec("torch") else "torch is not installed"


def proven(forms: Iterable[Artifact], digests: Mapping[str, str]) -> list[Artifact]:
    """The certificates beside float16 files that this code made of these files and these images."""
    beside = [_made(form.path.parent, form) for form in forms if form.kind == "half" and form.path]
    return [made for made in beside if made and made.facts.data.digests == digests]


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


class _Proof:
    """The bounds of a graph's answers on an image set, kept in a file beside `path` while they are being computed."""

    def __init__(
        self, graph: list[Operator], split: ImageSet, path: Path, half: Artifact, options: dict[str, Any]
    ) -> None:
        self._graph, self._split, self._file = graph, split, _partial(path)
        about = json.dumps([half.sha256, options, code.digest(__name__), _versions()], sort_keys=True)
        self._about = hashlib.sha256(about.encode()).hexdigest()

    def parts(self, executions: list[str]) -> dict[str, Parts]:
        """Certify every image under each execution; fewer where none of the first can be."""
        import torch

        done, before = self._resumed(), torch.get_num_threads()
        torch.set_num_threads(1)  # of each worker: batches, not operators, are shared out
        host.keep_freed_memory()  # or the workers wait for each other at the system's page tables
        try:
            with (
                ThreadPoolExecutor(host.cores()) as pool,
                console.progress(len(executions) * len(self._split), "image", "certify") as bar,
            ):
                bar.update(sum(len(part["answers"]) for part in done.values()))
                for execution in executions:
                    while (first := len(done[execution]["answers"]) if execution in done else 0) < len(self._split):
                        if first and not done[execution]["certified"].any():
                            console.say(
                                f"{execution}: none of {first} images can be certified; the others are left out"
                            )
                            break
                        start = time.perf_counter()
                        chunk = self._chunk(pool, execution, first, CHUNK if first else PROBE)
                        chunk["seconds"] = np.array([time.perf_counter() - start])
                        part = done.get(execution, {name: value[:0] for name, value in chunk.items()})
                        done[execution] = {name: np.concatenate([part[name], value]) for name, value in chunk.items()}
                        bar.update(len(chunk["answers"]))
                        self._save(done)
        finally:
            torch.set_num_threads(before)
        for execution in executions:
            part = done[execution]
            console.say(f"{execution}: {len(part['answers']):,} images in {part['seconds'].sum():.0f} s")
        return {execution: done[execution] for execution in executions}

    def _chunk(self, pool: ThreadPoolExecutor, execution: str, first: int, n: int) -> Parts:
        from pipeline.graph import certificate, rounding

        allowed = rounding.EXECUTIONS[execution]
        some = self._split.images[first : first + n]
        batches = [some[at : at + BATCH] for at in range(0, len(some), BATCH)]
        bounds = list(pool.map(functools.partial(certificate.certify, self._graph, execution=allowed), batches))
        return {
            name: np.concatenate([getattr(each, name) for each in bounds])
            for name in ("certified", "answers", "bounds")
        }

    def _resumed(self) -> dict[str, Parts]:
        """What an interrupted run of the same certification had done."""
        from safetensors import SafetensorError, safe_open

        done: dict[str, Parts] = {}
        if self._file.is_file():
            try:
                with safe_open(self._file, "numpy") as kept:
                    arrays = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
                    for name, values in arrays.items() if kept.metadata() == self._told(arrays) else ():
                        execution, _, array = name.partition("/")
                        done.setdefault(execution, {})[array] = values
            except SafetensorError:
                done = {}
            console.say(f"{self._file}: {'going on from it' if done else 'of another certification: replaced'}")
        return done

    def _save(self, done: Mapping[str, Parts]) -> None:
        from safetensors.numpy import save

        arrays = {f"{execution}/{name}": value for execution, part in done.items() for name, value in part.items()}
        disk.save(self._file, save(arrays, self._told(arrays)))

    def _told(self, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
        """What stands with the arrays: the digest of what is certified, and of them."""
        parts = (
            self._about,
            *(f"{name} {hashlib.sha256(arrays[name].tobytes()).hexdigest()}" for name in sorted(arrays)),
        )
        return {"sha256": hashlib.sha256("\n".join(parts).encode()).hexdigest()}


def _row(half: Artifact, split: ImageSet, execution: str, part: Parts) -> Certified:
    tried = len(part["answers"])
    right = int((part["certified"] & (part["answers"] == split.labels[:tried])).sum())
    wrong = int(part["certified"].sum()) - right
    return Certified(
        form=half.name,
        sha256=half.sha256,
        execution=execution,
        images=tried,
        certified=right + wrong,
        right=right,
        at_least=right / len(split),
        at_most=1 - wrong / len(split),
        median=float(np.median(part["bounds"])),
        p99=float(np.quantile(part["bounds"], 0.99)),
    )


def show(certificate: Artifact) -> None:
    """Print what is certified, by execution."""
    facts = certificate.facts
    if facts.unknown:
        console.result(f"not certified: {', '.join(facts.unknown)}")
        return
    rows = []
    for row in facts.rows:
        cells = [row.execution, f"{row.certified:,} of {row.images:,}", f"{row.right:,}", f"{row.at_least:.2%}"]
        rows.append([*cells, f"{row.at_most:.2%}", f"{row.median:.2f}", f"{row.p99:.2f}"])
    headers = "execution", "certified", "and right", "accuracy at least", "at most", "bound, median", "99 %"
    title = f"{facts.data.name}, {facts.data.images:,} images: answers that can't change"
    console.table(headers, rows, title=title, spare=("at most", "99 %"))
