"""Attacked images for the report: clean, perturbation, adversarial, and behind each defence."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.evaluation_sample import keys_of
from rest_jax.attacks.figures import enlarge
from rest_jax.attacks.queries import logits_once
from rest_jax.callables import as_function
from rest_jax.defend.denoise.denoisers import Denoiser
from rest_jax.defend.found import Found
from rest_jax.defend.protect import protect
from rest_jax.defend.transferred import images_at_a_time
from rest_jax.evaluation.figures import Strip

COLUMNS = 6
DEFENCES = 6  # rows below the adversarial images
_NAME_LENGTH = 14


def example_strips(found: Found) -> list[Strip]:
  """Rows of pictures of the first images that the attack turned on the undefended model.

  Args:
    found: what was evaluated.

  Returns:
    Clean images, perturbations, adversarial images, and what defences make of the latter; each
    with what the model says. Empty where there are no images, or none that is a picture.
  """
  if found.images.shape[-1] not in (1, 3):
    return []
  model = as_function(found.classifier)
  clean, wrong = (_predict(found, model, x) for x in (found.images, found.adversarial))
  turned = np.flatnonzero((clean == found.labels) & (wrong != found.labels))
  others = np.setdiff1d(np.arange(len(found.images)), turned)
  rows = np.concatenate([turned, others])[:COLUMNS]
  images, adv, labels = found.images[rows], found.adversarial[rows], found.labels[rows]
  shown, factor = enlarge(adv - images)
  strips = [
    _strip(found, 'clean', images, clean[rows], labels),
    Strip('perturbation,\nenlarged', shown, [f'× {f:.3g}' for f in factor], [None] * len(rows)),
    _strip(found, 'adversarial,\nundefended', adv, wrong[rows], labels),
  ]
  for label in _chosen(found):
    strips.append(_defended(found, model, label, rows))
  return strips


def _chosen(found: Found) -> list[str]:
  """The first strength of each defence that gives pictures."""
  first = {}
  for label, defence in found.defences.items():
    if isinstance(defence, Denoiser):
      first.setdefault(label.rsplit(' ', 1)[0], label)
  return list(first.values())[:DEFENCES]


def _defended(found: Found, model: Partial, label: str, rows: np.ndarray) -> Strip:
  defence, adv = found.defences[label], found.adversarial[rows]
  key = jax.random.key(found.command.seed)
  pictures = np.asarray(defence(adv, keys_of(key, rows)))
  # Filled up to the batch that the evaluation has compiled the defended model for.
  size = images_at_a_time(found.command.batch_size, len(found.images))
  at = np.resize(rows, max(size, len(rows)))
  judged = protect(model, defence, key=key, draws=found.command.draws)
  logits = logits_once(judged, found.adversarial[at], keys_of(key, at))
  predicted = np.asarray(logits).argmax(axis=1)[: len(rows)]
  title = label.replace(' ', ',\nstrength ')
  return _strip(found, title, np.clip(pictures, 0, 1), predicted, found.labels[rows])


def _predict(found: Found, model: Partial, images: np.ndarray) -> np.ndarray:
  count = len(images)
  size = images_at_a_time(found.command.batch_size, count)
  parts = []
  for first in range(0, count, size):
    at = np.minimum(np.arange(first, first + size), count - 1)
    keys = keys_of(jax.random.key(found.command.seed), at)
    parts.append(np.asarray(logits_once(model, images[at], keys)).argmax(axis=1))
  return np.concatenate(parts)[:count]


def _strip(
  found: Found, title: str, pictures: np.ndarray, predicted: np.ndarray, labels: np.ndarray
) -> Strip:
  names: Sequence[str] = found.classifier.class_names
  captions = [_short(names[int(number)]) for number in predicted]
  return Strip(title, pictures, captions, [bool(r) for r in predicted == labels])


def _short(name: str) -> str:
  return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + '…'
