from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models import mnist_cnn
from pipeline import onednn

pytestmark = pytest.mark.skipif(
    not onednn.usable(mnist_cnn.network(), torch.float32), reason="this processor has no oneDNN path"
)


def both(kind: torch.dtype, training: bool = True) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits and, in training, gradients and running statistics of one step, plain and through oneDNN's layout."""
    torch.manual_seed(0)
    plain = mnist_cnn.network().train(training)
    for layer in plain:
        if isinstance(layer, nn.BatchNorm2d):  # statistics as of a network that has learnt
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    fast = copy.deepcopy(plain)
    images, targets = torch.randn(40, 1, 28, 28), torch.randint(10, (40,))
    found = []
    for network, logits in ((plain, plain(images).flatten(1)), (fast, onednn.forward(fast, images, kind))):
        if training:  # a gradient through fixed statistics is what nobody asks for, and oneDNN lacks
            nn.functional.cross_entropy(logits, targets).backward()
        gradients = [parameter.grad for parameter in network.parameters() if training]
        found.append([logits.detach(), *gradients, *network.buffers()])
    return found[0], found[1]


@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_the_network_does(training):
    for expected, received in zip(*both(torch.float32, training), strict=True):
        assert received.dtype == expected.dtype
        torch.testing.assert_close(received, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not onednn.usable(mnist_cnn.network(), torch.bfloat16), reason="no bfloat16 on this processor")
def test_bfloat16_is_as_far_off_as_bfloat16_is():
    expected, received = both(torch.bfloat16)
    assert 0 < (received[0] - expected[0]).abs().max() < 0.1
    for one, other in zip(expected[1:18], received[1:18], strict=True):  # the gradients
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.95


def test_a_network_it_cannot_do_is_left_to_pytorch():
    others = [
        mnist_cnn.network(dropout=0.1),
        nn.Sequential(nn.Conv2d(1, 2, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3, padding="same", bias=False)),
        nn.Sequential(nn.BatchNorm2d(2, affine=False)),
        nn.Sequential(nn.MaxPool2d(2), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 2)),
    ]
    assert not any(onednn.usable(network, torch.float32) for network in others)
