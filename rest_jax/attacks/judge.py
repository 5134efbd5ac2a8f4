"""The judge of an evaluation: it trusts no attack, but evaluates and measures what came back."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.queries import fold_each, image_keys, logits_once
from rest_jax.errors import UserError
from rest_jax.evaluation.batches import batch_rows
from rest_jax.evaluation.fingerprint import pin
from rest_jax.inputs import Norm
from rest_jax.text import plural

_OWN = 0x6A756467  # folded into an image's key: draws of a random model that no attack has seen
_FIRST, _SECOND = 1, 2
_ROUNDING = 2.0**-23  # one ulp of a pixel in [0.5, 1], where an attack adds in float32
_PROBES = 4  # images of noise that tell models without weights apart
_NAMED = 5  # images in a message
_RELATIVE = 1e-6  # of a norm summed in float32


class Verdict(NamedTuple):
  """What a model says of images.

  Attributes:
    predicted: int64 (B,), -1 where the logits are not numbers (-inf is one, of a class that is
      ruled out).
    loss: float64 (B,) cross-entropy of the true class, nats.
    undefined: int64 (B,), how many logits are not numbers.
  """

  predicted: np.ndarray
  loss: np.ndarray
  undefined: np.ndarray


def judge(
  model: Partial, images: np.ndarray, labels: np.ndarray, keys: jax.Array, second: bool = False
) -> Verdict:
  """Evaluates a batch.

  Args:
    model: images to logits.
    images: float32 (B, H, W, C).
    labels: integers (B,).
    keys: PRNG keys (B,), for a random model.
    second: a second evaluation: in the opposite order, a random model with other draws.

  Returns:
    The verdict.
  """
  keys = fold_each(fold_each(keys, _OWN), _SECOND if second else _FIRST)
  if second:
    logits = np.asarray(logits_once(model, images[::-1], keys[::-1]))[::-1]
  else:
    logits = np.asarray(logits_once(model, images, keys))
  logits = logits.astype(np.float64)
  undefined = undefined_logits(logits)
  good = undefined == 0
  logits = np.where(good[:, None], logits, 0.0)
  highest = logits.max(axis=1, keepdims=True)
  total = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
  loss = total - logits[np.arange(len(labels)), labels]
  predicted = np.where(good, logits.argmax(axis=1), -1)
  return Verdict(predicted, np.where(good, loss, np.nan), undefined)


def fingerprint(
  model: Partial, shape: tuple[int, ...], batch_size: int, model_id: str | None
) -> dict[str, Any]:
  """What pins a model in the header of its results.

  Args:
    model: images to logits.
    shape: of one image.
    batch_size: images to ask for at a time; the answer does not hang on it.
    model_id: the user's word for it, which then decides alone.

  Returns:
    'weights': a hash, None for a function that holds none as arguments, or `model_id`; 'probe': the
    logits of some images of noise, null where not finite.
  """
  noise = np.random.default_rng(0).random((_PROBES, *shape), np.float32)
  keys = image_keys(jax.random.key(0), _PROBES)
  parts = []
  # Always the same images, in batches of the one shape that the model is asked with.
  for at in batch_rows(0 if model_id is not None else _PROBES, batch_size):
    parts.append(np.asarray(logits_once(model, noise[at], keys[at])))
  probe = np.concatenate(parts)[:_PROBES] if parts else ()
  return pin(model, probe=probe, model_id=model_id)


def undefined_logits(logits: np.ndarray) -> np.ndarray:
  """How many of each image's logits (B, K) are not numbers, (B,): `losses.undefined_count`."""
  bad = (np.isnan(logits) | (logits == np.inf)).sum(axis=1)
  return np.where((logits == -np.inf).all(axis=1), logits.shape[1], bad)


def check_defined(undefined: np.ndarray, classes: int, indices: np.ndarray | None = None) -> None:
  """Raises `UserError` where a model's logits on images as they are, are not numbers.

  Args:
    undefined: (N,), how many of each image's.
    classes: of the model.
    indices: (N,), what the images are called; 0, 1, ... by default.
  """
  bad = np.flatnonzero(undefined)
  if not len(bad):
    return
  names = bad if indices is None else np.asarray(indices)[bad]
  shown = ', '.join(map(str, names[:_NAMED])) + (', ...' if len(names) > _NAMED else '')
  count, logits = len(undefined), len(undefined) * classes
  raise UserError(
    f'{int(undefined.sum())} of {logits} logits are not finite before any attack, on {len(bad)} of '
    f'{plural(count, "image")} (number {shown}); look for weights that are not finite, or '
    'an overflow: jax.config.update("jax_debug_nans", True)'
  )


def measure(
  adv: np.ndarray, images: np.ndarray, norm: Norm, eps: float | None
) -> tuple[np.ndarray, np.ndarray]:
  """Measures perturbations in float64.

  Args:
    adv: float32 (B, H, W, C).
    images: likewise.
    norm: of the distance.
    eps: radius, None for none.

  Returns:
    Distances float64 (B,), and bool (B,): in [0, 1] and no farther away than the radius, give or
    take the rounding of one float32 addition a pixel and of the norm.
  """
  shape = (len(images), -1)
  flat = adv.astype(np.float64).reshape(shape) - images.astype(np.float64).reshape(shape)
  pixels = flat.shape[1]
  order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
  distance = np.linalg.norm(flat, ord=order, axis=1)
  inside = np.all((adv >= 0) & (adv <= 1), axis=(1, 2, 3))  # NaN is neither
  if eps is not None:
    slack = _ROUNDING * {'linf': 1.0, 'l2': pixels**0.5, 'l1': float(pixels)}[norm]
    inside &= distance <= eps * (1 + _RELATIVE) + (slack if eps else 0.0)
  return distance, inside


def reached(verdict: Verdict, labels: np.ndarray, targets: np.ndarray | None) -> np.ndarray:
  """Whether the image is lost, bool (B,): the attacker's goal is reached, or the logits are not
  numbers, which classify nothing."""
  lost = verdict.predicted < 0
  if targets is not None:
    return (verdict.predicted == targets) | lost
  return (verdict.predicted != labels) | lost
