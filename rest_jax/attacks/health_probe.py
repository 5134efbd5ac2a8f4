"""What the health checks measure on the model itself: a few evaluations and short attacks."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from rest_jax.attacks.losses import Loss, margin
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
    loss: their mean margin, the highest other logit less the label's; NaN where one of them is.
    count: number of counted images.
    flat: share of images whose first gradient, at the random start, is 0.
    broken: share of images whose first gradient is not finite.
  """

  accuracy: float
  loss: float
  count: int
  flat: float
  broken: float


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
  logits, losses, flat, broken = jax.device_get(_ascend(model, *data, norm))
  counts = sample.counts
  # Where no image is classified correctly, all of them show the gradients.
  shown = counts if counts.any() else sample.real
  shares = float(flat[shown].mean()), float(broken[shown].mean())
  if not counts.any():
    return Held(float('nan'), float('nan'), 0, *shares)
  defined = ~(np.isnan(logits) | (logits == np.inf)).any(axis=1)
  right = (logits.argmax(axis=1) == np.asarray(sample.labels)) & defined
  accuracy, loss = float(right[counts].mean()), float(losses[counts].mean())
  return Held(accuracy, loss, int(counts.sum()), *shares)


@functools.partial(jax.jit, static_argnames=('norm',))
def _ascend(model, images, labels, keys, eps, start, steps, norm):
  loss_fn = Loss('ce', labels)

  def step(i, carry):
    delta, flat, broken = carry
    gradient = ask(model, images + delta, loss_fn, fold_each(keys, i)).gradient
    axes = tuple(range(1, gradient.ndim))
    flat = jnp.where(i == 0, jnp.all(gradient == 0, axis=axes), flat)
    broken = jnp.where(i == 0, ~jnp.all(jnp.isfinite(gradient), axis=axes), broken)
    # A NaN would spread to the whole perturbation.
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
    done = jnp.float32(i) / jnp.maximum(steps, 1).astype(jnp.float32)
    move = furthest(gradient, jnp.clip(images + delta, 0, 1), norm, eps * (0.52 - 0.5 * done))
    return project(delta + move, images, norm, eps), flat, broken

  none = jnp.zeros(labels.shape, bool)
  first = (random_start(keys, images, norm, start), none, none)
  delta, flat, broken = lax.fori_loop(0, steps, step, first)
  logits = logits_of(model, jnp.clip(images + delta, 0, 1), keys)
  return logits, margin(logits, labels), flat, broken


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


def change_with_company(
  model: Partial, images: jax.Array, keys: jax.Array, first: np.ndarray, real: np.ndarray
) -> float:
  """How much logits change with the rest of the batch: in another order, with half of it replaced.

  Args:
    model: images to logits.
    images: float32 (B, H, W, C); one alone is put beside another.
    keys: PRNG keys (B,).
    first: logits (B, K) of the batch as it is.
    real: bool (B,), which images count.

  Returns:
    The largest `relative_change`.
  """
  turned = np.asarray(logits_once(model, images[::-1], keys[::-1]))[::-1]
  changes = [relative_change(first[real], turned[real])]
  if len(images) == 1:
    pair = jnp.concatenate([images, 1 - images])
    other = np.asarray(logits_once(model, pair, jnp.concatenate([keys, keys])))[:1]
    return max(changes[0], relative_change(first, other))
  for half in (0, 1):
    kept = np.arange(len(images)) % 2 == half
    company = jnp.where(kept[:, None, None, None], images, 1 - images)
    other = np.asarray(logits_once(model, company, keys))
    changes.append(relative_change(first[real & kept], other[real & kept]))
  return max(changes)


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
