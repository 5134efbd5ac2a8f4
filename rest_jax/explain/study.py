"""What an evaluation is about: model, methods, data, records. Part of the script explain.py."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rest_jax.data.sources import ImageSource
from rest_jax.errors import UserError
from rest_jax.explain import choices
from rest_jax.explain.command import Command
from rest_jax.explain.records import Records
from rest_jax.explain.run import check_layer
from rest_jax.models.classifier import Classifier
from rest_jax.opening import open_sources, read_examples

BASELINES = ('centre', 'random')
SANITY = -1  # number of the "batch" that holds the sanity check
# What a table over hundreds of images can afford; all else as the methods' defaults are.
BUDGETS: Mapping[str, Mapping[str, Any]] = {
  'rise': {'masks': 500},
  'road': {'percentiles': (20, 50, 80)},
}


class Batch(NamedTuple):
  """A piece of the split, padded to the batch size by repeating its last image.

  Attributes:
    number: from 0.
    count: images before the padding.
    images: (B, H, W, 3) float32 in [0, 1].
    labels: int (B,).
    masks: bool (B, H, W) of the objects, None where the data set has none.
  """

  number: int
  count: int
  images: np.ndarray
  labels: np.ndarray
  masks: np.ndarray | None


class Study(NamedTuple):
  """What stays the same during an evaluation.

  Attributes:
    command: the command line.
    classifier: the model, on the host's default device.
    methods: what is measured: names of the registry, one with another variant as NAME:VARIANT.
    options: keyword arguments of each.
    source: the split.
    count: its first images that are taken.
    records: what has been found.
  """

  command: Command
  classifier: Classifier
  methods: tuple[str, ...]
  options: Mapping[str, Mapping[str, Any]]
  source: ImageSource
  count: int
  records: Records

  @property
  def batches(self) -> int:
    """How many batches there are."""
    return -(-self.count // self.command.batch_size)


def open_study(command: Command) -> Study:
  """Loads the model, chooses the methods, opens the data set and the records.

  Raises:
    UserError: one of them is not there, or they do not belong together.
  """
  if command.target != 'predicted':
    raise UserError('--evaluate explains the predicted class; leave --target out')
  classifier = choices.open_classifier(command.model, command.architecture, command.ema)
  methods, left_out = choices.usable_methods(command.method, classifier)
  if left_out:
    print(left_out, file=sys.stderr)
  check_layer(classifier, methods, command.layer)
  extras = ('mask',) if command.data == 'digit_scenes' else ()
  sources = open_sources(command.data, command.data_dir, classifier, command.model, extras)
  options = {
    name: {**BUDGETS.get(name, {}), **choices.method_options(name, command)} for name in methods
  }
  if 'group_cam' in methods and command.variant is None:
    options['group_cam:latest'] = options['group_cam'] | {'variant': 'latest'}
  count = min(command.limit or len(sources.test), len(sources.test))
  records = Records(command.output / 'results.jsonl', _settings(command, classifier))
  return Study(command, classifier, tuple(options), options, sources.test, count, records)


def _settings(command: Command, classifier: Classifier) -> dict[str, Any]:
  """What the numbers depend on, but for the methods and how many images: those may grow."""
  names = ('data', 'layer', 'groups', 'variant', 'seed', 'batch_size')
  budgets = {name: dict(budget) for name, budget in BUDGETS.items()}
  return {
    **{name: getattr(command, name) for name in names},
    'model': fingerprint(classifier),
    'budgets': budgets,
  }


def fingerprint(classifier: Classifier) -> str:
  """A hash of a classifier's configuration and weights, hexadecimal."""
  digest = hashlib.sha256(classifier.config.to_json().encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(classifier.variables):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def read_batch(study: Study, number: int) -> Batch:
  """Reads a batch of the split as the classifier sees it."""
  size = study.command.batch_size
  first = number * size
  count = min(size, study.count - first)
  images, labels, examples = read_examples(study.source, study.classifier, first, count)
  masks = np.stack([e['mask'] for e in examples]) if 'mask' in examples[0] else None
  rows = np.minimum(np.arange(size), count - 1)
  return Batch(number, count, images[rows], labels[rows], masks if masks is None else masks[rows])
