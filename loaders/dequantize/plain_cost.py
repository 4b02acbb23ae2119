"""What dequantizing by plain torch takes on a GPU, over all formats. Imports no torch: a plan has to know."""

BLOCK_VALUES = 1 << 24  # dequantized at once
BLOCK_BYTES = 10 * BLOCK_VALUES  # that are allocated meanwhile, besides the output: at most, for an order of inputs
MOVED_BYTES = 45  # read and written by the operations on one value: the mean, from 14 (bfloat16 in GGUF) to 76 (GPTQ)
LAUNCHES = 40  # operations on a matrix of one block: at most 41
