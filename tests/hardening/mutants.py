"""The rules of the stages from export to verify broken on purpose, one by one: a check must fail, and name what it is.

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
EXPORT, HALF, VERIFY = (f"pipeline/stages/{name}.py" for name in ("export", "half", "verify"))
PASSES, FLOAT16, QUANTISATION = (f"pipeline/graph/{name}.py" for name in ("passes", "float16", "quantization"))
LOGIT = "folded: a logit differs by"
EXPORTED = "exported, a logit differs by"
WRONG = (  # what, file, old, new, words of the check's message when the chain is run
    ("epsilon is forgotten", PASSES, 'variance + attribute(node, "epsilon", 1e-5)', "variance + 0.05", LOGIT),
    ("the running mean is forgotten", PASSES, "shift = beta - mean * scale", "shift = beta - 0 * mean", LOGIT),
    ("gamma is forgotten", PASSES, "scale = gamma / np.sqrt", "scale = 1 / np.sqrt", LOGIT),
    ("beta is forgotten", PASSES, "shift = beta - mean * scale", "shift = -mean * scale", LOGIT),
    ("mean and deviation are swapped", PASSES, "-means / deviations", "-deviations / means", EXPORTED),
    ("1/255 is forgotten", PASSES, "1 / (255 * deviations)", "1 / deviations", EXPORTED),
    ("the mean goes into a padding convolution's bias", PASSES, "    if _pads(node):", "    if False:", LOGIT),
    ("the pixels' scale is forgotten", PASSES, "weight * scale[channels][spatial]", "weight", LOGIT),
    ("the pixels' shift is forgotten", PASSES, "base + (weight", "base + 0 * (weight", LOGIT),
    ("a BatchNorm is dropped", PASSES, '[scaled, summand], [result]',
     '[node.input[0], summand], [result]', LOGIT),
    ("another opset is written", EXPORT, "opset_version=opset", "opset_version=opset + 1", "opset 19: expected"),
    ("a fixed batch is exported", EXPORT, "({0: torch.export.Dim(passes.BATCH)},)", "({},)", "exported as"),
    ("a kernel is transposed on export", EXPORT, "    measured = images(checkpoint, data)\n",
     "    from onnx import numpy_helper as h\n"
     "    w = next(t for t in model.graph.initializer if len(t.dims) == 4 and t.dims[2] == 3)\n"
     "    w.CopyFrom(h.from_array(h.to_array(w).transpose(0, 1, 3, 2).copy(), w.name))\n"
     "    measured = images(checkpoint, data)\n", EXPORTED),
    ("a weight is left in float32", FLOAT16, "if tensor.name not in wide]",
     "if tensor.name not in wide and len(tensor.dims) != 1]", "is not a valid ONNX graph"),
    ("a weight is scaled past float16", FLOAT16, "numpy_helper.to_array(tensor).astype(dtype)",
     "(numpy_helper.to_array(tensor) * 1e6).astype(dtype)", "it overflows"),
    ("weights are quantised by half their scale", QUANTISATION, "np.rint(values[weight] / _scale(largest))",
     "np.rint(values[weight] / _scale(largest) / 2)", "in int8 it is worse"),
    ("a scale is for each input channel", QUANTISATION, "axis=axis)]", "axis=1 - axis)]", "ONNX Runtime can't"),
    ("every answer counts as right", VERIFY, "correct = predictions == labels",
     "correct = predictions == predictions",
     "right when shipped: expected"),
)  # fmt: skip
BLIND = (  # what, file, old, new, the attempt to fool the gate that is no longer refused
    ("the gate isn't asked", VERIFY, "if row.accuracy < gate:", "if False:", "labels of other images"),
    ("any logits will do", VERIFY, "if not row.finite:", "if False:", "logits that are no numbers"),
    ("a form may be worse than the checkpoint", VERIFY,
     "if row.worse > row.better and row.mcnemar_p < SIGNIFICANT:", "if False:", "worse than when trained"),
    ("a form may ignore its input", VERIFY, "failures = _ignoring(answers, split) + ", "failures = [] + ",
     "a model that ignores its input"),
    ("images may be in it twice", VERIFY, ' + _spoilt(split, forms[0], data)', "", "the set twice"),
    ("another provider will do", "pipeline/runtimes/onnxruntime.py", "!= provider:", "is None:",
     "falls back in silence"),
)  # fmt: skip

CHAIN = """
import sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from pipeline.records.forms import Unfolded
from pipeline.data import imagesets
from pipeline.errors import CheckFailed
from pipeline.graph import load, passes
from pipeline.records import manifest
from pipeline.release.report import measures
from pipeline.stages import export, fold, half, quantize, verify
chain, data, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
checkpoint = manifest.read(chain / "mnist_cnn.safetensors")
card = checkpoint.facts.model
few = imagesets.load(data, "test", card.input, card.classes)
few = imagesets.ImageSet(few.name, "test", few.images[:1000], few.labels[:1000])
out.mkdir()
(out / "few.npz").write_bytes(imagesets.pack(few))
test, train = str(out / "few.npz"), str(out / "both.npz")
np.savez(train, train_images=few.images, train_labels=few.labels, test_images=few.images, test_labels=few.labels)
unfolded = export.run(checkpoint, out=out, data=test)

