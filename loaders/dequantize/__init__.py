"""Dequantizes weights just before use."""
