"""Questions to detectors and segmenters: is this object there, are these pixels of that class.

A question is a function of canvases to one logit, so everything here that takes a classifier takes
it: `explain` shows what speaks for the answer, `attacks` (labels of 1: it is there) change it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rest_jax.errors import UserError, did_you_mean
from rest_jax.models.classifier import runs_alone
from rest_jax.models.dense import normalise
from rest_jax.models.dense_config import DenseConfig
from rest_jax.models.dense_registry import FOUR_MAPS
from rest_jax.ops.platform import jit
from rest_jax.text import plural


@dataclasses.dataclass(frozen=True)
class Question:
  """One logit about a picture, a function of its canvas; a pytree.

  The sigmoid of the logit is the score of the object that was found at the place, or the mean over
  the pixels of their probability of the class.

  Attributes:
    module: Linen module of the detector or segmenter.
    config: its description.
    variables: its variables.
    label: int32, the class that is asked for.
    where: of a detector the box, float32 (4,), corners in pixels of the canvas; of a segmenter the
      share that each pixel of the canvas has in the question, float32 (H, W), their sum 1.
    size: int32 (2,), height and width of the picture in its canvas.
    whole: int32 (2,), height and width of the picture itself.
  """

  module: nn.Module
  config: DenseConfig
  variables: Any
  label: Any
  where: Any
  size: Any
  whole: Any

  def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
    """The logit.

    Args:
      images: floats (B, H, W, 3) in [0, 1], canvases that hold the picture as the question's own
        does, at `size`; what is beyond it does not count.

    Returns:
      float32 (B, 1).

    Raises:
      UserError: another rank or channel count.
    """
    leaves = (self.variables, self.label, self.where, self.size)
    if runs_alone(self.module, leaves, images):
      return _compiled(leaves, images, self.module, self.config)
    return _answer(leaves, images, self.module, self.config)

  @property
  def default_layer(self) -> str | None:
    """The layer for CAM methods unless told: of a detector its last stage in use.

    What comes behind it works on anchors or regions, and a level of the pyramid answers for objects
    of one size. None where the model's own layers decide.
    """
    known = type(self.module.backbone).__name__ in FOUR_MAPS  # pyright: ignore
    if self.config.kind != 'detector' or not known:
      return None
    return f'backbone/stage{max(self.module.stages)}'  # pyright: ignore

  @property
  def mean(self) -> tuple[float, ...]:
    """Mean a channel, in [0, 1]."""
    return self.config.mean

  def place(self, canvas: tuple[int, int]) -> tuple[float, float, float, float]:
    """Where a map of a canvas (H, W) lies in the picture, for `explain.pictures.overlay`.

    Returns:
      (left, top, right, bottom) in pixels of the picture; beyond it where the canvas is padded.
    """
    height, width = (float(side) for side in canvas * np.asarray(self.whole) / self.size)
    return 0.0, 0.0, width, height


def _answer(leaves: Any, images: Any, module: nn.Module, config: DenseConfig) -> jax.Array:
  """One logit a canvas, (B, 1)."""
  variables, label, where, size = leaves
  images = jnp.asarray(images)
  sizes = jnp.broadcast_to(jnp.asarray(size, jnp.int32), (images.shape[0], 2))
  pixels = normalise(images, sizes, config.mean, config.std)
  if config.kind == 'detector':
    asked: Any = dict(sizes=sizes, method='presence')
    logit = module.apply(variables, pixels, jnp.asarray(where), jnp.asarray(label), **asked)
  else:
    logits = module.apply(variables, pixels, train=False)
    logit = _log_odds_of_share(jnp.asarray(logits, jnp.float32), jnp.asarray(label), where)
  return jnp.asarray(logit, jnp.float32)[:, None]


_compiled = jit(_answer, static_argnames=('module', 'config'))


def _log_odds_of_share(logits: jax.Array, label: jax.Array, share: Any) -> jax.Array:
  """The log odds of the mean probability of a class over some pixels: (B, H, W, K) -> (B,).

  In logarithms, which keep a gradient where every pixel is certain.

  Args:
    logits: (B, H, W, K).
    label: the class.
    share: (H, W), of each pixel in the mean.
  """
  own = jnp.arange(logits.shape[-1])[None, None, None] == label
  yes = jax.nn.logsumexp(jnp.where(own, logits, -jnp.inf), axis=-1)
  no = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)
  total = jnp.logaddexp(yes, no)
  weights = jnp.asarray(share, jnp.float32)[None]
  mean = lambda x: jax.nn.logsumexp(x - total, axis=(1, 2), b=weights)  # noqa: E731
  return mean(yes) - mean(no)


def class_number(label: int | str, class_names: tuple[str, ...]) -> int:
  """The number of a class that is named, or given by its number.

  Raises:
    UserError: there is none such; near names are given.
  """
  if isinstance(label, str):
    if label not in class_names:
      raise UserError(f'there is no class {label!r}; {did_you_mean(label, class_names)}')
    return class_names.index(label)
  number = int(label)
  if not 0 <= number < len(class_names):
    raise UserError(
      f'there is no class {number}: the model has {plural(len(class_names), "class")}'
    )
  return number


jax.tree_util.register_dataclass(
  Question,
  data_fields=['variables', 'label', 'where', 'size', 'whole'],
  meta_fields=['module', 'config'],
)
