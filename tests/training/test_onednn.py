from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipeline.training import models, onednn, trainer
from pipeline.training.loss import Loss
from pipeline.training.model import Recipe

MODEL = models.get("mnist_cnn")
Tensors = dict[str, torch.Tensor]

pytestmark = pytest.mark.skipif(
    not onednn.usable(MODEL.build(), torch.float32), reason="this processor has no oneDNN path"
)


def both(kind: torch.dtype, smoothing: float = 0.0, taught: bool = False) -> tuple[Tensors, Tensors]:
    """What two steps leave, by autograd and `torch.optim.SGD`, and by `onednn.Step`."""
    torch.manual_seed(0)
    plain = MODEL.build()
    for layer in plain:
        if isinstance(layer, nn.BatchNorm2d):  # statistics as of a network that has learnt
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    fast = copy.deepcopy(plain)
    images, targets = torch.randn(40, 1, 28, 28), torch.randint(10, (40,))
    teacher = torch.randn(40, 10) if taught else None
    recipe = Recipe(label_smoothing=smoothing, teacher_weight=0.9, temperature=3.0)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.04, momentum=0.9)
    step = onednn.Step(fast, kind, 0.9, Loss(recipe))
    for _ in range(2):
        logits = plain(images).flatten(1)
        loss = nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        if teacher is not None:
            wanted = (teacher / 3).softmax(1)
            loss = 0.1 * loss + 0.9 * 9 * nn.functional.cross_entropy(logits / 3, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        other_loss, other_logits = step(images, targets, teacher, 0.04)
    momentum = [optimizer.state[parameter]["momentum_buffer"] for parameter in plain.parameters()]
    return (
        {**trainer.state(plain, momentum), "loss": loss, "logits": logits},
        {**trainer.state(fast, step.momentum), "loss": other_loss, "logits": other_logits},
    )


@pytest.mark.parametrize(("smoothing", "taught"), [(0.0, False), (0.1, False), (0.0, True)])
def test_it_does_what_autograd_and_sgd_do(smoothing, taught):
    plain, fast = both(torch.float32, smoothing, taught)
    assert plain.keys() == fast.keys() and len(plain) == 17 + 15 + 17 + 2
    for name, expected in plain.items():
        assert fast[name].dtype == expected.dtype
        torch.testing.assert_close(
            fast[name], expected, rtol=2e-3, atol=2e-5, msg=lambda line, name=name: f"{name}: {line}"
        )


@pytest.mark.skipif(not onednn.usable(MODEL.build(), torch.bfloat16), reason="no bfloat16 on this processor")
def test_bfloat16_is_as_far_off_as_bfloat16_is():
    plain, fast = both(torch.bfloat16)
    assert 0 < (fast["logits"] - plain["logits"]).abs().max() < 0.2
    for name, expected in plain.items():
        if name.startswith("momentum."):
            assert nn.functional.cosine_similarity(expected.flatten(), fast[name].flatten(), dim=0) > 0.95, name


def test_the_padding_stays_zero():
    network = MODEL.build()
    step = onednn.Step(network, torch.float32, 0.9, Loss(Recipe()))
    for _ in range(3):
        step(torch.randn(20, 1, 28, 28), torch.randint(10, (20,)), None, 0.04)
    assert step._weights.numel() > 9596
    assert step._weights.abs().sum() == pytest.approx(sum(p.abs().sum().item() for p in network.parameters()), rel=1e-4)
    assert (step._weights != 0).sum() == sum((p != 0).sum() for p in network.parameters())


def test_a_network_it_cannot_do_is_left_to_pytorch():
    convolution = nn.Conv2d(2, 2, 3, bias=False)
    others = [
        nn.Sequential(convolution, convolution),
        MODEL.build().requires_grad_(False),
        MODEL.build(dropout=0.1),
        nn.Sequential(nn.Conv2d(1, 2, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3, padding="same", bias=False)),
        nn.Sequential(nn.Conv2d(2, 2, 3, bias=False, groups=2)),
        nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2, affine=False)),
        nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU()),
        nn.Sequential(nn.BatchNorm2d(2)),
        nn.Sequential(nn.Linear(2, 2)),
        nn.Conv2d(1, 2, 3, bias=False),
    ]
    assert not any(onednn.usable(network, torch.float32) for network in others)
