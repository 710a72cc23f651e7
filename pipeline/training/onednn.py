"""One step of SGD in oneDNN's own memory layout: the same sums as PyTorch's, in less time.

In PyTorch's channels-last layout a small network's time goes into batch normalisation and ReLU: with 10 to 30 channels
they don't fill a vector. oneDNN's blocked layout does, and PyTorch's "mkldnn" tensors keep it from layer to layer.
Two things are done here that autograd and plain tensors can't do:

1. Channels are padded to a multiple of 16, oneDNN's block, with weights that are zero and stay zero. With 12 channels
   oneDNN has no kernel of its own for some gradients, and falls back to the plain layout and a matrix product.
2. Gradients are computed layer by layer with PyTorch's own kernels; autograd has none for an mkldnn convolution in
   bfloat16.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.training.loss import Loss

BLOCK = 16  # channels in one vector of oneDNN's layout
Back = Callable[[Tensor], tuple[Tensor, list[Tensor]]]  # gradient of the output -> of the input, and of the parameters
Layer = Callable[[Tensor], tuple[Tensor, Back]]
ops = torch.ops.aten  # each with its overload named, which spares a look-up at every call
conv, conv_backward = ops.mkldnn_convolution.default, ops.convolution_backward.default
norm, norm_backward = ops.native_batch_norm.default, ops.native_batch_norm_backward.default
max_pool, max_pool_backward = ops.mkldnn_max_pool2d.default, ops.mkldnn_max_pool2d_backward.default
average_pool, average_pool_backward = ops.avg_pool2d.default, ops.avg_pool2d_backward.default


def usable(network: nn.Module, dtype: torch.dtype) -> bool:
    """Return whether `Step` supports this network in this dtype on this processor."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if type(network) is not nn.Sequential or not len(network) or type(network[0]) is not nn.Conv2d:
        return False
    used = [parameter for layer in network for parameter in layer.parameters()]
    if len(used) > len(set(used)) or not all(parameter.requires_grad for parameter in used):  # shared, or frozen
        return False
    return all(map(_supported, network, [None, *network]))


def _supported(layer: nn.Module, before: nn.Module | None) -> bool:
    kind = type(layer)
    if kind is nn.Conv2d:
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return plain and layer.bias is None and layer.groups == 1
    if kind is nn.BatchNorm2d:
        return layer.affine and layer.track_running_stats and layer.momentum is not None
    if kind is nn.ReLU:  # computed in place, and only batch normalisation can do without its output
        return type(before) is nn.BatchNorm2d
    return kind in (nn.MaxPool2d, nn.AvgPool2d) or (kind is nn.Dropout and layer.p == 0)


class Step:
    """SGD with momentum on the loss of a `usable` network, whose tensors become views of padded ones.

    Layers compute in `dtype` (float32, or bfloat16 with float32 sums); weights, running statistics and momentum are
    float32. Evaluation is left to the network itself.
    """

    def __init__(self, network: nn.Sequential, dtype: torch.dtype, momentum: float, loss: Loss) -> None:
        self._dtype, self._decay, self._loss = dtype, momentum, loss
        self._classes = next(layer.out_channels for layer in reversed(network) if isinstance(layer, nn.Conv2d))
        self._counts = [layer.num_batches_tracked for layer in network if isinstance(layer, nn.BatchNorm2d)]
        parameters = list(network.parameters())
        shapes = [_padded(parameter, inputs=index > 0) for index, parameter in enumerate(parameters)]
        self._weights = torch.zeros(sum(shape.numel() for shape in shapes))
        self._moving = torch.zeros_like(self._weights)
        self._rounded = self._weights.to(dtype)  # in float32 the weights themselves
        moving, exact, rounded = (_views(flat, shapes) for flat in (self._moving, self._weights, self._rounded))
        self.momentum = [_within(whole, like) for whole, like in zip(moving, parameters, strict=True)]  # a parameter
        for parameter, whole in zip(parameters, exact, strict=True):
            parameter.data = _within(whole, parameter).copy_(parameter.data)
        pairs = zip(exact, rounded, strict=True)
        self._layers = [_layer(layer, pairs) for layer in network if not isinstance(layer, nn.Dropout)]

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, teacher: Tensor | None, lr: float) -> tuple[Tensor, Tensor]:
        """Take a step on float32 images `[n, c, h, w]` with int64 labels `[n]` and a teacher's logits `[n, classes]`.

        Returns the mean loss, a float32 scalar, and the float32 logits `[n, classes]` from before the step.
        """
        self._rounded.copy_(self._weights)
        hidden, backs = images.to_mkldnn(self._dtype), []
        for layer in self._layers:
            hidden, back = layer(hidden)
            backs.append(back)
        dense = hidden.to_dense(torch.float32)
        logits = dense[:, : self._classes].flatten(1)
        loss, gradient = self._loss(logits, labels, teacher)
        whole = torch.zeros_like(dense)
        whole[:, : self._classes] = gradient.view_as(dense[:, : self._classes])
        gradient = whole.to_mkldnn(self._dtype)
        gradients: list[Tensor] = []
        for back in reversed(backs):
            gradient, own = back(gradient)
            gradients = own + gradients
        self._moving.mul_(self._decay).add_(torch.cat([each.flatten().float() for each in gradients]))
        self._weights.add_(self._moving, alpha=-lr)
        torch._foreach_add_(self._counts, 1)
        return loss, logits


