"""The loss of a training and its gradient: cross-entropy to the labels, and to a teacher's answers if there are any."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.training.model import Recipe


class Loss:
    """Cross-entropy to the labels, `label_smoothing` of it spread; with a teacher, `teacher_weight` of it is to that.

    The teacher's part is Hinton et al.'s ("Distilling the Knowledge in a Neural Network", 2015, section 2): both
    networks' logits are divided by `temperature`, and the cross-entropy between them is multiplied by its square, so
    that gradients keep their size whatever the temperature.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._smoothing = recipe.label_smoothing
        self._share, self._temperature = recipe.teacher_weight, recipe.temperature

    def __call__(self, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return a batch's mean loss, a scalar, and its gradient `[n, classes]`.

        Takes float32 logits `[n, classes]`, int64 labels `[n]` and the teacher's float32 logits `[n, classes]`.
        """
        classes = logits.shape[1]
        wanted = torch.full_like(logits, self._smoothing / classes)
        wanted.scatter_(1, labels[:, None], 1 - self._smoothing + self._smoothing / classes)
        loss, gradient = _cross_entropy(logits, wanted)
        if teacher is None:
            return loss, gradient
        degree, share = self._temperature, self._share
        to_teacher, its_gradient = _cross_entropy(logits / degree, F.softmax(teacher / degree, 1))
        loss = (1 - share) * loss + share * degree**2 * to_teacher
        return loss, gradient.mul_(1 - share).add_(its_gradient, alpha=share * degree)


def _cross_entropy(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss to probabilities `[n, classes]`, and its gradient: softmax less those, over n."""
    log = F.log_softmax(logits, 1)
    return -(wanted * log).sum() / len(logits), log.exp().sub_(wanted).div_(len(logits))
