"""Passes on ONNX graphs, over many architectures: the same function after each, nothing left that should be gone."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import CheckFailed
from pipeline.graph import calibration, edit, float16, load, operators, passes, plain, quantization, run
from pipeline.records.forms import ModelCard
from pipeline.runtimes import onnxruntime
from pipeline.stages import export, half
from pipeline.tensorrt import bindings, builder, precision

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def card(shape: tuple[int, ...], classes: int = 10) -> ModelCard:
    names, channels = [f"c{number}" for number in range(classes)], shape[0]
    return ModelCard(name="net", title="", version="1", licence="", data="", input=list(shape), input_meaning="",
                           classes=names, mean=MEAN[:channels], std=STD[:channels], gate=0.0)  # fmt: skip


def settled(network: nn.Module) -> nn.Module:
    """With statistics as of a trained network, in evaluation mode."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.2)
    return network.eval()


def exported(network: nn.Module, shape: tuple[int, ...], classes: int = 10) -> onnx.ModelProto:
    with torch.inference_mode():
        network.eval()(torch.zeros(2, *shape))  # gives lazy layers their size
    return passes.strip(export.export(network, card(shape, classes), 18, "net"))


def pixels(shape: tuple[int, ...], n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)


def by_pytorch(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """The network's own answers in float64."""
    channels = images.shape[1]
    mean, std = (torch.tensor(each[:channels], dtype=torch.float64).view(-1, 1, 1) for each in (MEAN, STD))
    normalised = (torch.from_numpy(images).double() / 255 - mean) / std
    with torch.inference_mode():
        return copy.deepcopy(network).double()(normalised).flatten(1).numpy()


def sequential(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))


NETWORKS = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (3, 64, 64), 20, 0),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), (3, 64, 64), 34, 0),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), (3, 64, 64), 56, 0),
    "batch norm first": (lambda: sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2)), (3, 32, 32), 1, 1),
    "batch norm behind ReLU": (lambda: sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)), (3, 32, 32), 1, 1),
    "grouped, padded": (lambda: sequential(nn.Conv2d(3, 6, 3, groups=3, padding=1, bias=False), nn.BatchNorm2d(6), nn.SiLU()), (3, 32, 32), 1, 0),
    "dilated, strided": (lambda: sequential(nn.Conv2d(1, 6, 3, 2, dilation=2), nn.Hardswish(), nn.ReLU6(), nn.Sigmoid()), (1, 40, 40), 0, 0),
    "no convolution": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)), (3, 8, 8), 1, 0),
}  # fmt: skip


LONG = ("mobilenet_v3_small", "shufflenet")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.exhaustive] * (name in LONG)) for name in NETWORKS],
)
def network(request):
    make, shape, norms, left = NETWORKS[request.param]
    made = settled(make())
    return made, exported(made, shape), shape, norms, left


def test_every_network_is_the_same_after_every_pass(network):
    made, model, shape, norms, left = network
    images = pixels(shape)
    expected = by_pytorch(made, images)
    assert passes.batch_norms(model) == norms
    assert run.difference(expected, run.outputs(model, images, "exported")) < 1e-5
    folded, kept = passes.fold(copy.deepcopy(model))
    assert kept == left and not [name for name in load.operators(folded) if name.startswith(("BatchNorm", "Sequence"))]
    assert not load.operators(folded).keys() & {"Shape", "ReduceMean"}
    assert run.difference(expected, run.outputs(folded, images, "folded")) < 1e-5
    half = float16.half(folded)
    load.parse(half.SerializeToString(), "half")
    assert float16.float32_nodes(half) == []
    for rounded in (half, float16.rounded_sums(half)):
        assert run.difference(expected, run.outputs(float16.rounded_twin(rounded), images, "twin")) < 2e-2


def test_tensorrt_takes_every_network_in_half(network):
    tensorrt = bindings.load("tensorrt-rtx")
    log = bindings.logger(tensorrt)
    half = float16.half(passes.fold(copy.deepcopy(network[1]))[0])
    _, layers = builder._parsed(half.SerializeToString(), "half", tensorrt.Builder(log), tensorrt, log)
    precision.assert_parsed("half", layers, "HALF")


