"""The training loop as notebooks write it: DataLoader, torchvision transforms, dropout, float32. The slower side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch.nn.functional as F
from torch import optim
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from models import mnist_cnn

DROPOUT = 0.05


def loop(data: Path, images: int, workers: int) -> Iterator[int]:
    """Train for ever on the first so many images of MNIST in `data`, a batch of 64 a step; yields each one's size."""
    transform = transforms.Compose(
        [
            transforms.RandomRotation((-7.0, 7.0), fill=0),
            transforms.ToTensor(),
            transforms.Normalize((mnist_cnn.MEAN,), (mnist_cnn.STD,)),
        ]
    )
    train = Subset(datasets.MNIST(str(data), train=True, transform=transform), range(images))
    loader = DataLoader(train, batch_size=64, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    model = mnist_cnn.network(DROPOUT)
    optimizer = optim.SGD(model.parameters(), lr=0.04, momentum=0.9)
    correct = 0
    while True:
        model.train()
        for x, target in loader:
            optimizer.zero_grad()
            prediction = F.log_softmax(model(x).flatten(1), dim=-1)
            loss = F.nll_loss(prediction, target)
            loss.backward()
            optimizer.step()
            correct += prediction.argmax(dim=1).eq(target).sum().item()  # for the progress line
            loss.item()
            yield len(target)
