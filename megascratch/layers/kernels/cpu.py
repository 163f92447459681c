"""The C++ kernels of csrc/cpu_kernels.h for fp32 and fp64 tensors: one pass over memory each, on torch's threads.

Ask `supports` before each call. Without the compiled extension it says no to everything. On the meta device, for a dry
run of a CPU, the functions allocate what they return and launch nothing.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from megascratch.layers.kernels.choice import are_ordinary
from megascratch.parallel.device_kind import device_kind, note_launch
from megascratch.runtime.extensions import warn_once_that_they_are_missing

try:
    from megascratch.layers import _cpu_kernels as extension
except ImportError:
    warn_once_that_they_are_missing()
    extension = None  # type: ignore[assignment]

_KERNELS: dict[torch.dtype, Any] = {}
if extension is not None:
    _KERNELS = {torch.float32: extension.f32, torch.float64: extension.f64}


def supports_threads() -> bool:
    """Whether the kernels run on all of torch's threads, which needs an OpenMP runtime that they can call."""
    return extension is not None and extension.has_threads()


def _keys(x: Tensor) -> int:
    """What torch's dispatcher knows about a tensor: its device and layout, and whether its memory is not its value (a
    subclass, a functorch wrapper, a lazily negated or zero tensor)."""
    keys: int = torch._C._dispatch_keys(x).raw_repr()
    return keys


def _plain_keys(device: str) -> frozenset[int]:
    """The keys of a dense tensor on a device, and of one that was made in inference mode."""
    with torch.inference_mode(False):
        normal = _keys(torch.empty(0, device=device))
    with torch.inference_mode():
        return frozenset((normal, _keys(torch.empty(0, device=device))))


_PLAIN_KEYS = _plain_keys("cpu")
_IMITATED_KEYS = _plain_keys("meta")


def can_read(*tensors: Tensor) -> bool:
    """Whether the memory of each tensor is on the CPU and contains its value; in a dry run of a CPU, would be."""
    for tensor in tensors:
        if _keys(tensor) not in _PLAIN_KEYS:
            return _would_read(*tensors)
    return are_ordinary(*tensors)


def _would_read(*tensors: Tensor) -> bool:
    """`can_read` of meta tensors, in a dry run."""
    for tensor in tensors:
        if _keys(tensor) not in _IMITATED_KEYS or device_kind(tensor) != "cpu":
            return False
    return are_ordinary(*tensors)


def supports(x: Tensor, *others: Tensor) -> bool:
    """Whether to use the kernels for these tensors. Not for tensors that a kernel cannot read, not while torch.compile
    or a transform looks on, not if torch has threads that the kernels cannot use, and not if they are not compiled for
    this processor; torch's own operations are right or faster then."""
    on_cpu = x.is_cpu or (x.is_meta and device_kind(x) == "cpu")
    if not (on_cpu and x.dtype in _KERNELS and extension.is_tuned()):
        return False
    for other in others:
        if other.dtype != x.dtype:
            return False
    # Call torch.get_num_threads first: it sets the number of OpenMP threads for the calling thread.
    if torch.get_num_threads() > 1 and not supports_threads():
        return False
    return can_read(x, *others)


def _launch(kernel: str, x: Tensor, *args: float) -> None:
    """Runs the kernel for x's type; on the meta device there is nothing to compute."""
    if x.is_meta:
        note_launch(kernel)
    else:
        getattr(_KERNELS[x.dtype], kernel)(*args)


def gelu_backward(x: Tensor, grad: Tensor, by_tanh: bool) -> Tensor:
    """The gradient of GELU, or of its approximation by tanh."""
    x = x.contiguous()
    grad = grad.contiguous()
    grad_x = torch.empty_like(x)
    kernel = "gelu_tanh_backward" if by_tanh else "gelu_backward"
    _launch(kernel, x, x.data_ptr(), grad.data_ptr(), grad_x.data_ptr(), x.numel())
    return grad_x


def once_differentiable(backward: Callable) -> Callable:
    """Decorates a backward that writes through raw pointers, which autograd cannot see: a second derivative would be
    silently wrong, so it raises (torch's own `once_differentiable` allows it with respect to saved tensors)."""

    @wraps(backward)
    def first_order(ctx, *grads):
        if torch.is_grad_enabled():  # the caller set create_graph=True
            raise RuntimeError("this layer has no second derivative: leave out create_graph")
        return backward(ctx, *grads)

    return first_order


def swiglu(x: Tensor) -> Tensor:
    """[..., gate | up] -> silu(gate) * up."""
    x = x.contiguous()
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    _launch("swiglu", x, x.data_ptr(), out.data_ptr(), x.shape[:-1].numel(), width)
    return out


def swiglu_backward(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x."""
    x = x.contiguous()
    grad = grad.contiguous()
    width = grad.shape[-1]
    grad_x = torch.empty_like(x)
    _launch(
        "swiglu_backward",
        x,
        x.data_ptr(),
        grad.data_ptr(),
        grad_x.data_ptr(),
        x.shape[:-1].numel(),
        width,
    )
    return grad_x


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Returns x / rms(x) * weight over the last dim, and 1 / rms(x) [..., 1]."""
    x = x.contiguous()
    weight = weight.contiguous()
    width = x.shape[-1]
    out = torch.empty_like(x)
    scale = x.new_empty(*x.shape[:-1], 1)
    _launch(
        "rms_norm",
        x,
        x.data_ptr(),
        weight.data_ptr(),
        epsilon,
        out.data_ptr(),
        scale.data_ptr(),
        scale.numel(),
        width,
    )
    return out, scale


def rms_norm_backward(
    x: Tensor, weight: Tensor, scale: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of weight."""
    x = x.contiguous()
    weight = weight.contiguous()
    grad = grad.contiguous()
    grad_x = torch.empty_like(x)
    grad_weight = torch.empty_like(weight)
    _launch(
        "rms_norm_backward",
        x,
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
    """softmax(scale * scores) with a causal mask, in place. Scores [n, rows, columns] belong to the queries from number
    `first` on and the keys from 0 on; keys after a query get 0."""
    count, rows, columns = scores.shape
    _launch("causal_softmax", scores, scores.data_ptr(), count, rows, columns, first, scale)
    return scores


def causal_softmax_backward_(weights: Tensor, grad: Tensor, first: int, scale: float) -> Tensor:
    """Turns the gradient of the weights [n, rows, columns] into that of the scores, in place."""
    count, rows, columns = weights.shape
    _launch(
        "causal_softmax_backward",
        weights,
        weights.data_ptr(),
        grad.data_ptr(),
        count,
        rows,
        columns,
        first,
        scale,
    )
    return grad


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, back: bool) -> None:
    """Rotary position embedding: rotates the first `dims` dims of x [b, n, s, d] into `out`, with cos [b, 1, s, dims]
    and sin [b, 1, s, dims/2]; `back` rotates the other way. All four may be views with a contiguous last dim."""
    b, n, s, _ = x.shape
    cos, sin = (angle.expand(b, 1, s, -1) for angle in (cos, sin))
    _launch(
        "turn",
        x,
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