def _padded(tensor: Tensor, inputs: bool = True) -> torch.Size:
    """Return the tensor's shape with whole blocks of output channels and, with `inputs`, of input channels."""
    axes = 2 if inputs else 1
    return torch.Size(-(-n // BLOCK) * BLOCK if axis < axes else n for axis, n in enumerate(tensor.shape))


def _views(flat: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _within(whole: Tensor, like: Tensor) -> Tensor:
    """Return the part of a padded tensor that is the tensor itself, not the padding."""
    return whole[tuple(map(slice, like.shape))]


def _layer(layer: nn.Module, parameters: Iterator[tuple[Tensor, Tensor]]) -> Layer:
    """Return a layer as a function; its padded parameters, exact and rounded, are the next of `parameters`."""
    if isinstance(layer, nn.Conv2d):
        exact, rounded = next(parameters)
        return partial(_convolution, layer, rounded, exact.storage_offset() > 0)  # the first one's input is the images
    if isinstance(layer, nn.BatchNorm2d):
        (weight, _), (bias, _) = next(parameters), next(parameters)
        statistics = []
        for name in ("running_mean", "running_var"):
            own = getattr(layer, name)
            statistics.append(own.new_zeros(_padded(own)))
            setattr(layer, name, _within(statistics[-1], own).copy_(own))
        return partial(_normalisation, layer, weight, bias, statistics)
    if isinstance(layer, nn.ReLU):
        return _relu
    return partial(_max_pool if isinstance(layer, nn.MaxPool2d) else _average_pool, layer)


def _convolution(layer: nn.Conv2d, weight: Tensor, to_input: bool, hidden: Tensor) -> tuple[Tensor, Back]:
    def back(gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
        geometry = None, layer.stride, layer.padding, layer.dilation, False, (0, 0), 1
        before, own, _ = conv_backward(gradient, hidden, weight, *geometry, [to_input, True, False])
        return before, [own]

    return conv(hidden, weight, None, layer.padding, layer.stride, layer.dilation, 1), back


def _normalisation(
    layer: nn.BatchNorm2d, weight: Tensor, bias: Tensor, statistics: list[Tensor], hidden: Tensor
) -> tuple[Tensor, Back]:
    def back(gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
        before, *own = norm_backward(gradient, hidden, weight, *statistics, *saved, True, layer.eps, [True] * 3)
        return before, own

    output, *saved = norm(hidden, weight, bias, *statistics, True, layer.momentum, layer.eps)
    return output, back


def _relu(hidden: Tensor) -> tuple[Tensor, Back]:
    output = hidden.relu_()
    return output, lambda gradient: (ops.threshold_backward.default(gradient, output, 0), [])


def _max_pool(layer: nn.MaxPool2d, hidden: Tensor) -> tuple[Tensor, Back]:
    window = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode
    with torch.enable_grad():  # otherwise it doesn't keep where the maxima were
        output = max_pool(hidden.requires_grad_(), *window).detach()
    return output, lambda gradient: (max_pool_backward(gradient, output, hidden, *window), [])


def _average_pool(layer: nn.AvgPool2d, hidden: Tensor) -> tuple[Tensor, Back]:
    sizes = layer.kernel_size, layer.stride, layer.padding
    window = *sizes, layer.ceil_mode, layer.count_include_pad, layer.divisor_override
    return average_pool(hidden, *window), lambda gradient: (average_pool_backward(gradient, hidden, *window), [])
