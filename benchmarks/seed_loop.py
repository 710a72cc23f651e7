"""The training loop as notebooks write it: DataLoader, torchvision transforms, dropout, float32. The slower side."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from PIL import Image
from torch import optim
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pipeline.data.imagesets import ImageSet
from pipeline.training.model import Model

DROPOUT = 0.05


class Pictures(Dataset):
    """Images as `torchvision.datasets.MNIST` gives them: a PIL image, transformed, and its label."""

    def __init__(self, images: ImageSet, transform: transforms.Compose) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        return self.transform(Image.fromarray(self.images.images[index, 0])), int(self.images.labels[index])


def loop(model: Model, images: ImageSet, workers: int) -> Iterator[int]:
    """Train for ever on grey images, a batch of 64 a step; yield each batch's size."""
    transform = transforms.Compose(
        [
            transforms.RandomRotation((-7.0, 7.0), fill=0),
            transforms.ToTensor(),
            transforms.Normalize((model.mean,), (model.std,)),
        ]
    )
    loader = DataLoader(
        Pictures(images, transform), batch_size=64, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    network = model.network(DROPOUT)
    optimizer = optim.SGD(network.parameters(), lr=0.04, momentum=0.9)
    correct = 0
    while True:
        network.train()
        for x, target in loader:
            optimizer.zero_grad()
            prediction = F.log_softmax(network(x).flatten(1), dim=-1)
            loss = F.nll_loss(prediction, target)
            loss.backward()
            optimizer.step()
            correct += prediction.argmax(dim=1).eq(target).sum().item()  # for the progress line
            loss.item()
            yield len(target)
