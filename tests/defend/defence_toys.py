"""Small models and defences for tests, some of them ill on purpose; one device instead of four."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from rest_jax.defend.denoise.denoisers import in_pixels, step

SHAPE = (6, 6, 3)
CLASSES = 3


def _linear(weights, images):
  return (images - 0.5).reshape(images.shape[0], -1) @ weights


def linear_model(seed=0):
  """A linear classifier of random weights."""
  draw = np.random.default_rng(seed).normal(size=(int(np.prod(SHAPE)), CLASSES))
  return Partial(_linear, jnp.asarray(draw, jnp.float32))


def data(model, count=24, wrong=2, seed=1):
  """Images with the model's own answers as labels, the first ones changed."""
  images = np.random.default_rng(seed).random((count, *SHAPE), np.float32)
  labels = np.asarray(model(jnp.asarray(images))).argmax(axis=1).astype(np.int32)
  labels[:wrong] = (labels[:wrong] + 1) % CLASSES
  return images, labels


def _rounded(images, strength):
  levels = 1 + 63 * (1 - strength)
  return jnp.round(images * levels) / levels


def _near_identity(images, strength):
  return images * (1 - strength)


def rounding(strength=0.5, differentiable=False, surrogate=None):
  """Rounds to few levels; with differentiable=True it lies about its gradients."""
  fields = dict(differentiable=differentiable, surrogate=surrogate)
  return in_pixels('rounding', strength, step(_rounded), **fields)


def halving():
  """A surrogate whose gradient is 1 - strength."""
  return step(_near_identity)


def _scaled(images, strength):
  return images * (1 - strength) + 0.5 * strength


def fading(strength=0.5):
  """Goes to grey: linear and differentiable."""
  return in_pixels('fading', strength, step(_scaled))


def _noisy(images, strength, keys):
  noise = jax.vmap(lambda key, image: jax.random.normal(key, image.shape))(keys, images)
  return images + 0.1 * strength * noise


def noise(strength=0.5):
  """Adds Gaussian noise, anew at every call."""
  return in_pixels('noise', strength, step(_noisy), random=True)
