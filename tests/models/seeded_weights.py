"""Weights that any library makes alike: from each tensor's name and shape, by NumPy."""

import zlib

import numpy as np


def seeded(shapes):
  """{name: array} for {name: shape} under PyTorch's names: a network with lively activations.

  Args:
    shapes: of a state dict.

  Returns:
    float32 arrays, counts int64.
  """
  return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name, shape):
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  if name.endswith('num_batches_tracked'):
    return np.array(7)
  if name.endswith('running_var'):
    return rng.uniform(0.5, 2.0, shape).astype(np.float32)
  if len(shape) > 1:
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
  if name.endswith('weight'):
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)
  return (0.2 * rng.standard_normal(shape)).astype(np.float32)


def seeded_images(shape):
  """Normalised images of a shape (B, H, W, C), float32."""
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
