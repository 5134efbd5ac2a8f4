"""Models and attacks for tests of the evaluation: small, and some of them ill on purpose."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

SHAPE = (6, 6, 3)
CLASSES = 4


def linear(weights, images):
  """A linear classifier."""
  return images.reshape(images.shape[0], -1) @ weights


def linear_model(seed=0):
  """A linear classifier of random weights."""
  draw = np.random.default_rng(seed).normal(size=(int(np.prod(SHAPE)), CLASSES))
  # Around grey every class has the same chance.
  return Partial(linear, jnp.asarray(draw - draw.mean(axis=0), jnp.float32))


def cnn(weights, images):
  """Two convolutions and a linear layer."""
  x = images - 0.5
  for kernel in weights['kernels']:
    x = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    x = jax.nn.relu(x)
  return x.reshape(x.shape[0], -1) @ weights['dense']


def mlp(weights, images):
  """One hidden layer; compiles faster."""
  first, second = weights
  return jax.nn.relu((images - 0.5).reshape(images.shape[0], -1) @ first) @ second


def mlp_model(seed=0):
  """A small network of random weights."""
  rng = np.random.default_rng(seed)
  first = rng.normal(size=(int(np.prod(SHAPE)), 16))
  return Partial(mlp, tuple(jnp.asarray(w, jnp.float32) for w in (first, rng.normal(size=(16, 4)))))


def cnn_model(seed=0):
  """A plain small CNN of random weights."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)

  kernels = [draw(3, 3, 3, 8), draw(3, 3, 8, 8)]
  return Partial(cnn, {'kernels': kernels, 'dense': 20 * draw(6 * 6 * 8, CLASSES)})


def data(model, count=20, wrong=0, seed=1):
  """Images with the model's own answers as labels, the first ones changed."""
  images = np.random.default_rng(seed).random((count, *SHAPE), np.float32)
  labels = np.asarray(model(jnp.asarray(images))).argmax(axis=1).astype(np.int32)
  labels[:wrong] = (labels[:wrong] + 1) % CLASSES
  return images, labels


class Calls:
  """An attack of fixed strength that notes what it was given: images go towards 0 or 1.

  It fools a linear model as an exact attack does, along the weights, and needs no compilation.
  """

  def __init__(self, weights, fail_at=None):
    self.weights = np.asarray(weights)
    self.left = fail_at  # batches before it fails
    self.batches = []

  def __call__(self, model, images, labels, *, key, norm, eps):
    assert norm == 'linf'
    assert key.shape == labels.shape
    if self.left == 0:
      raise KeyboardInterrupt
    self.left = None if self.left is None else self.left - 1
    logits = images.reshape(len(images), -1) @ self.weights
    attacked = logits.argmax(axis=1) == labels
    self.batches.append((np.asarray(images), attacked, eps))
    best = np.array(images)
    for row in np.flatnonzero(attacked):
      best[row] = self._nearest(images[row], labels[row], eps)
    return best, np.where(attacked, CLASSES, 0)

  def _nearest(self, image, label, eps):
    tried = []
    for other in range(CLASSES):
      direction = np.sign(self.weights[:, other] - self.weights[:, label]).reshape(SHAPE)
      moved = np.clip(image + np.float32(eps) * direction.astype(np.float32), 0, 1)
      moved = np.clip(moved, image - np.float32(eps), image + np.float32(eps))
      logits = moved.reshape(-1) @ self.weights
      tried.append((logits[other] - logits[label] if other != label else -np.inf, other, moved))
    return max(tried, key=lambda one: one[:2])[2]

  @property
  def attacked(self):
    """How many images were attacked, filler not counted."""
    return sum(int(attacked.sum()) for _, attacked, _ in self.batches)
