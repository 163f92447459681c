"""Tensors that are not what their address says, through every operation that has a kernel: `python -m
tests.support.special_tensors`. Each kind has a process of its own, because a kernel that read them could end it.

The result must be that of ordinary tensors, and a kernel that is asked raises. Prints the exit code of each kind.
"""

import os
import tempfile
import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.testing._internal.two_tensor import TwoTensor

from megascratch.config.layers import RopeSpec
from megascratch.layers.kernels import cpu
from megascratch.layers.kernels.activations import gelu, swiglu
from megascratch.layers.kernels.attention import SHORT, Scores, attend
from megascratch.layers.kernels.norms import layer_norm, rms_norm
from megascratch.layers.kernels.products import product
from megascratch.layers.kernels.rotary import split_heads
from megascratch.layers.rotary import rotary_angles
from megascratch.layers.visible import Visible

S, B, HEADS, WIDTH = SHORT.start, 2, 3, 8
H = HEADS * WIDTH
DTYPE = torch.float64
ANGLES = rotary_angles(torch.arange(S).expand(B, S), RopeSpec(WIDTH, 100.0), DTYPE)


def heads_of(x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    qkv = x.unflatten(-1, (HEADS, WIDTH))
    return torch.cat(split_heads(qkv, (1, 1, 1), angles), 1)


def attended(x: Tensor) -> Tensor:
    q = x.unflatten(-1, (HEADS, WIDTH)).permute(1, 2, 0, 3)
    places = torch.arange(S)
    visible = Visible(places, places, None, in_order=True)
    return attend(q, q * 2, q + 1, visible, Scores(q.shape[3] ** -0.5))


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rms_norm": lambda x, weight: rms_norm(x, weight, 1e-5),
    "layer_norm": lambda x, weight: layer_norm(x, weight, None, 1e-5),
    "swiglu": lambda x, weight: swiglu(x),
    "gelu": lambda x, weight: gelu(x),
    "gelu by tanh": lambda x, weight: gelu(x, by_tanh=True),
    "heads": lambda x, weight: heads_of(x, None),
    "rotary": lambda x, weight: heads_of(x, ANGLES),
    "attention": lambda x, weight: attended(x),
    "product": lambda x, weight: product(x, weight.unsqueeze(0), None),
}
Operation = Callable[[Tensor, Tensor], Tensor]


def inputs(number: int = 0) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(number)
    x = torch.randn(S, B, H, generator=stream, dtype=DTYPE)
    return x, torch.randn(H, generator=stream, dtype=DTYPE)


def with_gradient(operation: Operation, x: Tensor, weight: Tensor) -> list[Tensor]:
    """The result and the gradient of x, of the sum of squares."""
    x = x.detach().requires_grad_()
    y = operation(x, weight)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    return [y.detach(), grad]


def ordinary(operation: Operation) -> list[Tensor]:
    return with_gradient(operation, *inputs())


def subclass(operation: Operation) -> list[Tensor]:
    """Of two tensors of which each must be right; it has no memory of its own."""
    x, weight = inputs()
    found = []
    for tensor in with_gradient(operation, TwoTensor(x, x), TwoTensor(weight, weight)):
        assert isinstance(tensor, TwoTensor) and torch.equal(tensor.a, tensor.b)
        found.append(tensor.a)
    return found


def distributed(operation: Operation) -> list[Tensor]:
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
        mesh = init_device_mesh("cpu", (1,))
        x, weight = (DTensor.from_local(tensor, mesh, [Replicate()]) for tensor in inputs())
        angles = [DTensor.from_local(angle, mesh, [Replicate()]) for angle in ANGLES]
        try:
            if operation is OPERATIONS["rotary"]:
                found = with_gradient(lambda x, _: heads_of(x, tuple(angles)), x, weight)
            else:
                found = with_gradient(operation, x, weight)
        finally:
            dist.destroy_process_group()
    assert all(isinstance(tensor, DTensor) for tensor in found)
    return [tensor.to_local() for tensor in found]


def negated(operation: Operation) -> list[Tensor]:
    """Its memory has the other sign. Its gradients are ordinary, so that kernels may be asked for them."""
    x, weight = inputs()
    y, grad = with_gradient(operation, torch._neg_view(-x), torch._neg_view(-weight))
    return [y.resolve_neg(), grad.resolve_neg()]