@pytest.mark.parametrize(("padding", "begins"), [(1, ["Cast", "Sub", "Conv"]), (0, ["Cast", "Conv"])])
def test_only_a_padded_first_convolution_leaves_one_sub_of_raw_pixels(padding, begins):
    model, _ = passes.fold(exported(sequential(nn.Conv2d(3, 4, 3, padding=padding)), (3, 16, 16)))
    assert [node.op_type for node in model.graph.node][: len(begins)] == begins
    if padding:
        assert np.allclose(edit.weights(model)[passes.SHIFT].ravel(), 255 * np.array(MEAN), rtol=1e-6)


class Head(nn.Module):
    """A convolution of 6 channels, `end`, which makes `[n, 6]` of its output, and a linear layer."""

    def __init__(self, end) -> None:
        super().__init__()
        self.conv, self.linear, self.end = nn.Conv2d(3, 6, 3), nn.Linear(6, 10), end

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.end(self.conv(images).relu()))


@pytest.mark.parametrize(
    "end",
    [
        lambda x: nn.functional.adaptive_avg_pool2d(x, 1).flatten(1),
        lambda x: nn.functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1),
        lambda x: nn.functional.adaptive_avg_pool2d(x, 1).reshape(-1, 6),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((-1, -2), keepdim=True).squeeze((2, 3)),
    ],
    ids=["flatten", "view", "reshape", "mean", "mean of both edges"],
)
def test_a_global_average_is_one_and_needs_no_shape_however_it_is_written(end):
    network = settled(Head(end))
    model, images = exported(network, (3, 16, 16)), pixels((3, 16, 16))
    folded, _ = passes.fold(copy.deepcopy(model))
    counts = load.operators(folded)
    assert counts.pop("GlobalAveragePool") == 1 and not counts.keys() & {"Shape", "ReduceMean", "Concat"}, counts
    for some in (images, images[:1]):
        assert run.difference(by_pytorch(network, some), run.outputs(folded, some, "net")) < 1e-5
    assert operators.unknown(float16.half(folded)) == []


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2, 3)])
def test_a_mean_over_anything_else_stays_one(axes):
    network = settled(Head(lambda x: x.mean(axes, keepdim=True).expand_as(x).amax((2, 3))))
    model, images = exported(network, (3, 16, 16)), pixels((3, 16, 16))
    folded, _ = passes.fold(copy.deepcopy(model))
    assert load.operators(folded)["ReduceMean"] == 1
    assert run.difference(by_pytorch(network, images), run.outputs(folded, images, "net")) < 1e-5


def test_a_mean_of_integers_stays_one():
    """GlobalAveragePool is of floating-point numbers."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (uint8[batch,3,4,4] images) => (float[batch,3] logits) <int64[2] axes = {2, 3}> {
            whole = Cast<to = 6>(images)
            mean = ReduceMean<keepdims = 0>(whole, axes)
            logits = Cast<to = 1>(mean)
        }""")
    before = run.outputs(model, pixels((3, 4, 4)), "net")
    same = plain.pool_globally(copy.deepcopy(model))
    assert load.operators(same)["ReduceMean"] == 1 and (run.outputs(same, pixels((3, 4, 4)), "net") == before).all()


def test_a_shape_that_no_batch_fits_is_one_line():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (uint8[batch,3,4,4] images) => (uint8[batch,n] logits) <int64[1] seven = {7}> {
            size = Shape<end = 1>(images)
            shape = Concat<axis = 0>(size, seven)
            logits = Reshape(images, shape)
        }""")
    with pytest.raises(CheckFailed, match="ONNX Runtime can't run it"):
        plain.fix_shapes(model)


def test_a_channel_that_is_multiplied_by_zero_before_padding_stays_so():
    """No raw pixel gives what padding has to stand for there."""
    network = settled(sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)))
    nn.init.zeros_(network[0].weight[:1])
    model, images = exported(network, (3, 16, 16)), pixels((3, 16, 16))
    assert run.difference(by_pytorch(network, images), run.outputs(passes.fold(model)[0], images, "net")) < 1e-5


@st.composite
def networks(draw) -> tuple[nn.Sequential, tuple[int, int, int]]:
    """A random chain of convolutions, norms in any place, activations and pools, and its input's shape."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    channels, layers = draw(st.sampled_from([1, 3])), []
    inputs = channels
    for _ in range(draw(st.integers(1, 3))):
        outputs, padding = draw(st.integers(1, 6)), draw(st.sampled_from([0, 1]))
        bias, affine = draw(st.booleans()), draw(st.booleans())
        norm = nn.BatchNorm2d(outputs, eps=draw(st.sampled_from([1e-5, 1e-2])), affine=affine)
        conv = nn.Conv2d(inputs, outputs, 3, draw(st.sampled_from([1, 2])), padding, bias=bias)
        rest = draw(st.permutations([norm, nn.ReLU(), nn.Identity()]))
        layers += [nn.BatchNorm2d(inputs)] * draw(st.booleans()) + [conv, *rest]
        inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * inputs, 10)]
    return settled(nn.Sequential(*layers)), (channels, 28, 28)


