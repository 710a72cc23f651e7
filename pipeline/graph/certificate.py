"""How far a float16 graph's logits can move, for each image, under every execution that a stated model allows.

Every computed value is the exact operator of the values that it was given, plus an error of its own (`rounding`).
The errors travel forward as radii; then the difference of two logits is taken back through the graph, linear where no
ReLU can switch within its radius and relaxed where one can (H. Zhang et al., CROWN, 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.graph.operators import Linear, MaxPool, Operator, ReluSum
from pipeline.graph.rounding import OWN, Execution, own_error

TINY = 1e-30  # in place of a zero that would divide
REACH = 3  # ReLUs whose radii are bounded again
HOPELESS = 30  # times its lead: a bound that is not tightened
AT_ONCE = 128  # sums that are taken back through the graph together


@dataclass
class State:
    """A forward pass over n images: by tensor, values and radii `[n, ...]`; by output, an operator's own error."""

    values: dict[str, torch.Tensor]
    radii: dict[str, torch.Tensor]
    errors: dict[str, torch.Tensor]
    overflows: torch.Tensor  # bool [n]

    def rows(self, index: torch.Tensor) -> State:
        """Return the state of some images, by number."""
        values, radii, errors = (
            {name: held[index] for name, held in part.items()} for part in (self.values, self.radii, self.errors)
        )
        return State(values, radii, errors, self.overflows[index])


def forward(
    operators: list[Operator], images: np.ndarray, execution: Execution, loose: State | None = None, n: int = REACH
) -> State:
    """Evaluate a graph on uint8 images `[n, c, h, w]`, with radii.

    With `loose`, the same images' state, the radii at the first `n` ReLUs after `waist` are bounded again.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).double()
    name, finite = operators[0].inputs[0], torch.zeros(len(images), dtype=torch.bool)
    state, start = State({name: pixels}, {name: torch.zeros_like(pixels)}, {}, finite), waist(operators)
    for number, each in enumerate(operators):
        xs, es = ([held[name] for name in each.inputs] for held in (state.values, state.radii))
        if isinstance(each, Linear):
            value, spread = each.apply(each.weight, *xs) + each.constant, each.apply(each.weight.abs(), *es)
            error = own_error(each, execution, xs, es, value.abs() + spread)
            state.overflows |= error.isinf().flatten(1).any(1)
            state.errors[each.output] = error = error.nan_to_num(0.0, 0.0, 0.0)
            radius = (spread + error) * (1 + OWN)
        elif isinstance(each, ReluSum):
            if loose and number > start and n > 0:
                n -= 1
                es[0] = state.radii[each.inputs[0]] = _tightened(operators, state, loose, each, start)
            value = each.function(xs[0])
            radius = torch.maximum(each.function(xs[0] + es[0]) - value, value - each.function(xs[0] - es[0]))
        else:
            windows, wide, shape = each.windows(xs[0]), _radii(each, xs[0], es[0]), each.output_shape(xs[0])
            value = windows.amax(2).reshape(len(images), *shape)
            candidates = windows + wide >= (windows - wide).amax(2, keepdim=True)
            radius = torch.where(candidates, wide, 0).amax(2).reshape(len(images), *shape)
        state.values[each.output], state.radii[each.output] = value, radius
    return state


def waist(operators: list[Operator]) -> int:
    """The number of the operator before the last REACH ReLUs: how far back their radii are bounded again."""
    bends = [number for number, each in enumerate(operators) if not isinstance(each, Linear)]
    return bends[-REACH - 1] if len(bends) > REACH else -1


def _radii(each: MaxPool, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """The radii of each window's values; padding has none."""
    return each.windows(e).where(each.windows(x).isfinite(), torch.zeros((), dtype=e.dtype))


