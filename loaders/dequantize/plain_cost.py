"""The cost of dequantizing with plain torch on a GPU, over all formats but weights without loss, which
are packed where kernels restore them. Imports no torch, since plans use it."""

BLOCK_VALUES = 1 << 24  # dequantized at once
BLOCK_BYTES = 10 * BLOCK_VALUES  # allocated meanwhile, besides the output: the maximum, for a permuted input order
MOVED_BYTES = 45  # read and written by the operations on one value: the mean, from 14 (bfloat16 in GGUF) to 76 (GPTQ)
LAUNCHES = 40  # operations on a matrix of one block: the maximum is 41
