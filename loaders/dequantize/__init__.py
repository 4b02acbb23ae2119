"""Dequantizes weights just before use: in plain torch, or by Triton's kernels, which give the same bits.

ggml/ has the blocks of GGUF files; hooks.py dequantizes a weight just before its module runs.
"""