def _tightened(operators: list[Operator], state: State, loose: State, relu: ReluSum, start: int) -> torch.Tensor:
    """A ReLU's input's radii; those within which it can switch are bounded again."""
    name, own = relu.inputs[0], going_back(operators)
    x, e = state.values[name], state.radii[name].clone()
    flat, switches = e.flatten(1), torch.zeros_like(x, dtype=torch.bool)
    for at, _ in relu.kinks:
        switches |= (x - at).abs() < e
    for image, switch in enumerate(switches.flatten(1)):
        for some in switch.nonzero()[:, 0].split(AT_ONCE):
            seeds = torch.zeros(len(some), flat.shape[1])
            seeds[torch.arange(len(some)), some] = 1
            row = torch.tensor([image])
            far = moves(operators, state, name, seeds.reshape(-1, *x.shape[1:]), row, start, both=True)
            far += own * loose.radii[name][image].flatten()[some]
            flat[image, some] = torch.minimum(flat[image, some], far)
    return flat.reshape(x.shape)


def moves(
    operators: list[Operator],
    state: State,
    tensor: str,
    seeds: torch.Tensor,
    rows: torch.Tensor,
    start: int = -1,
    both: bool = False,
) -> torch.Tensor:
    """Bound how far each sum `seeds * tensor` can fall, float64 `[k]`; seeds float32 `[k, ...]`, of the images `rows`.

    Goes back to the operator numbered `start`, where the radii of its output and of other tensors there take over. The
    tensor's own radius is not used. `both` bounds its rise, too. `rows` has k numbers, or one for all.
    """
    gradients, far, more = {tensor: seeds}, torch.zeros(len(seeds)).double(), torch.zeros(len(seeds)).double()
    for each in reversed(operators[start + 1 :]):
        gradient = gradients.pop(each.output, None)
        if gradient is None:
            continue
        if isinstance(each, Linear):
            backs = each.transpose(gradient, [state.values[name].shape for name in each.inputs])
            low = high = state.errors[each.output][rows].float()
        else:
            x, e = (held[each.inputs[0]][rows].float() for held in (state.values, state.radii))
            if isinstance(each, ReluSum):
                back, low, high = _relaxed_relus(each, gradient, x, e, both)
            else:
                back, low, high = _relaxed_pool(each, gradient, x, e)
            backs = [back]
        if not isinstance(each, Linear) or each.terms:
            # A positive gradient lets it fall by low, a negative one by high; the sums round by less than the factor.
            far += _total(gradient.abs(), low + high) / 2 * (1 + gradient.shape[1:].numel() * 2.0**-22)
            more += _total(gradient, low - high) / 2 if low is not high else 0
        for name, back in zip(each.inputs, backs, strict=True):
            gradients[name] = gradients[name] + back if name in gradients else back
    for name, gradient in gradients.items():
        far += _total(gradient.abs(), state.radii[name][rows].float()) * (1 + gradient.shape[1:].numel() * 2.0**-22)
    return far + (more.abs() if both else more)


def going_back(operators: list[Operator]) -> float:
    """Bound how far `moves` rounds, in float32, relative to the radius of the sum that the forward pass gives.

    Every operator adds one rounding for each product of a gradient's sum, and a few; twice that, as they multiply up.
    """
    return 2 * 2.0**-24 * sum(8 + each.fan_out for each in operators)