@pytest.mark.exhaustive
@settings(max_examples=8, deadline=None)
@given(networks())
def test_random_networks_fold_to_the_same_function(drawn):
    network, shape = drawn
    model, _ = passes.fold(exported(network, shape))
    assert passes.batch_norms(model) == 0
    assert run.difference(by_pytorch(network, pixels(shape)), run.outputs(model, pixels(shape), "net")) < 1e-4


@pytest.mark.parametrize(
    ("statistic", "value"),
    [
        ("running_var", 0.0), ("running_var", 1e-12), ("running_var", 1e8), ("running_mean", 1e4),
        ("weight", 0.0), ("weight", -1.5), ("weight", 1e4), ("bias", -1e4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("between", [nn.Identity, nn.ReLU], ids=["folded", "left as Mul and Add"])
def test_extreme_batch_norms_fold_exactly(statistic, value, between):
    """Near-zero variance, zero and negative gamma, huge scales: relative to the largest logit, float32's rounding."""
    norm = nn.BatchNorm2d(3)
    network = settled(nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), between(), norm, nn.ReLU(), nn.Conv2d(3, 2, 9)))
    with torch.no_grad():
        getattr(norm, statistic)[1] = value
    model, images = exported(network, (1, 11, 11), 2), pixels((1, 11, 11))
    received = run.outputs(passes.fold(model)[0], images, "net")
    assert np.isfinite(received).all() and run.difference(by_pytorch(network, images), received) < 1e-5


def graph(nodes: str, imports: str = "", functions: str = "", **weights: object) -> onnx.ModelProto:
    """A model from uint8 images [batch, 1, 4, 4], cast to float32 `x`, through these nodes to float32 logits [batch, 16]."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18{imports}]> g (uint8[batch, 1, 4, 4] images) => (float[batch, 16] logits)'
        f" {{ x = Cast <to = 1> (images) {nodes} }} {functions}"
    )
    edit.store(model, {name: np.asarray(value) for name, value in weights.items()})
    return model


PLAIN = "logits = Flatten (x)"


def external() -> onnx.ModelProto:
    model = graph(PLAIN, w=np.zeros(4, np.float32))
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    return model


def sparse() -> onnx.ModelProto:
    model = graph("s = Identity (x) logits = Flatten (s)")
    values, places = (onnx.numpy_helper.from_array(np.array([1], kind), "v") for kind in (np.float32, np.int64))
    constant = onnx.helper.make_node(
        "Constant", [], ["c"], sparse_value=onnx.helper.make_sparse_tensor(values, places, [4])
    )
    model.graph.node.insert(0, constant)
    return model


TRAINED = "y, m, v = BatchNormalization <training_mode = 1> (x, one, zero, zero, one) logits = Flatten (y)"
CHOICE = "b () => (float[batch, 1, 4, 4] y) { y = Identity (x) }"
FUNCTION = '<domain: "local", opset_import: ["" : 18]> F (a) => (b) { b = Identity (a) }'


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            graph(f"z = If (c) <then_branch = {CHOICE}, else_branch = {CHOICE}> logits = Flatten (z)", c=True),
            "control flow: If",
        ),
        (sparse(), "sparse tensors: Constant"),
        (graph(TRAINED, one=np.ones(1, np.float32), zero=np.zeros(1, np.float32)), "in training mode: BatchNorm"),
        (graph("y = Dropout (x, r, on) logits = Flatten (y)", r=np.float32(0.5), on=True), "training mode: Dropout"),
        (graph(TRAINED.replace("<training_mode = 1>", "")), "in training mode: BatchNorm"),  # as before opset 14
        (external(), "weights outside the file: w .onnx.save.* takes them in"),
        (graph(PLAIN, functions=FUNCTION), "model-local functions: F"),
        (
            graph("y = com.microsoft.Gelu (x) logits = Flatten (y)", ', "com.microsoft" : 1'),
            "custom operators: com.microsoft::Gelu",
        ),
        (graph("y = Bernoulli (x) logits = Flatten (y)"), "random operators: Bernoulli"),
        (
            graph("y = Expand (x, s) z = ReduceMax (y, a) logits = Flatten (z)", s=[1, 2**28, 4, 4], a=[1]),
            "elements an image",
        ),
        (graph("logits = Conv (x)"), "is not a valid ONNX graph"),
        (b"no ONNX", "is not an ONNX file"),
        (b"\x00" * 40, "is not an ONNX file"),
        (b"", "is not a valid ONNX graph"),
    ],
)
def test_what_is_no_plain_graph_is_refused_by_name(model, expected):
    content = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(CheckFailed, match=rf"^net\.onnx: .*{expected}"):
        load.parse(content, "net.onnx")


def test_grey_that_is_repeated_behind_the_normalisation_stays_the_same():
    ones = np.ones((1, 3, 1, 1), np.float32)
    model = graph(
        "n = Mul (x, a) c = Conv (n, w) logits = Flatten (c)", a=ones * 0.5, w=np.ones((1, 3, 1, 1), np.float32)
    )
    images = pixels((1, 4, 4))
    expected = run.outputs(model, images, "net")
    assert run.difference(expected, run.outputs(passes.fold(model)[0], images, "net")) < 1e-6


def test_a_bias_that_is_left_out_by_an_empty_name_is_none():
    two = np.full(1, 2, np.float32)
    text = "n = Mul (x, w) c = Conv (n, k) m = BatchNormalization (c, w, w, w, w) logits = Flatten (m)"
    model = graph(text, w=two, k=two.reshape(1, 1, 1, 1))
    model.graph.node[2].input.append("")
    images = pixels((1, 4, 4))
    expected = run.outputs(model, images, "net")
    assert run.difference(expected, run.outputs(passes.fold(model)[0], images, "net")) < 1e-6


def test_generated_names_give_way_to_the_graphs_own():
    kernel, one = np.full((1, 1, 1, 1), 2, np.float32), np.ones(1, np.float32)
    text = (
        "n = Mul (x, k_pixels) c = Conv (n, k) r = Relu (c) m = BatchNormalization (r, one, one, one, one)"
        " m_s = Conv (m, m_q) y = Sum (m_s, k_pixels, c_bias, m_scale, m_shift, zero) logits = Flatten (y)"
    )
    own = {"k_pixels": one / 100, "c_bias": one * 3, "m_scale": one * 5, "m_shift": one * 7, "zero": one * 9}
    model, images = graph(text, k=kernel, m_q=kernel, one=one, **own), pixels((1, 4, 4))
    expected = run.outputs(model, images, "net")
    folded = passes.fold(model)[0]
    assert run.difference(expected, run.outputs(folded, images, "net")) < 1e-6
    quantised = quantization.quantize(folded, {"x": 255.0, "m": 8.0})
    assert run.difference(expected, run.outputs(quantised, images, "net")) < 2e-2


def test_a_batch_norm_whose_scale_is_computed_is_refused_by_name():
    one = np.ones(1, np.float32)
    text = "s = ReduceMax (x, a) g = Reshape (s, r) y = BatchNormalization (x, g, zero, zero, one) logits = Flatten (y)"
    model = graph(text, a=[0, 1, 2, 3], r=[1], one=one, zero=0 * one)
    with pytest.raises(CheckFailed, match="BatchNormalization's g is computed"):
        passes.fold(model)


def test_a_plain_graph_is_taken():
    assert load.parse(graph(PLAIN).SerializeToString(), "net.onnx") == graph(PLAIN)


def test_the_twin_rounds_after_every_operator_and_overflows_where_float16_does():
    values = np.array([1.0, 1 + 2**-11, 3.0, 60000.0], np.float32)
    half = float16.half(graph("f = Flatten (x) logits = Mul (f, w)", w=np.tile(values, 4)))
    images = np.full((1, 1, 4, 4), 2, np.uint8)
    with np.errstate(over="ignore"):
        expected = (values.astype(np.float16) * np.float16(2)).astype(np.float32)
    received = run.outputs(float16.rounded_twin(half), images, "twin")[0, :4]
    assert np.array_equal(received, expected) and np.isinf(expected[3])


def test_the_twin_agrees_with_pytorch_in_half_precision():
    """An independent implementation: PyTorch's CPU kernels also round after every operator, summing in float32."""
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 10, 3), nn.AvgPool2d(11))
    model, _ = passes.fold(exported(network, (1, 28, 28)))
    half, images = float16.half(model), pixels((1, 28, 28), 16)
    weights = [torch.from_numpy(edit.weights(half)[name].copy()) for node in half.graph.node if node.op_type == "Conv"
               for name in node.input[1:]]  # fmt: skip
    x = torch.nn.functional.conv2d(torch.from_numpy(images).half(), *weights[:2]).relu()
    x = torch.nn.functional.conv2d(torch.nn.functional.max_pool2d(x, 2), *weights[2:])
    expected = torch.nn.functional.avg_pool2d(x, 11).flatten(1).float().numpy()
    assert run.difference(expected, run.outputs(float16.rounded_twin(half), images, "twin")) < 2e-3


