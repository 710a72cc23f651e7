"""What a model file may be, and how one that can't walk the chain is refused, in seconds and by name."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from pipeline.errors import UsageError
from pipeline.records.forms import Layer
from pipeline.training import models
from pipeline.training.model import Model, Recipe
from tests.support import command, one_line

FILE = """
import torch
from torch import nn
from pipeline import Model, Recipe
C, B, R = nn.Conv2d, nn.BatchNorm2d, nn.ReLU
{code}
MODEL = Model(title="a test", data="nowhere", input=(1, 28, 28), classes=tuple("0123456789"), mean=0.13, std=0.31,
              gate=0.05, network={network}, recipes={{"default": Recipe(epochs=1)}})
"""
MODULE = """
class Net(nn.Module):
    def __init__(self, **_):
        super().__init__()
        self.a, self.b, self.c = C(1, 8, 3, bias=False), B(8), C(8, 8, 1)
        self.d = nn.Linear(8, 10)
    def forward(self, x):
        x = self.b(self.a(x)).relu()
        x = x + self.c(x)
        return {result}
"""
POOLED = "self.d(x.mean((2, 3)))"
GOOD = {
    "official_example": "nn.Sequential(C(1, 32, 3, 1), R(), C(32, 64, 3, 1), R(), nn.MaxPool2d(2), nn.Dropout(0.25), "
    "nn.Flatten(), nn.Linear(9216, 128), R(), nn.Dropout(0.5), nn.Linear(128, 10))",
    "pad_later": "nn.Sequential(C(1, 8, 3, bias=False), B(8), R(), nn.MaxPool2d(2), "
    "C(8, 10, 3, padding=1, bias=False), B(10), R(), nn.AvgPool2d(13), C(10, 10, 1))",
    "depthwise": "nn.Sequential(C(1, 8, 3, bias=False), B(8), R(), nn.MaxPool2d(2), C(8, 8, 3, groups=8, bias=False), "
    "B(8), R(), C(8, 10, 1, bias=False), B(10), R(), nn.AvgPool2d(11), C(10, 10, 1))",
    "activations": "nn.Sequential(C(1, 8, 3, padding=1, stride=2, dilation=2), nn.Hardswish(), nn.SiLU(), nn.ReLU6(), "
    "nn.Sigmoid(), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))",
}


def written(folder: Path, name: str, network: str, code: str = "") -> None:
    (folder / "models").mkdir(exist_ok=True)
    (folder / f"models/{name}.py").write_text(FILE.format(code=code, network=network))


def check(folder: Path, name: str = "net"):
    return command("check", name, cwd=folder)


@pytest.mark.parametrize("name", GOOD)
def test_networks_that_walk_the_chain_pass(tmp_path, name):
    written(tmp_path, name, f"lambda: {GOOD[name]}")
    result = check(tmp_path, name)
    assert result.returncode == 0 and f"{name} can be trained" in result.stdout, result.stderr


def test_a_module_of_a_private_class_has_its_row_on_record(tmp_path):
    written(
        tmp_path,
        "net",
        "lambda: nn.Sequential(_Same(), nn.Flatten(), nn.Linear(784, 10))",
        "class _Same(nn.Identity): pass",
    )
    facts = json.loads(command("check", "net", "--json", cwd=tmp_path).stdout)["facts"]
    assert msgspec.convert(facts["layers"], list[Layer])[0].layer == "_Same"


def test_what_cannot_be_put_on_record_is_found_by_the_check(tmp_path, monkeypatch):
    written(tmp_path, "many", "lambda: nn.Sequential(C(1, 10, 28))")
    row = Layer(layer="Identity", output=[-1, 10], parameters=0)
    monkeypatch.setattr(models, "layers", lambda *_: [row] * 10_001)
    assert "many.py: can't be put on record" in one_line(command("train", "many", cwd=tmp_path), 1)


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ("lambda x: x", "augment fails: <lambda>() takes 1 positional argument but 4 were given"),
        ("lambda x, *_: x[:1]", "augment gives [1, 1, 28, 28]: expected [2, 1, 28, 28]"),
    ],
)
def test_an_augmentation_that_fails_is_found_before_the_training(tmp_path, augment, expected):
    written(tmp_path, "net", "lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))")
    path = tmp_path / "models/net.py"
    path.write_text(path.read_text().replace("MODEL = Model(", f"MODEL = Model(augment={augment}, "))
    assert expected in one_line(check(tmp_path), 1)


def test_a_softmax_at_the_end_is_told(tmp_path):
    written(tmp_path, "net", "lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Softmax(1))")
    checked = check(tmp_path)
    assert checked.returncode == 0 and "ends with Softmax, but the loss takes logits" in checked.stderr


def test_a_class_with_a_residual_sum_passes(tmp_path):
    written(tmp_path, "net", "Net", MODULE.format(result=POOLED))
    assert check(tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("network", "code", "expected"),
    [
        ("Net", MODULE.format(result=f"({POOLED}, x)"), "gives a tuple of 2: expected logits"),
        ("Net", MODULE.format(result=f"{{'logits': {POOLED}}}"), "gives a dict of 1: expected logits"),
        ("Net", MODULE.replace("(self, x)", "(self, x, y)").format(result=POOLED), "takes x, y: expected one input"),
        ("lambda: nn.Sequential(C(1, 10, 3))", "", "a map for each class, as for segmentation"),
        ("lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 1))", "", "one number, as for regression"),
        ("lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 9))", "", r"gives [2, 9]: expected logits [2, 10]"),
        ("lambda: nn.Sequential(nn.Flatten(), nn.Linear(99, 10))", "", "a batch [2, 1, 28, 28] fails"),
        ("Net", MODULE.replace("x = x + self", "x = x if x.sum() > 0 else -x; x = self").format(result=POOLED),
         "PyTorch can't export it"),
        ("lambda: nn.Sequential(C(1, 8, 3), B(8, track_running_stats=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
         "nn.Linear(8, 10))", "", "1 is a BatchNorm without running statistics"),
        ("Net", MODULE.format(result="self.d(x.amax((2, 3)).view(len(x), -1))"), "forward() fixes the batch, as"),
        ("Net", MODULE.format(result="self.d((x - x.mean(0)).amax((2, 3)))"), "depends on the batch's other images"),
        ("Net", MODULE.format(result="self.d(x.amax((2, 3))).squeeze()"), "alone gives [10]: expected [1, 10]"),
        ("Net", MODULE.format(result="self.d(x.amax((2, 3))) / 0"), "logits that are not finite numbers"),
        ("Net", MODULE.format(result="exit(3)"), "a batch [2, 1, 28, 28] fails: 3"),
        ("lambda: exit(3)", "", "network() fails: 3"),
        ("lambda: 3", "", "gives int: expected a torch.nn.Module"),
        ("lambda: 1 / 0", "", "network() fails: division by zero"),
        ("lambda: nn.Flatten()", "", "has no parameters"),
        ("nn.Linear(784, 10)", "", "network is a module: expected a class or function that makes one"),
    ],
)  # fmt: skip
def test_networks_that_do_not_are_refused_by_name(tmp_path, network, code, expected):
    written(tmp_path, "net", network, code)
    error = one_line(check(tmp_path), 1)
    assert expected in error and "net.py" in error


@pytest.mark.parametrize("stage", ["train", "study", "sweep", "run"])
def test_what_trains_begins_with_the_check(tmp_path, stage):
    """Before its data is touched: it is nowhere."""
    written(tmp_path, "net", "lambda: nn.Sequential(C(1, 10, 3))")
    assert "as for segmentation" in one_line(command(stage, "net", "--out", tmp_path / "out", cwd=tmp_path), 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MODEL = 3", "expected MODEL = Model(...) in it, received int"),
        ("x = (", "net.py:1: the model file can't be loaded"),
        ("import no_such_module", "net.py:1: the model file can't be loaded: No module named 'no_such_module'"),
        ("\n\nfrom pipeline import Model\nMODEL = Model(title='x')", "net.py:4: the model file can't be loaded: Model"),
        (
            FILE.format(code="", network="lambda: 1").replace("mean=0.13", "mean=(0.1, 0.2)"),
            "one mean and std per channel",
        ),
        (FILE.format(code="", network="lambda: 1").replace("gate=0.05", "gate=5"), "MODEL.gate"),
        (FILE.format(code="", network="lambda: 1").replace("title=", "name="), "unexpected keyword argument 'name'"),
    ],
)
def test_files_that_are_no_model_are_one_line(tmp_path, text, expected):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/net.py").write_text(text)
    assert expected in one_line(check(tmp_path), 2)


def test_fields_are_checked_where_they_are_given():
    fields = {
        "title": "x",
        "data": "mnist",
        "input": (1, 28, 28),
        "classes": ("a", "b"),
        "mean": 0,
        "std": 1,
        "gate": 0.5,
    }
    model = Model(**fields, network=lambda dropout: dropout)
    assert model.build(0.3) == 0.3 and model.card("x").mean == [0.0] and model.card("x").prepare == "resize"
    for wrong in ({"classes": "ab"}, {"classes": ("a", "a")}, {"std": 0}, {"input": (1, 28)}, {"network": 3},
                  {"recipes": {"best": Recipe()}}, {"classes": ("a,b", "c")}, {"prepare": "x"}):  # fmt: skip
        with pytest.raises(UsageError):
            Model(**{**fields, "network": lambda: 1, **wrong})


def test_another_projects_package_called_models_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").write_text("raise RuntimeError('another project')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert command("models", cwd=tmp_path).returncode == 0
    assert models.names()[0] == "mnist_cnn"
