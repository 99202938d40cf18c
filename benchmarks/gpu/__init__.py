"""Tokens per second, MFU and peak memory of the three stages on one accelerator, with random Qwen3 models of real sizes."""
