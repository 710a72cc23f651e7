"""The certificate held against executions: an adversary that takes every liberty, and random orders of sums.

Small graphs here are taken apart into dense matrices, so that each product can be summed in any order by hand.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pipeline.graph import certificate, edit, float16, load, operators, rounding, run
from pipeline.records import manifest

U16, U32 = 2.0**-11, 2.0**-23
Chooser = Callable[[torch.Tensor, np.ndarray], np.ndarray]  # an operator's terms and constant to its result


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def residual(seed: int = 0, gain: float = 1.5) -> onnx.ModelProto:
    """A float16 graph with nearly every operator that the certificate knows, on images [batch, 2, 6, 6]."""
    chance = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        fan = math.prod(shape[1:]) or 1
        return chance.normal(0, gain / math.sqrt(fan), shape).astype(np.float32)

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (uint8[batch, 2, 6, 6] images) => (float[batch, 4] logits) {'
        """x = Cast <to = 1> (images)
        centred = Sub (x, mean)
        scaled = Mul (centred, scale)
        a = Conv <pads = [1, 1, 1, 1]> (scaled, w1, b1)
        b = Relu (a)
        c = Conv <group = 2, pads = [2, 2, 2, 2], dilations = [2, 2]> (b, w2, b2)
        d = Add (b, c)
        e = Clip (d, zero, six)
        f = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (e)
        g1 = Conv (f, w3)
        h = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 0, 0]> (g1)
        i = Sub (g1, h)
        j = Concat <axis = 1> (g1, i)
        k = Relu (j)
        l = GlobalAveragePool (k)
        m = Flatten (l)
        n = Gemm <transB = 1> (m, w4, b4)
        logits = Identity (n) }"""
    )
    values = {"mean": np.float32(120), "scale": np.float32([[[0.015]], [[0.02]]]), "zero": np.float32(0)}
    values |= {"six": np.float32(1.5), "w1": weight(4, 2, 3, 3), "b1": weight(4), "w2": weight(4, 2, 3, 3)}
    values |= {"b2": weight(4), "w3": weight(6, 4, 1, 1), "w4": 2 * weight(4, 12), "b4": weight(4)}
    edit.store(model, values)
    return float16.half(model)


def pixels(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 2, 6, 6)).astype(np.uint8)


class Execution:
    """One execution of a graph on one image: `choose` computes each sum of products."""

    def __init__(
        self, graph: list[Any], image: np.ndarray, choose: Callable[[Any, np.ndarray, np.ndarray], Any]
    ) -> None:
        self.values = {graph[0].inputs[0]: torch.from_numpy(image[None]).double()}
        for each in graph:
            xs = [self.values[name] for name in each.inputs]
            if isinstance(each, operators.Linear) and each.terms:
                sums = each.apply(each.weight, *xs)
                seeds = torch.eye(sums.numel()).double().reshape(-1, *sums.shape[1:])
                matrix = torch.cat([back.flatten(1) for back in each.transpose(seeds, [x.shape for x in xs])], 1)
                terms = (matrix * torch.cat([x.flatten() for x in xs])).numpy()
                constant = (each.constant + torch.zeros_like(sums)).flatten().numpy()
                self.values[each.output] = torch.from_numpy(choose(each, terms, constant)).reshape(sums.shape)
            elif isinstance(each, operators.Linear):
                self.values[each.output] = each.apply(each.weight, *xs)
            elif isinstance(each, operators.ReluSum):
                self.values[each.output] = each.function(xs[0])
            else:
                self.values[each.output] = each.windows(xs[0]).amax(2).reshape(1, *each.output_shape(xs[0]))


def truncated(values: np.ndarray) -> np.ndarray:
    """To 24 significant bits, towards zero."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.trunc(np.ldexp(mantissa, 24)), exponent - 24)


def rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(np.float64)


def aligned(some: np.ndarray) -> np.ndarray:
    """The sums of rows as tensor cores make them: operands cut at the largest one's 24th bit, and then the sum."""
    _, exponent = np.frexp(np.abs(some).max(1))
    return truncated(np.ldexp(np.trunc(np.ldexp(some, 24 - exponent[:, None])), exponent[:, None] - 24).sum(1))


