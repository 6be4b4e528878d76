"""Benchmarks: the served stack, the engine alone and Hugging Face, measured in one run."""
