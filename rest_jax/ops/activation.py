"""The exact GELU."""

from __future__ import annotations

import math

import jax
from jaxtyping import Array, Float

from rest_jax.ops.platform import traced_once


@traced_once
def gelu(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """x * Phi(x) with the error function, as PyTorch's default and the papers' models.

  Written with erf: `jax.nn.gelu(approximate=False)` goes through erfc, whose expansion is longer
  on every backend. Values agree to the last bit or two.

  Args:
    x: any shape, floating.

  Returns:
    The same shape and dtype.

  References:
    Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv 1606.08415, section 2.
  """
  return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