def random_sum(chance: np.random.Generator, terms: np.ndarray) -> np.ndarray:
    """Sums of rows in a random order and way: one after the other, by halves, or some at a time."""
    terms = terms[:, chance.permutation(terms.shape[1])]
    add = [lambda a, b: rounded(a + b), lambda a, b: truncated(a + b), lambda a, b: aligned(np.stack([a, b], 1))]
    plus, way = add[chance.integers(3)], chance.integers(3)
    if way == 0:
        total = terms[:, 0]
        for column in terms.T[1:]:
            total = plus(total, column)
    elif way == 1:
        total = terms
        while total.shape[1] > 1:
            if total.shape[1] % 2:
                total = np.concatenate([total, np.zeros((len(total), 1))], 1)
            left, right = total[:, ::2], total[:, 1::2]
            total = plus(left.ravel(), right.ravel()).reshape(left.shape)
        total = total[:, 0]
    else:
        size, total = int(chance.choice([4, 8, 16])), np.zeros(len(terms))
        for at in range(0, terms.shape[1], size):
            total = aligned(np.concatenate([total[:, None], terms[:, at : at + size]], 1))
    return total


def to_float16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float64)


def at_random(chance: np.random.Generator, allowed: rounding.Execution) -> Callable[..., np.ndarray]:
    """What an execution may do, by chance."""

    def choose(each: Any, terms: np.ndarray, constant: np.ndarray) -> np.ndarray:
        if each.averages and allowed.float16_averages:
            total = np.zeros(len(terms))
            for column in terms.T:
                total = to_float16(total + column)
            return total
        if allowed.bias_apart and chance.random() < 0.7:
            result = to_float16(to_float16(random_sum(chance, terms)) + constant)
        else:
            result = random_sum(chance, np.concatenate([terms, constant[:, None]], 1))
            result = to_float16(result) if chance.random() < 0.8 else result
        flushed = allowed.flushes and chance.random() < 0.5
        return np.where(np.abs(result) < 2.0**-14, 0, result) if flushed else result

    return choose


def adversary(signs: dict[str, np.ndarray], allowed: rounding.Execution) -> Callable[..., np.ndarray]:
    """Every rounding as far as the model lets it go, to the side that harms: of sums' operands, and of the sums."""

    def choose(each: Any, terms: np.ndarray, constant: np.ndarray) -> np.ndarray:
        sign, unit = signs[each.output], U32
        if allowed.flushes:
            constant = np.where(np.abs(constant) < 2.0**-14, 0, constant)

        def moved(values: np.ndarray, by: float) -> np.ndarray:
            return values - sign * by * np.abs(values)

        whole = allowed.float16_averages and each.averages
        apart = allowed.bias_apart
        columns = terms if apart or whole else np.concatenate([terms, constant[:, None]], 1)
        columns = np.take_along_axis(columns, np.argsort(-np.abs(columns), 1), 1)
        total = columns[:, 0]
        for column in columns.T[1:]:
            used = column != 0  # padding, and other channels' products, are no terms
            with_it = moved(total + column, U16) if whole else moved(moved(total, unit) + moved(column, unit), unit)
            total = np.where(used, with_it, total)
        if apart and constant.any():
            total = moved(total, U16) + constant
        total = moved(total, U16)
        total = np.where((terms == 0).all(1), constant, total)  # a constant, and nothing to round
        return np.where(np.abs(total) < 2.0**-14, 0, total) if allowed.flushes else total

    return choose


def harm(module: ModuleType, graph: list[Any], images: np.ndarray, allowed: rounding.Execution) -> list[float]:
    """How much of each bound the adversary takes; fails where it goes beyond, or a tensor leaves its radius."""
    state, shares = module.forward(graph, images, allowed), []
    logits = state.values[graph[-1].output].flatten(1)
    bounds = module.certify(graph, images, allowed)
    for number, image in enumerate(images):
        order = logits[number].argsort(descending=True)
        lead = torch.zeros_like(logits[0])
        lead[order[0]], lead[order[1]] = 1, -1
        signs = adjoint(module, graph, images[number : number + 1], lead)
        values = Execution(graph, image, adversary(signs, allowed)).values
        for name, radius in state.radii.items():
            assert ((values[name] - state.values[name][number : number + 1]).abs() <= radius[number]).all(), name
        fall = float((logits[number] - values[graph[-1].output].flatten()) @ lead)
        assert fall <= bounds.bounds[number], (number, fall, bounds.bounds[number])
        shares.append(fall / bounds.bounds[number])
    return shares


