"""Rounding with a calibration text: each layer's inputs say which errors matter (GPTQ)."""
