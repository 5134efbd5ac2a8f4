"""What the health checks measure on the model itself: a few evaluations and short attacks."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from rest_jax.attacks.losses import cross_entropy
from rest_jax.attacks.projections import furthest, project, random_start
from rest_jax.attacks.queries import ask, fold_each, logits_of
from rest_jax.attacks.threat import Norm

FEW_STEPS, MANY_STEPS = 1, 20
GREY_STEPS = 50
GREY_RADIUS = 0.5  # Linf; every image can become plain grey, whatever it showed


class Sample(NamedTuple):
  """Images that the model is probed with, filled up to a batch.

  Attributes:
    images: float32 (B, H, W, C).
    labels: int32 (B,).
    keys: PRNG keys (B,).
    counts: bool (B,), True where the image is no filler and classified correctly.
    real: bool (B,), True where the image is no filler.
  """

  images: jax.Array
  labels: jax.Array
  keys: jax.Array
  counts: np.ndarray
  real: np.ndarray


class Held(NamedTuple):
  """How a short attack ended.

  Attributes:
    accuracy: share of the counted images that are still classified correctly.
    loss: their mean cross-entropy, nats; NaN where one of them is.
    count: number of counted images.
  """

  accuracy: float
  loss: float
  count: int


def short_attack(
  model: Partial, sample: Sample, norm: Norm, eps: float, steps: int, start: float | None = None
) -> Held:
  """Steepest ascent on cross-entropy from a random start, its last image judged.

  Steps shrink from about half the radius to nothing. Steps and radii are data: one compiled form
  does for all of them.

  Args:
    model: images to logits.
    sample: what to attack.
    norm: of the ball.
    eps: its radius.
    steps: gradient steps.
    start: radius of the ball that the start is drawn from; eps by default. With the same one, a
      larger ball gives an attack only what its gradients do with it.

  Returns:
    How it ended.
  """
  radii = np.float32(eps), np.float32(eps if start is None else start)
  data = (sample.images, sample.labels, sample.keys, *radii, np.int32(steps))
  logits, losses = jax.device_get(_ascend(model, *data, norm))
  counts = sample.counts
  if not counts.any():
    return Held(float('nan'), float('nan'), 0)
  right = (logits.argmax(axis=1) == np.asarray(sample.labels)) & ~np.isnan(logits).any(axis=1)
  return Held(float(right[counts].mean()), float(losses[counts].mean()), int(counts.sum()))


@functools.partial(jax.jit, static_argnames=('norm',))
def _ascend(model, images, labels, keys, eps, start, steps, norm):
  def loss_fn(logits):
    return cross_entropy(logits, labels)

  def step(i, delta):
    gradient = ask(model, images + delta, loss_fn, fold_each(keys, i)).gradient
    done = jnp.float32(i) / jnp.maximum(steps, 1).astype(jnp.float32)
    # A NaN would spread to the whole perturbation.
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
    move = furthest(gradient, jnp.clip(images + delta, 0, 1), norm, eps * (0.52 - 0.5 * done))
    return project(delta + move, images, norm, eps)

  delta = lax.fori_loop(0, steps, step, random_start(keys, images, norm, start))
  logits = logits_of(model, jnp.clip(images + delta, 0, 1), keys)
  return logits, cross_entropy(logits, labels)


def gradient_shares(model: Partial, sample: Sample, norm: Norm, eps: float) -> tuple[float, float]:
  """Shares of images whose gradient of the cross-entropy, at a random start, is 0, and not finite.

  Of the images that are classified correctly, because where the attack has won a saturated loss
  may well be flat; of all images where none is.
  """
  zero, broken = jax.device_get(
    _gradients(model, sample.images, sample.labels, sample.keys, np.float32(eps), norm)
  )
  counts = sample.counts if sample.counts.any() else sample.real
  return float(zero[counts].mean()), float(broken[counts].mean())


@functools.partial(jax.jit, static_argnames=('norm',))
def _gradients(model, images, labels, keys, eps, norm):
  start = jnp.clip(images + random_start(keys, images, norm, eps), 0, 1)
  gradient = ask(model, start, lambda logits: cross_entropy(logits, labels), keys).gradient
  flat = gradient.reshape(gradient.shape[0], -1)
  return jnp.all(flat == 0, axis=1), ~jnp.all(jnp.isfinite(flat), axis=1)


@jax.jit
def logits_once(model: Partial, images: jax.Array, keys: jax.Array) -> jax.Array:
  """Logits (B, K) in float32; of a random model, those that the keys (B,) give."""
  return logits_of(model, images, keys)


def logits_traced_anew(model: Partial, images: jax.Array, keys: jax.Array) -> jax.Array:
  """As `logits_once`, from a program of its own.

  Chance outside JAX (NumPy's, Python's) is drawn when a function is traced and is then part of the
  program; only another trace shows it.
  """
  return jax.jit(lambda *args: logits_of(*args))(model, images, keys)


def relative_change(first: np.ndarray, second: np.ndarray) -> float:
  """Largest distance (L2) of two rows of logits (N, K), over the larger one's length.

  NaN where both are not finite counts as no change, where only one is as infinite.
  """
  finite = np.isfinite(first).all(axis=1), np.isfinite(second).all(axis=1)
  if (finite[0] != finite[1]).any():
    return float('inf')
  a, b = (x[finite[0]].astype(np.float64) for x in (first, second))
  length = np.maximum(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
  change = np.linalg.norm(a - b, axis=1) / np.maximum(length, 1e-30)
  return float(change.max(initial=0.0))