# A network whose BatchNorm doesn't fold and whose first convolution pads: random weights, compared with itself.
torch.manual_seed(0)
first, last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 10, 3, 2)
other = nn.Sequential(first, nn.ReLU(), nn.BatchNorm2d(8), last, nn.AvgPool2d(13))
other[2].running_mean.normal_(0, 1), other[2].running_var.uniform_(0.5, 2)
nn.init.uniform_(other[2].weight, 0.5, 2), nn.init.normal_(other[2].bias)
model = passes.strip(export.export(other, card, 18, "other"))
facts = Unfolded(model=card, reference=checkpoint.facts.reference, opset=18, ir_version=8,
                       operators=load.operators(model), batch_norms=1, difference=0.0)
made = manifest.write(out / "other" / unfolded.name, model.SerializeToString(), facts=facts, parents=[checkpoint])
fold.run(made, out=out / "other", data=test)

folded = fold.run(unfolded, out=out, data=test)
fp16 = half.run(folded, out=out, data=train)
int8 = quantize.run(folded, out=out, data=train)
if int8.facts.failures:
    raise CheckFailed("; ".join(int8.facts.failures))
proof = verify.run(checkpoint, unfolded, folded, fp16, int8, out=out, data=test, gate=0.8)
if proof.facts.failures:
    raise CheckFailed("; ".join(proof.facts.failures))
if again := measures.against(measures.answers([folded, fp16], few), few, proof, 0.8):
    raise CheckFailed("; ".join(again))
"""


FOOL = """
import sys
from pathlib import Path
from tests.hardening import Place, gate
chain, data, _ = sys.argv[1:]
failures = [failure for row in gate.run(Place(Path(chain), Path(chain), data), 1) for failure in row.failures]
sys.exit("; ".join(failures) or 0)
"""


def run(place: Place, scale: float) -> list[Row]:
    """Each mutant once (in the short form every third); and the unbroken chain, which must pass."""
    row = Row("mutants", "a rule of export, fold, half, quantize or verify broken")
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
        for name in ("pipeline", "models", "tests/hardening", "tests/support"):
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        if change:
            path = source / change[0]
            text = path.read_text()
            assert text.count(change[1]) == 1, f"{change[0]} has {change[1]!r} {text.count(change[1])} times"
            path.write_text(text.replace(change[1], change[2]))
        line = [sys.executable, "-c", script, str(place.chain), place.data, str(Path(scratch) / "out")]
        ran = subprocess.run(line, cwd=source, capture_output=True, text=True, timeout=600)
        return ran.stderr.strip().splitlines()[-1] if ran.returncode else None
