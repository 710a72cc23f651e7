from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import command, one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline import artifact, dataset
from pipeline.errors import CheckFailed
from pipeline.runtimes import pytorch
from pipeline.stages.fold import _largest_difference, fold


@st.composite
def networks(draw) -> tuple[nn.Sequential, torch.Tensor]:
    """A random network of the layers that fold knows, with random statistics, and raw pixels that fit it."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    channels, layers, size = draw(st.integers(1, 3)), [], 20
    inputs = channels
    for number in range(draw(st.integers(1, 4))):
        outputs, kernel = draw(st.integers(1, 6)), draw(st.sampled_from([1, 3]))
        padding = draw(st.sampled_from([0, 1])) if number else 0
        stride, bias = draw(st.sampled_from([1, 2])) if size > 10 else 1, draw(st.booleans())
        mode = draw(st.sampled_from(["zeros", "reflect"]))
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias, padding_mode=mode))
        if draw(st.booleans()):
            norm = nn.BatchNorm2d(outputs, eps=draw(st.sampled_from([1e-5, 1e-2])), affine=draw(st.booleans()))
            norm.running_mean.normal_(0, 3)
            norm.running_var.uniform_(1e-3, 9)
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
            layers.append(norm)
        layers += draw(
            st.sampled_from(
                [
                    [],
                    [nn.ReLU()],
                    [nn.ReLU(), nn.Dropout(0.5)],
                    [nn.MaxPool2d(2)],
                    [nn.MaxPool2d(3, 2, ceil_mode=True)],
                    [nn.AvgPool2d(2)],
                    [nn.AvgPool2d(3, 2, 1, count_include_pad=False)],
                ]
            )
        )
        with torch.no_grad():
            size = nn.Sequential(*layers).eval()(torch.zeros(1, channels, 20, 20)).shape[-1]
        inputs = outputs
        if size < 4:
            break
    return nn.Sequential(*layers).eval(), torch.randint(0, 256, (4, channels, 20, 20)).double()


@settings(max_examples=100, deadline=None)
@given(networks(), st.floats(0.01, 0.9), st.floats(0.1, 1.0))
def test_folded_is_the_same_function(network_and_pixels, mean, std):
    network, pixels = network_and_pixels
    folded = fold(network, mean=mean, std=std)
    with torch.inference_mode():
        expected = network.double()((pixels / 255 - mean) / std)
        rebuilt = pytorch.build(json.loads(json.dumps(pytorch.describe(folded))))
        rebuilt.load_state_dict(folded.state_dict())
        received = rebuilt.double().eval()(pixels)
    assert not any(isinstance(layer, nn.BatchNorm2d | nn.Dropout) for layer in folded)
    scale = expected.abs().max().clamp(min=1)
    assert (received - expected).abs().max() / scale < 1e-4  # weights are stored in float32


def test_the_original_network_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fold(network, mean=0.1, std=0.3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)],
        [nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)],
        [nn.Conv2d(1, 2, 3, padding=1)],
        [nn.Conv2d(1, 2, 3, padding="same")],
        [nn.ReLU(), nn.Conv2d(1, 2, 3)],
        [],
        [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)],
        [nn.Conv2d(1, 2, 3), nn.Sigmoid()],
        [nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, return_indices=True)],
    ],
)
def test_what_does_not_fold_exactly_is_refused(layers):
    with pytest.raises(CheckFailed):
        pytorch.describe(fold(nn.Sequential(*layers), mean=0.1, std=0.3))


def test_the_folded_artifact(chain):
    folded = artifact.read(chain / "mnist_cnn.folded.safetensors")
    assert folded.facts["parameters"] == 9510
    assert folded.facts["largest_logit_difference"] < 1e-3
    layers = [layer["layer"] for layer in folded.facts["layers"]]
    assert "BatchNorm2d" not in layers and "Dropout" not in layers and layers.count("Conv2d") == 7


def test_the_command_finds_its_input_and_refuses_another_kind(chain, data, tmp_path):
    result = command("fold", chain / "mnist_cnn.safetensors", "--out", tmp_path, "--data", data, "--json")
    assert json.loads(result.stdout)["sha256"] == artifact.read(chain / "mnist_cnn.folded.safetensors").sha256
    error = one_line(command("fold", chain / "mnist_cnn.onnx", "--out", tmp_path, "--data", data), 2)
    assert "is of kind 'onnx': expected 'checkpoint'" in error
    assert "expected one artifact of kind 'checkpoint'" in one_line(
        command("fold", "--out", tmp_path, "--data", data), 2
    )


def test_a_difference_that_is_no_number_is_not_overlooked():
    import numpy as np

    images = np.zeros((2500, 1, 2, 2), np.uint8)
    images[-1] = 1
    broken = lambda part: torch.where(part > 0, torch.nan, 0.0)  # noqa: E731
    assert not _largest_difference(broken, lambda part: part.double(), images) <= 1e-3


@pytest.mark.parametrize(
    ("statistic", "value"),
    [
        ("running_var", 0.0), ("running_var", 1e-12), ("running_var", 1e8), ("running_mean", 1e4),
        ("weight", 0.0), ("weight", -1.5), ("weight", 1e4), ("bias", -1e4),
    ],
)  # fmt: skip
def test_extreme_batch_norms_fold_exactly(statistic, value):
    """Near-zero variance, zero and negative gamma, huge scales: relative to the largest output, float32's rounding."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        getattr(norm, statistic)[1] = value
    network = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), norm, nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    pixels = torch.randint(0, 256, (8, 1, 9, 9)).double()
    folded = fold(network, mean=0.13, std=0.31)
    with torch.inference_mode():
        expected = network.double()((pixels / 255 - 0.13) / 0.31)
        received = folded.double()(pixels)
    assert torch.isfinite(received).all()
    assert (received - expected).abs().max() / expected.abs().max().clamp(min=1) < 1e-5


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_answers_do_not_depend_on_the_number_of_threads(release, data, threads):
    """Nor on how many images are asked about at once: ONNX Runtime sums each logit in one order."""
    from pipeline import load

    images = dataset.test(data).images[:2000]
    for name in ("mnist_cnn.onnx", "mnist_cnn.fp16.onnx"):
        with load(release / name, threads=threads) as model, load(release / name, threads=1) as alone:
            assert np.array_equal(model(images), alone(images))
            assert np.array_equal(model(images[:1]), alone(images)[:1])