def adjoint(module: ModuleType, graph: list[Any], image: np.ndarray, seed: torch.Tensor) -> dict[str, np.ndarray]:
    """The sign of the lead's gradient after every sum of products, at the graph's own values."""
    state = module.forward(graph, image, rounding.EXECUTIONS["A1"])
    gradients, signs = {graph[-1].output: seed.reshape(1, *state.values[graph[-1].output].shape[1:])}, {}
    for each in reversed(graph):
        gradient = gradients.pop(each.output, None)
        if gradient is None:
            continue
        signs[each.output] = np.where(gradient.flatten().numpy() >= 0, 1, -1)
        x = state.values[each.inputs[0]]
        if isinstance(each, operators.Linear):
            backs = each.transpose(gradient, [state.values[name].shape for name in each.inputs])
        elif isinstance(each, operators.ReluSum):
            backs = [sum(gradient * sign * (x > at) for at, sign in each.kinks)]
        else:
            windows = each.windows(x)
            place = windows.argmax(2, keepdim=True)
            spread = torch.zeros_like(windows).scatter(2, place, gradient.reshape(place.shape).to(windows.dtype))
            backs = [each.fold(spread, x.shape)]
        for name, back in zip(each.inputs, backs, strict=True):
            gradients[name] = gradients[name] + back if name in gradients else back
    return signs


def wander(module: ModuleType, graph: list[Any], images: np.ndarray, allowed: rounding.Execution, n: int) -> None:
    """Random executions: no tensor may leave its radius, nor the lead over the runner-up fall below its bound."""
    state, bounds = module.forward(graph, images, allowed), module.certify(graph, images, allowed)
    logits = state.values[graph[-1].output].flatten(1)
    for trial in range(n):
        number = trial % len(images)
        values = Execution(graph, images[number], at_random(np.random.default_rng(trial), allowed)).values
        for name, radius in state.radii.items():
            assert ((values[name] - state.values[name][number : number + 1]).abs() <= radius[number]).all(), name
        first, second = logits[number].argsort(descending=True)[:2]
        after = values[graph[-1].output].flatten()
        fall = float(logits[number][first] - logits[number][second] - after[first] + after[second])
        assert fall <= bounds.bounds[number]
        assert not bounds.certified[number] or int(after.argmax()) == bounds.answers[number]


@pytest.mark.parametrize("name", rounding.EXECUTIONS)
def test_no_adversary_goes_beyond_the_bounds_and_some_come_near(name):
    graph = operators.read(residual())
    shares = harm(certificate, graph, pixels(40), rounding.EXECUTIONS[name])
    assert max(shares) > 0.4, "a bound that nothing comes near is none"


