"""All measures of a method on a batch of images. Part of the script explain.py."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax import explain
from rest_jax.explain import evaluation_results, metrics
from rest_jax.explain.findings import paper_step
from rest_jax.explain.metrics.sanity import initial_variables
from rest_jax.explain.study import BASELINES, BUDGETS, Batch, Study
from rest_jax.models.classifier import Classifier

logits_of = jax.jit(lambda classifier, images: classifier(images))


def measure(
  study: Study, classifier: Classifier, batch: Batch, logits: np.ndarray, name: str, device: Any
) -> dict[str, Any]:
  """All measures of one method, or of a baseline, on a batch."""
  targets = logits.argmax(1).astype(np.int32)
  seconds, queries = None, 0
  if name in BASELINES:
    maps = _baseline_maps(name, batch, study.command.seed)
  else:
    began = time.perf_counter()
    explanation = _explain(study, classifier, batch.images, targets, name)
    maps, queries = np.asarray(explanation.maps), int(explanation.queries)
    elapsed = time.perf_counter() - began
    # The first batch on a device compiles; its time says nothing.
    seconds = elapsed / len(maps) if (name, device) in _WARM else None
    _WARM.add((name, device))
  if batch.number == 0:
    evaluation_results.keep_examples(study.command.output, name, maps)
  values = _values(classifier, batch, maps, targets)
  kept = {key: _numbers(np.asarray(v)[: batch.count]) for key, v in values.items()}
  return {'count': batch.count, 'seconds': seconds, 'queries': queries, 'values': kept}


def _numbers(values: np.ndarray) -> list[float | None]:
  """For JSON, which has no NaN."""
  return [None if np.isnan(value) else value for value in values.tolist()]


_WARM: set[tuple[str, Any]] = set()


def _explain(
  study: Study, classifier: Classifier, images: np.ndarray, targets: np.ndarray, method: str
) -> explain.Explanation:
  key = jax.random.key(study.command.seed)
  name, options = method.split(':')[0], study.options[method]
  return explain.explain(classifier, images, name, targets, key=key, **options)


def _baseline_maps(name: str, batch: Batch, seed: int) -> np.ndarray:
  shape = batch.images.shape[:3]
  if name == 'centre':
    return np.asarray(metrics.centre_maps(shape[0], shape[1:]))
  return np.random.default_rng([seed, batch.number]).random(shape, np.float32)


def _values(
  classifier: Classifier, batch: Batch, maps: np.ndarray, targets: np.ndarray
) -> dict[str, Any]:
  """One number an image for each measure."""
  images = batch.images
  step = paper_step(images.shape[1:3])
  curves = metrics.insertion_deletion(classifier, images, maps, targets, pixels_per_step=step)
  confidence = metrics.drop_increase(classifier, images, maps, targets)
  values = {
    'insertion': curves.insertion_auc,
    'deletion': curves.deletion_auc,
    'drop': confidence.drop,
    'increase': np.asarray(confidence.increase, np.float32),
    'road': metrics.road(classifier, images, maps, targets, **BUDGETS['road']).score,
    'correct': np.asarray(targets == batch.labels, np.float32),
  }
  if batch.masks is not None:
    there = np.asarray(batch.masks.any((1, 2)))
    masks = batch.masks | ~there[:, None, None]
    hits = metrics.pointing_game(maps, masks)
    # Nobody can point at what is not there.
    values['pointing'] = np.where(there, hits, np.nan)
    values['energy'] = np.where(there, metrics.energy_share(maps, masks), np.nan)
  return values


def sanity(
  study: Study, classifier: Classifier, batch: Batch, method: str, logits: np.ndarray
) -> dict[str, Any]:
  """Rank correlation of a method's maps with those of the same model with random weights."""
  key = jax.random.key(study.command.seed)
  images, targets = batch.images, logits.argmax(1).astype(np.int32)
  fresh = initial_variables(classifier, jnp.asarray(images), jax.random.fold_in(key, 1))
  untrained = dataclasses.replace(classifier, variables=fresh)
  trained = _explain(study, classifier, images, targets, method).maps
  random = _explain(study, untrained, images, targets, method).maps
  values = metrics.rank_correlation(trained, random)[: batch.count]
  return {'count': batch.count, 'values': values.tolist()}