def functional_gradient(operation: Operation) -> list[Tensor]:
    x, weight = inputs()

    def loss(x: Tensor) -> tuple[Tensor, Tensor]:
        y = operation(x, weight)
        return y.square().sum(), y

    grad, y = torch.func.grad(loss, has_aux=True)(x)
    return [y, grad]


def forward_mode(operation: Operation) -> list[Tensor]:
    """The change along x itself, by the gradient's definition: dot(2 y, dy) = dot(gradient, x)."""
    x, weight = inputs()
    y, along = torch.func.jvp(lambda x: operation(x, weight), (x,), (x,))
    expected = (ORDINARY[operation][1] * x).sum()
    assert torch.allclose((2 * y * along).sum(), expected), "the derivative along x"
    return [y, ORDINARY[operation][1]]


def mapped(operation: Operation) -> list[Tensor]:
    x, weight = inputs()
    both = torch.stack((torch.zeros_like(x), x))
    return [torch.func.vmap(lambda x: operation(x, weight))(both)[1], ORDINARY[operation][1]]


def gradient_in_a_batch(operation: Operation) -> list[Tensor]:
    """The forward takes the kernel; its backward gets a gradient of vmap."""
    x, weight = inputs()
    x.requires_grad_()
    y = operation(x, weight)
    forbid_kernels()
    grads = torch.stack((torch.zeros_like(y), 2 * y)).detach()
    try:
        (found,) = torch.autograd.grad(y, x, grads, is_grads_batched=True)
    except RuntimeError as error:  # operations in place have no rule for vmap
        assert "vmap" in str(error) or "Batching rule" in str(error), error
        return ORDINARY[operation]
    return [y.detach(), found[1]]


def fake(operation: Operation) -> list[Tensor]:
    """Without content: the shapes are compared."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x, weight = (mode.from_tensor(tensor) for tensor in inputs())
        found = with_gradient(operation, x, weight)
    return [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in found]


def real_under_a_fake_mode(operation: Operation) -> list[Tensor]:
    """Real weights, as of a model that was built before: what is allocated beside them is fake."""
    x, weight = inputs()
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = operation(x, weight)
    return [torch.empty(y.shape, dtype=y.dtype), ORDINARY[operation][1]]


def meta(operation: Operation) -> list[Tensor]:
    x, weight = (tensor.to("meta") for tensor in inputs())
    angles = tuple(angle.to("meta") for angle in ANGLES)
    if operation is OPERATIONS["rotary"]:
        found = with_gradient(lambda x, _: heads_of(x, angles), x, weight)
    else:
        found = with_gradient(operation, x, weight)
    return [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in found]


KINDS = {
    kind.__name__: kind
    for kind in (
        subclass,
        distributed,
        negated,
        functional_gradient,
        forward_mode,
        mapped,
        gradient_in_a_batch,
        fake,
        real_under_a_fake_mode,
        meta,
    )
}
# torch itself has no rule for them
NOT_IN_TORCH = {("distributed", "attention"), ("forward_mode", "attention")}
WITH_KERNELS = {"negated", "gradient_in_a_batch"}  # for what of it is ordinary
WITHOUT_CONTENT = {"fake", "real_under_a_fake_mode", "meta"}
ORDINARY: dict[Operation, list[Tensor]] = {}


class NoKernels:
    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"the kernel {name} was called")


KERNELS = dict(cpu._KERNELS)


def forbid_kernels() -> None:
    cpu._KERNELS.update(dict.fromkeys(KERNELS, NoKernels()))


def check(kind: str) -> None:
    """Raises: AssertionError if an operation differs."""
    assert cpu.supports(*inputs()), "no kernel is asked here"
    for name, operation in OPERATIONS.items():
        cpu._KERNELS.update(KERNELS)
        ORDINARY[operation] = ordinary(operation)
        if kind not in WITH_KERNELS:
            forbid_kernels()
        try:
            found = KINDS[kind](operation)
        except NotImplementedError:
            if (kind, name) not in NOT_IN_TORCH:
                raise
            continue
        for mine, expected in zip(found, ORDINARY[operation], strict=True):
            assert mine.shape == expected.shape, (name, mine.shape, expected.shape)
            if kind not in WITHOUT_CONTENT:
                assert torch.allclose(mine, expected, rtol=1e-12, atol=1e-12), name


def main() -> None:
    """One process after the other, each a copy of this one, which has loaded torch and computed nothing yet."""
    torch.set_num_threads(1)
    for kind in KINDS:
        child = os.fork()
        if child == 0:
            try:
                check(kind)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(kind, os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