def test_what_is_not_float16_is_named_and_scales_are_no_weights(tmp_path):
    model = passes.strip(graph("d = Cast <to = 11> (x) e = Relu (d) f = Cast <to = 1> (e) logits = Flatten (f)"))
    assert float16.float32_nodes(model) == ["relu_2", "flatten_4"]
    text = "y = Resize (x, , scales) v = Cast <saturate = 1, to = 10> (w) logits = Conv (y, v)"
    model = graph(text, scales=np.ones(4, np.float32), w=np.ones((1, 1, 1, 1), np.float16))
    onnx.save(model, tmp_path / "net.onnx")
    assert onnxruntime._arithmetic(model.graph, None) == "float16"
    assert onnxruntime._arithmetic(model.graph, tmp_path / "net.onnx") == "float16"


def test_sums_in_blocks_are_rounded_in_between():
    """A sum whose second half is lost in float16 once the first half is rounded: 2048 + 1 - 2048."""
    weights = np.zeros((1, 192, 1, 1), np.float32)
    weights[0, [0, 64, 128], 0, 0] = 2048, 1, -2048
    half = float16.half(graph("e = Expand (x, s) y = Conv (e, w) logits = Flatten (y)", s=[1, 192, 4, 4], w=weights))
    ones = np.ones((1, 1, 4, 4), np.uint8)
    assert (run.outputs(float16.rounded_twin(half), ones, "once") == 1).all()
    split = float16.rounded_twin(float16.rounded_sums(half))
    assert (run.outputs(split, ones, "blocks") == 0).all() and "Split" in load.operators(split)


