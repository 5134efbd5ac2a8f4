"""Variables drawn by NumPy: initialisers take longer to compile than most models of the tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.models.layers import shapes_only


def drawn(module, *inputs, seed=0, **options):
  """Variables as `module.init` would shape them: scales and variances 1, weights small, else 0.

  Args:
    module: of Linen.
    *inputs: arrays or shapes that it is called with.
    seed: of the weights.
    **options: of the call, static.

  Returns:
    The variables.
  """
  init = functools.partial(module.init, **options)
  with shapes_only():
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
  draw = np.random.default_rng(seed).normal

  def fill(path, leaf):
    name = path[-1].key
    if name in ('scale', 'var'):
      return jnp.ones(leaf.shape, leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.floating) and name not in ('bias', 'mean'):
      fan = max(int(np.prod(leaf.shape[:-1])), 1)
      return jnp.asarray(draw(0, fan**-0.5, leaf.shape), leaf.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)
