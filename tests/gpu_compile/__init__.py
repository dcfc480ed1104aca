"""Compiles JAX programs and their Triton kernels for NVIDIA GPUs on a machine that has none.

What comes back is machine code, and what can be read off it: that a kernel lowers, passes Triton's
verifier and fits in shared memory; its registers, its spills, and whether its products run on
tensor cores; and the memory that XLA plans for a whole program. Numbers and time it cannot tell:
for numbers, the same kernels run in interpret mode.

`python -m gpu_compile` compiles all cases and prints a table; see `__main__.py`.
"""
