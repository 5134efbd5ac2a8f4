"""A backbone without parameters, as golden/make_dense.py has it, and small detectors on it."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rest_jax.models.dense_config import DenseConfig
from rest_jax.models.dense_model import Detector, Segmenter
from rest_jax.models.retinanet import RetinaNet

GOLDEN = np.load(Path(__file__).parent / 'golden' / 'dense.npz')
WIDTHS = (6, 6, 9, 12)


class Squares(nn.Module):
  """Map k is the mean over squares of 4, 8, 16 or 32 px, times 1, 2, ..., and its sine."""

  widths: tuple[int, ...] = WIDTHS

  def features(self, x, train: bool = False):
    """Four maps of strides 4, 8, 16, 32."""
    maps = []
    for side, width in zip((4, 8, 16, 32), self.widths, strict=True):
      b, h, w, c = x.shape
      mean = x.reshape(b, h // side, side, w // side, side, c).mean((2, 4))
      maps.append(jnp.sin(jnp.concatenate([mean * (k + 1) for k in range(width // c)], -1)))
    return tuple(maps)


def state(prefix: str) -> dict[str, np.ndarray]:
  """The weights of a golden model, under the names of its library."""
  start = f'{prefix}/state/'
  return {n.removeprefix(start): GOLDEN[n] for n in GOLDEN.files if n.startswith(start)}


def images(prefix: str) -> np.ndarray:
  """Its images, NHWC."""
  return GOLDEN[f'{prefix}/images'].transpose(0, 2, 3, 1)


class Means(nn.Module):
  """Map k is the mean colour of squares of 4, 8, 16 or 32 px, through a layer that changes nothing.

  That layer is one that methods of explanation can look at.
  """

  @nn.nowrap
  def features(self, x, train: bool = False):
    """Four maps of strides 4, 8, 16, 32."""
    b, h, w, c = x.shape
    return tuple(
      x.reshape(b, h // side, side, w // side, side, c).mean((2, 4)) for side in (4, 8, 16, 32)
    )


COLOURS = ('red', 'blue')


def _plain(kind: str, model: str, num_classes: int, side: int) -> DenseConfig:
  """One square canvas, pictures as they are: no normalisation, no other size."""
  return DenseConfig(
    *(kind, model, num_classes),
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    short=0,
    long=0,
    canvases=((side, side),),
  )


def colour_detector(side: int = 64) -> Detector:
  """Finds red and blue squares of 16 px whose corners are at multiples of 8.

  A RetinaNet of one level by hand: an anchor is such a square, and its logit of red is 40 times
  the mean over its four cells of red less the other colours, less 30: 10 of a red square, and
  likewise of blue. Images need no normalisation.
  """
  module = RetinaNet(
    Means(),
    num_classes=2,
    stages=(2,),
    extra_levels=0,
    width=3,
    convs=0,
    anchor_scale=2.0,
    octaves=1,
    ratios=(1.0,),
    momentum=0.0,
    candidates=64,
    max_detections=8,
  )
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))['params']
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  params['fpn']['lateral3']['kernel'][0, 0] = np.eye(3)
  params['fpn']['output3']['kernel'][1, 1] = np.eye(3)
  weights = 10 * np.array([[1, -1], [-1, -1], [-1, 1]])  # red, green, blue to the two classes
  params['head']['class_out']['kernel'][:2, :2] = weights  # the cells up and left of the centre
  params['head']['class_out']['bias'] -= 30
  config = _plain('detector', 'retinanet_toy', 2, side)
  return Detector(module, {'params': params}, config, COLOURS)


class Colours(nn.Module):
  """Logits of pixels: ten times red, green and blue."""

  @nn.compact
  def __call__(self, x, train: bool = False):
    kernel = nn.initializers.constant(10 * np.eye(3, dtype=np.float32)[None, None])
    return nn.Conv(3, (1, 1), use_bias=False, kernel_init=kernel, name='pixels')(x)


def colour_segmenter(side: int = 64) -> Segmenter:
  """Gives every pixel its strongest colour."""
  config = _plain('segmenter', 'colours', 3, side)
  variables = Colours().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  return Segmenter(Colours(), variables, config, ('red', 'green', 'blue'))


def squares(*places: tuple[int, int, tuple[int, int, int]], side: int = 64) -> np.ndarray:
  """A black picture with squares of 16 px: (left, top, colour)."""
  picture = np.zeros((side, side, 3), np.uint8)
  for left, top, colour in places:
    picture[top : top + 16, left : left + 16] = colour
  return picture