@pytest.mark.parametrize("name", rounding.EXECUTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_random_execution_goes_beyond_the_bounds(name, seed):
    wander(certificate, operators.read(residual(seed)), pixels(20, seed), rounding.EXECUTIONS[name], 60)


def test_the_shipped_files_runtimes_stay_within_the_bounds(release, digits):
    made, some = manifest.read(release / "mnist_cnn.fp16.onnx"), digits.images[:100]
    model = load.load(made)
    graph = operators.read(model)
    state, allowed = certificate.forward(graph, some, rounding.EXECUTIONS["A1"]), rounding.EXECUTIONS["A1"]
    logits, radii = (held[graph[-1].output].numpy() for held in (state.values, state.radii))
    bounds = certificate.certify(graph, some, allowed)
    first, second = np.argsort(-logits, 1)[:, :2].T
    rows = np.arange(len(some))
    for each in (model, float16.rounded_twin(model)):
        received = run.outputs(each, some, "shipped")
        assert (np.abs(received - logits) <= radii).all()
        falls = (logits[rows, first] - logits[rows, second]) - (received[rows, first] - received[rows, second])
        assert (falls <= bounds.bounds).all()
        assert (received.argmax(1) == bounds.answers)[bounds.certified].all()
    assert bounds.certified.sum() >= 99


def test_sums_that_could_overflow_certify_nothing():
    model = residual()
    weights = edit.weights(model)
    edit.store(model, {"w1": np.float16(20000) * weights["w1"]})
    bounds = certificate.certify(operators.read(model), pixels(4), rounding.EXECUTIONS["A1"])
    assert not bounds.certified.any()


COVERED = "x = Cast <to = 1> (images) d = Relu (x)"


@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        (COVERED, []),
        ("k = Constant <value = float {2.0}> () x = Cast <to = 1> (images) d = Mul (x, k)", []),
        ("x = Cast <to = 1> (images) d = HardSwish (x)", ["HardSwish"]),
        ("x = Cast <to = 1> (images) d = Clip (x, one, none)", ["Clip with min over max, or with a subnormal bound"]),
        ("x = Cast <to = 1> (images) d = Clip (x, faint, one)", ["Clip with min over max, or with a subnormal bound"]),
        ('x = Cast <to = 1> (images) d = Conv <auto_pad = "SAME_UPPER"> (x, w)', ["Conv with auto_pad or ceil_mode"]),
        ("x = Cast <to = 1> (images) y = Relu (x) d = Mul (x, y)", ["Mul of 2 computed values"]),
        ("x = Cast <to = 1> (images) p = GlobalAveragePool (x) d = Add (x, p)", ["Add that repeats a computed value"]),
        ("x = Cast <to = 1> (images) y = Cast <to = 6> (x) d = Cast <to = 1> (y)", ["Cast in other than float16"]),
        ("y = Add (images, images) d = Cast <to = 1> (y)", ["Add in other than float16"]),
        ("x = Cast <to = 1> (images) d, mask = Dropout (x) e = Relu (d)", ["Dropout with several outputs"]),
    ],
)
def test_what_is_not_covered_is_named(nodes, named):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (uint8[n, 1, 4, 4] images) => (float[n, 1, 4, 4] d) {' + nodes + "}"
    )
    constants = {
        "one": np.float32(1),
        "none": np.float32(0),
        "faint": np.float32(2e-5),
        "w": np.ones((1, 1, 3, 3), "f"),
    }
    edit.store(model, constants)
    found = operators.unknown(float16.half(model))
    assert [each for each in found if each != "nodes behind the output"] == named


def test_nodes_behind_the_output_and_moved_batches_are_named():
    model = float16.half(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (uint8[n, 1, 4, 4] images) => (float[n, 1, 4, 4] d) {'
        + COVERED + "}"
    ))  # fmt: skip
    model.graph.node.append(onnx.helper.make_node("Relu", ["x"], ["dead"]))
    assert "nodes behind the output" in operators.unknown(model)
    model = float16.half(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (uint8[n, 1, 4, 4] images) => (float[m, k] d) {'
        "x = Cast <to = 1> (images) d = Flatten <axis = 3> (x) }"
    ))  # fmt: skip
    assert any(each.startswith("Flatten") for each in operators.unknown(model))


def test_clips_without_a_bound_are_lines_too():
    model = residual()
    for node in model.graph.node:
        if node.op_type == "Clip":
            node.input[1:] = ["", node.input[2]]
    for name, allowed in rounding.EXECUTIONS.items():
        assert harm(certificate, operators.read(model), pixels(20), allowed), name
    for node in model.graph.node:
        if node.op_type == "Clip":
            node.input[:] = node.input[:1]
    assert harm(certificate, operators.read(model), pixels(20), rounding.EXECUTIONS["A1"])


