"""Suites: what is compared, as data. Nothing here imports JAX or PyTorch."""
