"""The door to each operation of a layer: one function that chooses between a kernel, torch's own operation and what
torch.compile fuses, by device, type, shape and what is installed. No layer asks for these itself.

    activations    swiglu, gelu           norms      layer_norm, rms_norm
    attention      attention              products   x Wᵀ + b
    cross_entropy  rows_of                rotary     split_heads
    dropout        drop

    choice         which tensors a kernel may read by address
    cpu            C++ kernels, csrc/cpu_kernels.h
    gpu            Triton kernels for the loss and for dropout
"""
