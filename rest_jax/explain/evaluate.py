"""`explain.py --evaluate`: methods measured on a test split. Part of the script.

Results do not depend on how many devices take part.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax import explain
from rest_jax.evaluation.batches import Batch
from rest_jax.evaluation.progress import clock, images_bar
from rest_jax.evaluation.runner import Replicas, count_left, run
from rest_jax.explain import metrics, table
from rest_jax.explain.command import Command
from rest_jax.explain.metrics.sanity import initial_variables
from rest_jax.explain.study import BASELINES, BUDGETS, Study, open_study, split_label
from rest_jax.models.classifier import Classifier
from rest_jax.text import legible, plural


def evaluate(command: Command) -> int:
  """Measures methods over a test split and writes the tables and examples.png.

  Args:
    command: from `command.parse`.

  Returns:
    The exit status, 0.

  Raises:
    UserError: no such model, method, layer or data set, results of other settings in the output
      folder, or nowhere to write.
  """
  study = open_study(command)
  began = time.monotonic()
  print(legible(study.line))
  amounts = f'{plural(len(study.methods), "method")} on {plural(study.count, "image")}'
  total, left = _amounts(study)
  before = f', {left.count(0)} of {plural(len(left), "batch")} done before' if 0 in left else ''
  print(f'{amounts} of {legible(command.data)}{before}')
  with images_bar(total, total - sum(left)) as through:
    run(
      study.cases,
      study.pieces(),
      study.records,
      _Measuring(study),
      size=command.batch_size,
      packed=False,
      progress=through,
    )
  print(f'{table.write(study)}; this run took {clock(time.monotonic() - began)}')
  return 0


def _amounts(study: Study) -> tuple[int, list[int]]:
  """Images, each counted in each case: all, and of each batch those without a record."""
  pieces = [(piece, study.cases(piece)) for piece in study.pieces()]
  total = sum(len(piece) * len(cases) for piece, cases in pieces)
  return total, [count_left(cases, [piece], study.records) for piece, cases in pieces]


class _Measuring:
  """The work: all measures of a method or a baseline on a batch, or a method's sanity check."""

  def __init__(self, study: Study):
    self._study = study
    self._classifiers = Replicas(study.classifier)
    self._warm: set[tuple[str, Any]] = set()
    self._latest: dict[str, tuple[int, np.ndarray]] = {}  # first image and maps, by method

  def __call__(self, case: str, batch: Batch, device: Any) -> dict[str, Any]:
    """Columns by measure, one value an image."""
    classifier = self._classifiers(device)
    method, besides = split_label(case)
    if not besides:
      maps, seconds, queries = self._maps(method, batch, classifier, device)
      if batch.indices[0] == 0:
        table.keep_examples(self._study.command.output, case, maps[: batch.count])
      cost = {'seconds': [seconds] * batch.size, 'queries': queries}
      return measure(classifier, batch, maps) | cost
    first, maps = self._latest.get(method, (-1, np.empty(0)))
    if first != batch.indices[0]:
      maps, _, _ = self._maps(method, batch, classifier, device)
    if besides == 'sanity':
      return {'sanity': sanity(self._study, classifier, batch, method, maps)}
    return dict(zip(table.FINE, _areas(classifier, batch, maps, 'latest'), strict=True))

  def _maps(
    self, case: str, batch: Batch, classifier: Classifier, device: Any
  ) -> tuple[np.ndarray, float | None, np.ndarray]:
    """Maps (size, H, W), seconds an image and queries (size,)."""
    if case in BASELINES:
      return _baseline_maps(case, batch, self._study.command.seed), None, np.zeros(batch.size, int)
    began = time.perf_counter()
    explanation = _explain(self._study, classifier, batch, case)
    maps = np.asarray(explanation.maps)
    elapsed = time.perf_counter() - began
    # The first batch on a device compiles; its time says nothing.
    seconds = elapsed / len(maps) if (case, device) in self._warm else None
    self._warm.add((case, device))
    self._latest[case] = int(batch.indices[0]), maps
    return maps, seconds, np.asarray(explanation.image_queries)


def _explain(study: Study, model: Classifier, batch: Batch, method: str) -> explain.Explanation:
  key = jax.random.key(study.command.seed)
  name, options = method.split(':')[0], study.options[method]
  return explain.explain(model, batch['images'], name, _targets(batch), key=key, **options)


def _targets(batch: Batch) -> np.ndarray:
  """The predicted classes."""
  return batch['logits'].argmax(1).astype(np.int32)


def _baseline_maps(name: str, batch: Batch, seed: int) -> np.ndarray:
  shape = batch['images'].shape[:3]
  if name == 'centre':
    return np.asarray(metrics.centre_maps(shape[0], shape[1:]))
  number = int(batch.indices[0]) // batch.size
  return np.random.default_rng([seed, number]).random(shape, np.float32)


def measure(classifier: Classifier, batch: Batch, maps: np.ndarray) -> dict[str, np.ndarray]:
  """One number an image for each measure of maps, and whether the model is right.

  Args:
    classifier: the model.
    batch: 'images', 'labels', 'masks', 'marked' and 'logits' of `Study.pieces`.
    maps: (size, H, W) of the predicted classes.

  Returns:
    By measure, (size,) each; NaN where there is nothing to point at.
  """
  images, masks, targets = batch['images'], batch['masks'], _targets(batch)
  insertion, deletion = _areas(classifier, batch, maps, 'paper')
  confidence = metrics.drop_increase(classifier, images, maps, targets)
  values = {
    'insertion': insertion,
    'deletion': deletion,
    'drop': confidence.drop,
    'increase': np.asarray(confidence.increase, np.float32),
    'road': metrics.road(classifier, images, maps, targets, **BUDGETS['road']).score,
    'correct': np.asarray(targets == batch['labels'], np.float32),
  }
  if masks is not None:
    values['marked'] = np.asarray(batch['marked'], np.float32)
    there = np.asarray(masks.any((1, 2)))
    marked = masks | ~there[:, None, None]
    # Nobody can point at what is not there.
    values['pointing'] = np.where(there, metrics.pointing_game(maps, marked), np.nan)
    values['energy'] = np.where(there, metrics.energy_share(maps, marked), np.nan)
  return {name: np.asarray(value) for name, value in values.items()}


def _areas(classifier: Classifier, batch: Batch, maps: np.ndarray, variant: str) -> list:
  """Areas under the curves of insertion and of deletion, (size,) each."""
  images, step = batch['images'], metrics.step_at(maps.shape[1:], variant)
  found = metrics.insertion_deletion(
    classifier, images, maps, _targets(batch), pixels_per_step=step
  )
  return [np.asarray(found.insertion_auc), np.asarray(found.deletion_auc)]


def sanity(study: Study, classifier: Classifier, batch: Batch, method: str, maps: Any) -> Any:
  """Rank correlation of a method's maps with those of the same model with random weights.

  Not a number, which is no record, of an image where either map is constant.
  """
  key = jax.random.fold_in(jax.random.key(study.command.seed), 1)
  fresh = initial_variables(classifier, jnp.asarray(batch['images']), key)
  untrained = dataclasses.replace(classifier, variables=fresh)
  random = _explain(study, untrained, batch, method).maps
  return np.asarray(metrics.rank_correlation(maps, random))