def relaxations(module: ModuleType) -> None:
    """The lines that stand for ReLUs, Clips and pools: no movement within the radius gets below or above them."""
    chance = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance)

    def one(gradient: torch.Tensor) -> torch.Tensor:
        """Leave one value of each, the others' room would hide what it lacks."""
        flat, kept = gradient.flatten(1), torch.randint(gradient[0].numel(), (len(gradient), 1), generator=chance)
        return torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept)).reshape(gradient.shape)

    window = {"kernel": [3, 3], "stride": [2, 2], "dilation": [1, 1], "pads": [1, 1, 1, 1]}
    nodes = [operators.ReluSum(["x"], "y", [(0.0, 1)], torch.relu)]
    nodes += [operators.ReluSum(["x"], "y", [(0.0, 1), (0.5, -1)], lambda x: x.clamp(0, 0.5))]
    nodes += [operators.ReluSum(["x"], "y", [(operators.LOWEST, 1), (0.5, -1)], lambda x: x.clamp(max=0.5))]
    nodes += [operators.MaxPool(["x"], "y", **window)]
    for each in nodes:
        for both in (False, True):
            x, e = draw(1, 2, 6, 6), draw(1, 2, 6, 6).abs()
            if isinstance(each, operators.MaxPool):
                gradient = one(draw(60, 2, 3, 3))
                back, low, high = module._relaxed_pool(each, gradient, x, e)

                def function(x: torch.Tensor, pool: operators.MaxPool = each) -> torch.Tensor:
                    return pool.windows(x).amax(2).reshape(len(x), 2, 3, 3)
            else:
                gradient, function = one(draw(60, 2, 6, 6)), each.function
                back, low, high = module._relaxed_relus(each, gradient, x, e, both)
            for trial in range(60):
                share = 2 * torch.rand(60, 2, 6, 6, generator=chance) - 1
                d = (share.sign() if trial % 2 else share) * e
                moved = gradient * (function(x + d) - function(x)).reshape(gradient.shape)
                beside = (moved.flatten(1).sum(1) - (back * d).flatten(1).sum(1)).double()
                far = module._total(gradient.abs(), low + high) / 2
                more = module._total(gradient, low - high) / 2
                assert (beside >= -far - more - 1e-5).all(), (each, both, "falls")
                assert not both or (beside <= far - more + 1e-5).all(), (each, both, "rises")


def test_relaxations_hold_for_every_movement():
    relaxations(certificate)


def mutated(name: str, old: str, new: str) -> ModuleType:
    """A module with a piece of its source replaced, where it has it."""
    spec = importlib.util.find_spec(name)
    module, source = importlib.util.module_from_spec(spec), spec.loader.get_source(name)
    module.source, module.mutated = source, source.replace(old, new)
    exec(compile(module.mutated, "mutant", "exec"), module.__dict__)
    return module


MUTANTS = {
    "n instead of 3 n": ("PER_TERM = 3", "PER_TERM = 1"),
    "a forgotten rounding": ("error = error + ROUNDING * (size + error) + eta", "error = error + eta"),
    "a forgotten rounding before the bias": ("error = error + ROUNDING * (size + constant + error) + eta", "pass"),
    "flushing forgotten": ("eta = SMALLEST_NORMAL if execution.flushes else", "eta ="),
    "averages in float32": ("loss = ROUNDING * (each.terms + 2)", "loss = TRUNCATION"),
    "a wrong slope": ("(z + e) / (2 * e).clamp(min=TINY), on)", "on, on)"),
    "a slope that rises only": ("torch.where(gradient * sign < 0, chord, on)", "chord"),
    "half of the room": ("room = (e - z.abs()).clamp(min=0) / 2", "room = (e - z.abs()).clamp(min=0) / 4"),
    "other values of a pool left out": ("room = (others - largest +", "room = 0 * (others - largest +"),
    "inputs' errors left out": ("radius = (spread + error)", "radius = error"),
    "operators' errors left out": ("= state.errors[each.output][rows].float()", "= 0 * gradient[:1]"),
}  # fmt: skip


@pytest.mark.parametrize("old, new", MUTANTS.values(), ids=list(MUTANTS))
def test_a_mutant_of_the_certificate_is_caught(old, new):
    mutant, changed = mutated("pipeline.graph.rounding", old, new), 0
    changed += mutant.source != mutant.mutated
    bounds = mutated("pipeline.graph.certificate", old, new)
    changed += bounds.source != bounds.mutated
    assert changed == 1
    bounds.own_error, mutant = mutant.own_error, bounds
    mixed, *others = (operators.read(model) for model in (residual(), long_sums(), faint(), averages()))
    with pytest.raises(AssertionError):
        relaxations(mutant)
        for allowed in rounding.EXECUTIONS.values():
            for graph in others:
                harm(mutant, graph, pixels(4), allowed)
            harm(mutant, mixed, pixels(20), allowed)
            wander(mutant, mixed, pixels(20), allowed, 40)


