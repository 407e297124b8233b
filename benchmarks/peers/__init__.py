"""Exact MAML meta-gradients of the same tasks by this library, PyTorch and JAX; see `../compare_peers.py`."""