def test_bounds_and_edges_beyond_float16_are_neither_weights_nor_activations():
    text = "p = Pad (x, s, edge) m = MaxPool <kernel_shape = [3, 3]> (p) c = Clip (m, low, top) logits = Flatten (c)"
    edge, low, top = (np.float32(each) for each in (-np.inf, -3.4e38, 3.4e38))
    model, images = graph(text, s=[0, 0, 1, 1, 0, 0, 1, 1], edge=edge, low=low, top=top), pixels((1, 4, 4))
    assert half._weights("net", model).size == 0
    assert max(each.largest for each in calibration.ranges(model, images).values()) == images.max()
    twin = float16.rounded_twin(float16.half(model))
    assert np.array_equal(run.outputs(twin, images, "twin"), run.outputs(model, images, "net"))


def test_ranges_are_those_of_the_values():
    model, _ = passes.fold(exported(sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AvgPool2d(2)), (1, 12, 12)))
    images = pixels((1, 12, 12), calibration.BATCH + 7)
    ranges = calibration.ranges(model, images)
    for operator, factor in (("Conv", 1), ("AveragePool", 4)):
        name = next(node.output[0] for node in model.graph.node if node.op_type == operator)
        watched = copy.deepcopy(model)
        watched.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        values = np.abs(run.outputs(watched, images, "net"))
        assert ranges[name].largest == pytest.approx(values.max() * factor)
        assert (ranges[name].values, ranges[name].images) == (values.size, len(images))
        assert ranges[name].to_zero == np.count_nonzero((values < calibration.TO_ZERO) & (values > 0))
