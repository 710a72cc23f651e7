"""A network and images in, logits out, computed in oneDNN's own memory layout: same sums, less time.

In PyTorch's channels-last layout a small network's time goes into batch normalisation and ReLU: with 10 to 30 channels
they don't fill a vector. oneDNN's blocked layout does, and PyTorch's "mkldnn" tensors keep it from layer to layer.
What autograd lacks for them in bfloat16 is the convolution, which `_Convolution` adds from PyTorch's own kernels.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def usable(network: nn.Sequential, dtype: torch.dtype) -> bool:
    """Whether `forward` can do all that this network does, in this dtype and on this processor."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return all(map(_known, network, [None, *network]))


def _known(layer: nn.Module, before: nn.Module | None) -> bool:
    kind = type(layer)
    if kind is nn.Conv2d:
        return layer.bias is None and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if kind is nn.BatchNorm2d:
        return layer.affine and layer.track_running_stats and layer.momentum is not None
    if kind is nn.ReLU:  # computed in place, and only batch normalisation can do without what it gave
        return type(before) is nn.BatchNorm2d
    return kind in (nn.MaxPool2d, nn.AvgPool2d) or (kind is nn.Dropout and layer.p == 0)


def forward(network: nn.Sequential, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 logits `[n, classes]` of float32 images `[n, c, h, w]`, as `network(images)` gives them.

    Layers compute in `dtype` (float32 or bfloat16, then with float32 sums); in training mode they update their running
    statistics, and autograd goes through all of it (not in evaluation mode). Needs a network that is `usable`.
    """
    hidden = images.to_mkldnn(dtype)
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            hidden = _Convolution.apply(hidden, layer.weight, layer.stride, layer.padding, layer.dilation, layer.groups)
        elif isinstance(layer, nn.BatchNorm2d):
            if layer.training:
                layer.num_batches_tracked.add_(1)
            statistics = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
            hidden = torch.batch_norm(hidden, *statistics, layer.training, layer.momentum, layer.eps, False)
        elif isinstance(layer, nn.ReLU):
            hidden = hidden.relu_()
        elif not isinstance(layer, nn.Dropout):
            hidden = layer(hidden)
    return hidden.to_dense(torch.float32).flatten(1)


class _Convolution(torch.autograd.Function):
    """Convolution of an mkldnn tensor with plain float32 weights, which are rounded to the tensor's dtype."""

    @staticmethod
    def forward(ctx, hidden, weight, stride, padding, dilation, groups):
        rounded = weight.to(hidden.dtype)
        ctx.save_for_backward(hidden, rounded)
        ctx.geometry = stride, padding, dilation, groups
        return torch.ops.aten.mkldnn_convolution(hidden, rounded, None, padding, stride, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, rounded = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        wanted = [ctx.needs_input_grad[0], True, False]  # the first layer's images need none
        before, weight, _ = torch.ops.aten.convolution_backward(
            gradient, hidden, rounded, None, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        return before, weight.float(), None, None, None, None
