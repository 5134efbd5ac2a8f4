"""What attacks of minimum norm share: their best adversarial image so far."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rest_jax.attacks.algorithm import select
from rest_jax.attacks.checks import Inputs
from rest_jax.attacks.projections import distances
from rest_jax.attacks.runner import Ranked, attack
from rest_jax.attacks.threat import Norm


def keep_nearest(
  point: jax.Array,
  hit: jax.Array,
  adv: jax.Array,
  distance: jax.Array,
  images: jax.Array,
  norm: Norm,
) -> tuple[jax.Array, jax.Array]:
  """Takes points that fool and lie nearer to their image than what was found before.

  Args:
    point: (B, H, W, C), evaluated.
    hit: whether each fools the model, (B,).
    adv: the nearest so far (B, H, W, C), the image where there is none.
    distance: of `adv`, (B,); infinity where there is none.
    images: the originals.
    norm: of the distance.

  Returns:
    The new `adv` and `distance`.
  """
  new = distances(point, images, norm)
  nearer = hit & (new < distance)
  return select(nearer, point, adv), jnp.where(nearer, new, distance)


def attack_minimum(
  algorithm: Ranked, inputs: Inputs, key: Any, query_batch: int | None, stop_early: bool = False
) -> jax.Array:
  """Runs an attack of minimum norm; an image that is misclassified already stays as it is.

  Args:
    algorithm: what to run.
    inputs: from `check_inputs`.
    key: PRNG key, or None where only a random model would need one.
    query_batch: images at a time; None for all.
    stop_early: whether the first adversarial image found is the last.

  Returns:
    float32 (B, H, W, C), the nearest found, the original where there is none.
  """
  key = jax.random.key(0) if key is None else key
  return attack(
    algorithm, inputs, key, stop_early=stop_early, keep_clean=True, query_batch=query_batch
  )