def _total(gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The sums of products of `[k, ...]` with `[k, ...]` or `[1, ...]`."""
    gradient, weight = gradient.flatten(1), weight.flatten(1)
    return (gradient @ weight[0] if len(weight) == 1 else (gradient * weight).sum(1)).double()


def _relaxed_relus(
    each: ReluSum, gradient: torch.Tensor, x: torch.Tensor, e: torch.Tensor, both: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradient before ReLUs, by lines, and how far they can be below and above those; the gradient is not in that.

    For |d| <= e and the chord's slope s = (z + e) / 2e, relu(z + d) - relu(z) - s d is between -|z| (e - |z|) / 2e and
    (e - |z|) / 2. If only the fall is wanted, a positive gradient takes the line that is below: 0, or d itself.
    """
    back, low, high = torch.zeros_like(gradient), torch.zeros_like(x), torch.zeros_like(x)
    for at, sign in each.kinks:
        z = x - at
        room = (e - z.abs()).clamp(min=0) / 2  # nothing where it can't switch
        below, on = room * z.abs() / e.clamp(min=TINY) * both, (z >= 0).to(z.dtype)
        chord = torch.where(room > 0, (z + e) / (2 * e).clamp(min=TINY), on)
        back += gradient * sign * (chord if both else torch.where(gradient * sign < 0, chord, on))
        low, high = (low + below, high + room) if sign > 0 else (low + room, high + below)
    return back, low, high


def _relaxed_pool(
    each: MaxPool, gradient: torch.Tensor, x: torch.Tensor, e: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradient before a pool, given to each window's largest value; another can only rise over that."""
    windows, wide = each.windows(x), _radii(each, x, e)
    largest, place = windows.max(2, keepdim=True)
    others = (windows + wide).scatter(2, place, -torch.inf).amax(2, keepdim=True)
    room = (others - largest + wide.gather(2, place)).clamp(min=0)
    flat = gradient.reshape(-1, *largest.shape[1:])
    every = torch.zeros(len(flat), *windows.shape[1:], dtype=flat.dtype)
    back = each.fold(every.scatter(2, place.expand_as(flat), flat), x.shape)
    return back, torch.zeros_like(room), room


@dataclass(frozen=True)
class Bounds:
    """For n images: whether the answer is certified, the answer, and the bound on its lead over the runner-up."""

    certified: np.ndarray
    answers: np.ndarray
    bounds: np.ndarray


def certify(operators: list[Operator], images: np.ndarray, execution: Execution) -> Bounds:
    """Certify the answers on uint8 images `[n, c, h, w]`: those that no allowed execution can change.

    In three steps, each for the leads that the one before left undecided: back to `waist`, back to the pixels, and that
    again with the last ReLUs' radii tightened.
    """
    state, output = forward(operators, images, execution), operators[-1].output
    logits, radii = state.values[output].flatten(1), state.radii[output].flatten(1)
    answers = logits.argmax(1, keepdim=True)
    leads = (logits.gather(1, answers) - logits).scatter(1, answers, torch.inf)
    bounds = loose = radii.gather(1, answers) + radii
    back = going_back(operators)
    runner_up = torch.zeros_like(leads).scatter(1, leads.argmin(1, keepdim=True), 1) > 0

    def improved(which: torch.Tensor, state: State, numbers: torch.Tensor, start: int = -1) -> torch.Tensor:
        """The bounds of the leads over `which` rivals, bool `[n, classes]`, from a state of the images `numbers`."""
        better = bounds.clone()
        for some in which[numbers].nonzero().split(AT_ONCE):
            row, rival = some.T
            image = numbers[row]
            seeds = torch.zeros(len(some), logits.shape[1])
            seeds[torch.arange(len(some)), answers[image, 0]] = 1
            seeds[torch.arange(len(some)), rival] = -1
            fall = moves(operators, state, output, seeds.reshape(-1, *state.values[output].shape[1:]), row, start)
            better[image, rival] = torch.minimum(bounds[image, rival], fall + back * loose[image, rival])
        return better

    every = torch.arange(len(images))
    bounds = improved(leads <= bounds, state, every, waist(operators))
    bounds = improved((leads <= bounds) | runner_up, state, every)
    hopeless = (bounds > HOPELESS * leads).any(1) | state.overflows
    for n in (REACH - 1, REACH):  # the last ReLU costs most, and often is not needed
        if len(left := ((leads <= bounds).any(1) & ~hopeless).nonzero()[:, 0]):
            tight = forward(operators, images[left.numpy()], execution, state.rows(left), n)
            bounds = improved((leads <= bounds) | runner_up, tight, left)
    certified = (leads > bounds).all(1) & ~state.overflows
    return Bounds(certified.numpy(), answers[:, 0].numpy(), bounds[runner_up].numpy())
