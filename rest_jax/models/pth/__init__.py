"""PyTorch's `.pth` files without PyTorch: data come out, nothing of a file is ever executed.

`read` takes both formats that `torch.save` writes, the zip archive (`archive.py`, since PyTorch
1.6) and the stream before it (`stream.py`). Either holds a pickle, which a closed interpreter goes
through (`pickles.py`), and raw storages, which the tensors look into (`tensors.py`). `names.py` has
the few names that may occur in a pickle; another one ends the reading with its name.

Source: the two formats as PyTorch's own `torch/serialization.py` writes them, and Python's
`pickletools` for what a pickle's instructions mean.
"""

from rest_jax.models.pth.reading import read
from rest_jax.models.pth.tensors import Tensor

__all__ = ['Tensor', 'read']
