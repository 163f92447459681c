"""The kernels of csrc/cpu_kernels.h for tensors in fp32 and fp64: one pass over memory each, by torch's threads."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from megascratch.layers import _cpu_kernels

_KERNELS = {torch.float32: _cpu_kernels.f32, torch.float64: _cpu_kernels.f64}


def supports_threads() -> bool:
    """Whether the kernels run on all of torch's threads: where its OpenMP runtime is one that they can call."""
    return _cpu_kernels.has_threads()


def supports(x: Tensor, *others: Tensor) -> bool:
    """Whether the kernels are for these; where torch has threads that they do not know, or they are not compiled for
    what the processor can do, its own passes are."""
    if not (x.is_cpu and x.dtype in _KERNELS and _cpu_kernels.is_tuned()):
        return False
    # torch is asked first: that is when it tells OpenMP, thread by thread, how many threads it may take.
    return all(other.dtype == x.dtype for other in others) and (torch.get_num_threads() == 1 or supports_threads())


def gelu_backward(x: Tensor, grad: Tensor, by_tanh: bool) -> Tensor:
    """The gradient of x times the normal distribution's share below it, or of its approximation by tanh."""
    x, grad = x.contiguous(), grad.contiguous()
    grad_x, kernels = torch.empty_like(x), _KERNELS[x.dtype]
    backward = kernels.gelu_tanh_backward if by_tanh else kernels.gelu_backward
    backward(x.data_ptr(), grad.data_ptr(), grad_x.data_ptr(), x.numel())
    return grad_x


def once_differentiable(backward: Callable) -> Callable:
    """For a backward that writes by address, of which autograd sees nothing: a second derivative through it would
    silently be wrong (torch's own `once_differentiable` lets those with respect to saved tensors pass)."""

    @wraps(backward)
    def first_order(ctx, *grads):
        if torch.is_grad_enabled():  # that is create_graph=True
            raise RuntimeError("this layer has no second derivative: leave out create_graph")
        return backward(ctx, *grads)

    return first_order


def swiglu(x: Tensor) -> Tensor:
    """[..., gate | up] -> silu(gate) * up."""
    x = x.contiguous()
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    _KERNELS[x.dtype].swiglu(x.data_ptr(), out.data_ptr(), x.shape[:-1].numel(), width)
    return out


def swiglu_backward(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x."""
    x, grad = x.contiguous(), grad.contiguous()
    width, grad_x = grad.shape[-1], torch.empty_like(x)
    kernel = _KERNELS[x.dtype].swiglu_backward
    kernel(x.data_ptr(), grad.data_ptr(), grad_x.data_ptr(), x.shape[:-1].numel(), width)
    return grad_x


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) * weight over the last dim, and 1 / rms(x) [..., 1]."""
    x = x.contiguous()
    out, scale, width = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1), x.shape[-1]
    _KERNELS[x.dtype].rms_norm(
        x.data_ptr(), weight.data_ptr(), epsilon, out.data_ptr(), scale.data_ptr(), scale.numel(), width
    )
    return out, scale


def rms_norm_backward(x: Tensor, weight: Tensor, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of weight."""
    x, grad = x.contiguous(), grad.contiguous()
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    _KERNELS[x.dtype].rms_norm_backward(
        x.data_ptr(),
        weight.data_ptr(),
        scale.data_ptr(),
        grad.data_ptr(),
        grad_x.data_ptr(),
        grad_weight.data_ptr(),
        scale.numel(),
        x.shape[-1],
    )
    return grad_x, grad_weight


def causal_softmax_(scores: Tensor, first: int, scale: float) -> Tensor:
    """Scores [n, rows, columns] of queries first, first + 1 .. with keys 0, 1 .. -> softmax(scale * scores) over the
    keys so far, 0 for later ones; in place."""
    count, rows, columns = scores.shape
    _KERNELS[scores.dtype].causal_softmax(scores.data_ptr(), count, rows, columns, first, scale)
    return scores


def causal_softmax_backward_(weights: Tensor, grad: Tensor, first: int, scale: float) -> Tensor:
    """The weights' gradient [n, rows, columns] -> that of the scores; in place."""
    count, rows, columns = weights.shape
    kernel = _KERNELS[weights.dtype].causal_softmax_backward
    kernel(weights.data_ptr(), grad.data_ptr(), count, rows, columns, first, scale)
    return grad


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, back: bool) -> None:
    """Rotary positions: turns the first dims of x [b, n, s, d] into `out`; cos [b, 1, s, dims], sin [b, 1, s, dims/2].
    All four may be views whose last dim is whole."""
    b, n, s, _ = x.shape
    cos, sin = (angle.expand(b, 1, s, -1) for angle in (cos, sin))
    _KERNELS[x.dtype].turn(
        x.data_ptr(),
        *x.stride()[:3],
        out.data_ptr(),
        *out.stride()[:3],
        cos.data_ptr(),
        *cos.stride()[:3],
        sin.data_ptr(),
        *sin.stride()[:3],
        b,
        n,
        s,
        sin.shape[-1],
        back,
    )
