"""The fused train step: a block's training at the price of one branch, exactly (docs/train_step.md).

Every block is ``ReLU(sum of BN_i(L_i x))`` with linear ``L_i``. What a batch norm needs of ``L_i x``, its mean and its
variance over the batch, follows from the first and second moments of ``x``. So the branches need not be computed: sum
up the moments, form the one kernel that this batch's norms amount to, and run one convolution. The backward pass works
the same way and gives the gradient of every branch's weight, scale and shift.

    conditions           where the fused step is exact and not slower
    step                 the autograd functions
    reference            the same functions branch by branch, for gradients of gradients and of vmap
    products             matrix products
    loops  vector_loops  the passes over maps, plain and by vector registers (lanes)
    tile_loops           the products of bfloat16 maps by AMX tiles (tiles)
    formulas             what is per channel, with its derivation
    threads  jit         running compiled functions on several threads; compiling them
    inductor             the same step in torch's operations, for torch.compile on a GPU

Nothing here knows of modules but for ``conditions``, and Numba is imported by the first fused step alone.
"""
