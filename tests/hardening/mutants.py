"""The rules of fold, export, half and verify broken on purpose, one at a time: a check must fail, and name what it is.

A mutant is a line of a stage's source replaced. Then the chain is run from the checkpoint on, or every attempt of
`gate.py` to fool the gate is made; a mutant that gets through all of it unnoticed has shown a missing check.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hardening import Place, Row

ROOT = Path(__file__).parents[2]
FOLD, EXPORT, HALF, VERIFY = (f"pipeline/stages/{name}.py" for name in ("fold", "export", "half", "verify"))
LOGIT = "folded, a logit differs by"
WRONG = (  # what, file, old, new, words of the check's message when the chain is run
    ("a layer's fold is skipped", FOLD, "folded[-1] = _into_conv(folded[-1], *_scale_and_shift(layer))",
     "folded[-1] = _into_conv(folded[-1], *_scale_and_shift(layer)) if len(folded) != 3 else folded[-1]", LOGIT),
    ("epsilon is forgotten", FOLD, "(norm.running_var + norm.eps)", "(norm.running_var + 0.05)", LOGIT),
    ("the running mean is forgotten", FOLD, "shift = -norm.running_mean * scale",
     "shift = 0 * norm.running_mean", LOGIT),
    ("gamma is forgotten", FOLD, "(scale * norm.weight, shift * norm.weight + norm.bias)",
     "(scale, shift + norm.bias)", LOGIT),
    ("beta is forgotten", FOLD, "shift * norm.weight + norm.bias)", "shift * norm.weight)", LOGIT),
    ("mean and deviation are swapped", FOLD, "shift = (-mean / std)", "shift = (-std / mean)", LOGIT),
    ("1/255 is forgotten", FOLD, "/= 255 * std", "/= std", LOGIT),
    ("a kernel is transposed", FOLD, "conv.weight * scale.view(-1, 1, 1, 1)",
     "conv.weight.transpose(2, 3) * scale.view(-1, 1, 1, 1)", LOGIT),
    ("the answer is not a number", FOLD, 'pytorch.from_pixels(rebuilt), dataset',
     'pytorch.from_pixels(rebuilt, (float("nan"), 1.0)), dataset', LOGIT),
    ("another opset is written", EXPORT, "model = _strip(_export(folded, opset))",
     "model = _strip(_export(folded, opset + 1))", "exported with opset 19: expected 18"),
    ("a fixed batch is exported", EXPORT, '({0: torch.export.Dim("batch")},)', "({},)", "exported with inputs"),
    ("a kernel is transposed on export", EXPORT, "    _describe(model, folded)\n    _check",
     "    _describe(model, folded)\n    from onnx import numpy_helper as h\n"
     "    w = next(t for t in model.graph.initializer if len(t.dims) == 4 and t.dims[2] == 3)\n"
     "    w.CopyFrom(h.from_array(h.to_array(w).transpose(0, 1, 3, 2).copy(), w.name))\n    _check", "mnist_cnn.onnx"),
    ("a layer is left in float32", HALF, "{name: value.astype(np.float16) for name, value in _weights(model).items()}",
     "dict(list({name: value.astype(np.float16) for name, value in _weights(model).items()}.items())[1:])",
     "converted to float16, it isn't valid any more"),
    ("scaling is not undone in the next layer", HALF, "(after - before, after)", "(after, after)",
     "in float16 it would"),
    ("a weight is scaled past float16", HALF, "np.ldexp(weights[name], scale)", "np.ldexp(weights[name], scale + 9)",
     "in float16 it would have"),
    ("every answer counts as right", VERIFY, "right = predictions == split.labels",
     "right = predictions == predictions",
     "right when shipped: expected"),
)  # fmt: skip
BLIND = (  # what, file, old, new, the attempt to fool the gate that is no longer refused
    ("the gate isn't asked", VERIFY, 'if row["accuracy"] < gate:', "if False:", "labels of other images"),
    ("any logits will do", VERIFY, 'if not row["finite"]:', "if False:", "logits that are no numbers"),
    ("a form may be worse than the checkpoint", VERIFY,
     'if row["worse"] > row["better"] and row["mcnemar_p"] < SIGNIFICANT:', "if False:", "worse than when trained"),
    ("a form may ignore its input", VERIFY, "failures = _ignoring(answers, split) + ", "failures = [] + ",
     "a model that ignores its input"),
    ("images may be in it twice", VERIFY, ' + _spoilt(split)', "", "the set twice"),
    ("another provider will do", "pipeline/runtimes/onnxruntime.py", "!= PROVIDERS[provider]:", "is None:",
     "falls back in silence"),
)  # fmt: skip

CHAIN = """
import sys
from pathlib import Path
from pipeline import artifact, dataset
from pipeline.errors import CheckFailed
from pipeline.release import measures
from pipeline.stages import export, fold, half, verify
chain, data, out = map(Path, sys.argv[1:])
checkpoint = artifact.read(chain / "mnist_cnn.safetensors")
folded = fold.run(checkpoint, out=out, data=data)
onnx = export.run(folded, out=out)
fp16 = half.run(onnx, out=out, data=data)
few = dataset.test(data)
few = dataset.Split(few.name, few.images[:2000], few.labels[:2000], {})
(out / "few.npz").write_bytes(dataset.pack(few))
proof = verify.run(checkpoint, folded, onnx, fp16, out=out, data=out / "few.npz", gate=0.9)
again = measures.against(measures.answers([onnx, fp16], few), few, proof, 0.9)
if again:
    raise CheckFailed("; ".join(again))
"""


FOOL = """
import sys
from pathlib import Path
from tests.hardening import Place, gate
chain, data, _ = map(Path, sys.argv[1:])
failures = [failure for row in gate.run(Place(chain, chain, data), 1) for failure in row.failures]
sys.exit("; ".join(failures) or 0)
"""


def run(place: Place, scale: float) -> list[Row]:
    """Each mutant once (in the short form every third); and the unbroken chain, which must pass."""
    row = Row("mutants", "a rule of fold, export, half or verify broken")
    control = Row("mutants", "unbroken, as a control")
    failed = _error(place, CHAIN, None)
    control.note(failed and f"unbroken: {failed}")
    mutants = [(CHAIN, *mutant) for mutant in WRONG] + [(FOOL, *mutant) for mutant in BLIND]
    for script, what, file, old, new, word in mutants[:: 1 if scale > 1 else 3]:
        said = _error(place, script, (file, old, new))
        if said is None:
            row.note(f"{what}: not noticed")
        else:
            row.note(None if word in said else f"{what}: expected {word!r}, said {said[-300:]}")
    return [row, control]


def _error(place: Place, script: str, change: tuple[str, str, str] | None) -> str | None:
    """Run a script with a line of the source changed: the error that ended it, None if nothing did."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        for name in ("pipeline", "models", "tests/hardening"):
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        if change:
            path = source / change[0]
            text = path.read_text()
            assert text.count(change[1]) == 1, f"{change[0]} has {change[1]!r} {text.count(change[1])} times"
            path.write_text(text.replace(change[1], change[2]))
        line = [sys.executable, "-c", script, str(place.chain), str(place.data), str(Path(scratch) / "out")]
        ran = subprocess.run(line, cwd=source, capture_output=True, text=True, timeout=600)
        return ran.stderr.strip().splitlines()[-1] if ran.returncode else None