def linear(nodes: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A float16 graph: images, these nodes from x to m, and a Gemm."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (uint8[batch, 2, 6, 6] images) => (float[batch, 4] logits) {'
        f"x = Cast <to = 1> (images) {nodes} logits = Gemm <transB = 1> (m, w, b) }}"
    )
    edit.store(model, weights)
    return float16.half(model)


def positive(n: int) -> np.ndarray:
    return np.abs(np.random.default_rng(0).normal(0, 0.02, (4, n))).astype(np.float32)


def long_sums() -> onnx.ModelProto:
    """Long sums, where what each addition loses adds up, and constants that take most of them away again."""
    weights = positive(72)
    return linear("m = Flatten (x)", w=weights, b=-120 * weights.sum(1))


def faint() -> onnx.ModelProto:
    """Values among float16's subnormal numbers, which the logits depend on."""
    scale = {"s": np.float32(2**-13), "t": np.float32(2**-8), "w": 1000 * positive(72), "b": np.zeros(4, np.float32)}
    return linear("y = Mul (x, s) z = Mul (y, t) m = Flatten (z)", **scale)


def averages() -> onnx.ModelProto:
    return linear("y = GlobalAveragePool (x) m = Flatten (y)", w=positive(2), b=np.zeros(4, np.float32))


@pytest.mark.parametrize("name", rounding.EXECUTIONS)
@pytest.mark.parametrize("make", [long_sums, faint, averages])
def test_no_adversary_goes_beyond_the_bounds_of_hard_sums(name, make):
    harm(certificate, operators.read(make()), pixels(10), rounding.EXECUTIONS[name])


def in_half(model: onnx.ModelProto, images: np.ndarray, device: str) -> np.ndarray:
    """A float16 graph's logits by PyTorch's own half kernels, operator by operator."""
    constants = {t.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(t))) for t in model.graph.initializer}
    values = {name: value.to(device) for name, value in constants.items()}
    values[model.graph.input[0].name] = torch.from_numpy(images).to(device)
    types = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.FLOAT16: torch.float16}
    for node in model.graph.node:
        x, *more = (values[name] for name in node.input if name)
        given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        assert not any(given.get("pads", [])), "only what the shipped file has"
        compute: dict[str, Callable[..., torch.Tensor]] = {
            "Cast": lambda x, given: x.to(types[given["to"]]),
            "Conv": lambda x, given, *more: torch.nn.functional.conv2d(x, *more, stride=given.get("strides", 1)),
            "Relu": lambda x, given: torch.relu(x),
            "MaxPool": lambda x, given: torch.nn.functional.max_pool2d(x, given["kernel_shape"], given["strides"]),
            "AveragePool": lambda x, given: torch.nn.functional.avg_pool2d(x, given["kernel_shape"], given["strides"]),
            "Reshape": lambda x, given, shape: x.reshape([len(x), *shape.tolist()[1:]]),
        }
        values[node.output[0]] = compute[node.op_type](x, given, *more)
    return values[model.graph.output[0].name].cpu().numpy()


CUDNN = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that PyTorch can use")


@pytest.mark.parametrize("device, n", [("cpu", 100), pytest.param("cuda", 10_000, marks=CUDNN, id="cudnn")])
def test_half_kernels_stay_within_the_bounds(release, digits, device, n):
    """A's bounds: PyTorch adds the bias to a result that is already float16."""
    model, allowed = load.load(manifest.read(release / "mnist_cnn.fp16.onnx")), rounding.EXECUTIONS["A"]
    graph = operators.read(model)
    for at in range(0, n, 100):
        some = digits.images[at : at + 100]
        state = certificate.forward(graph, some, allowed)
        logits, radii = (held[graph[-1].output].numpy() for held in (state.values, state.radii))
        received = in_half(model, some, device)
        assert (np.abs(received - logits) <= radii).all()
        bounds = certificate.certify(graph, some, allowed)
        assert (received.argmax(1) == bounds.answers)[bounds.certified].all()
