"""Layer-wise decay of the learning rate: the deeper from the head, the smaller the rate.

Source: the authors' code, github.com/wofmanaf/ResT (optim_factory.py, after BEiT's). Layers are
numbered from the stem, 0; each block of a stage and each patch embedding is a layer; the final
norm and the head are the last, L = d1 + d2 + d3 + d4 + 4 for depths d. A parameter of layer i gets
decay^(L - i) times the learning rate, weight decay included.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import optax
from flax import traverse_util

from rest_jax.errors import UserError


def layer_id(path: str, depths: tuple[int, ...]) -> int:
  """The number of the layer that a parameter belongs to.

  Args:
    path: such as 'stage2/block0/attn/q/kernel'.
    depths: blocks of the four stages.

  Returns:
    0 for the stem, up to `sum(depths) + 4` for the final norm, the head and whatever else.
  """
  if path.startswith('stem/'):
    return 0
  if found := re.match(r'patch_embed(\d)/', path):
    stage = int(found[1])
    return sum(depths[: stage - 1]) + stage - 1
  if found := re.match(r'stage(\d)/block(\d+)/', path):
    stage, block = int(found[1]), int(found[2])
    return sum(depths[: stage - 1]) + block + stage
  return sum(depths) + 4


def depths_of(params: Any) -> tuple[int, ...]:
  """Counts the blocks of the four stages by the names of their parameters.

  Raises:
    UserError: the model has no stages with blocks.
  """
  paths = ['/'.join(path) for path in traverse_util.flatten_dict(params)]
  blocks = {found.groups() for path in paths if (found := re.match(r'stage(\d)/(block\d+)/', path))}
  depths = tuple(sum(stage == str(i) for stage, _ in blocks) for i in range(1, 5))
  if not all(depths):
    raise UserError(
      'optim.layer_decay numbers the layers of models with four stages of blocks; this model has '
      f'{", ".join(sorted({path.split("/")[0] for path in paths}))}; set optim.layer_decay=1.0'
    )
  return depths


def layer_scales(params: Any, decay: float, depths: tuple[int, ...]) -> Any:
  """decay^(L - id) for each parameter, a tree of Python floats like `params`."""
  last = sum(depths) + 4
  flat = traverse_util.flatten_dict(params)
  scales = {path: decay ** (last - layer_id('/'.join(path), depths)) for path in flat}
  return traverse_util.unflatten_dict(scales)


def scale_by_layer(decay: float, depths: tuple[int, ...]) -> optax.GradientTransformation:
  """Multiplies updates by their layers' factors; comes after the learning rate.

  Args:
    decay: factor from a layer to the one below.
    depths: blocks of the four stages; of the whole model, also where parts of it are frozen.

  Returns:
    A transformation without state.
  """

  def scale(updates, params=None):
    del params
    return jax.tree.map(lambda u, s: u * s, updates, layer_scales(updates, decay, depths))

  return optax.stateless(scale)
