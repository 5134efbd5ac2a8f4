"""What an evaluation is about: model, methods, data, records. Part of the script explain.py."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rest_jax.data.source import ImageSource
from rest_jax.data.sources import JudgedData
from rest_jax.errors import UserError
from rest_jax.explain import choices
from rest_jax.explain.command import Command
from rest_jax.explain.metrics import box_masks
from rest_jax.explain.pictures import placement
from rest_jax.explain.records import Records
from rest_jax.explain.run import check_layer
from rest_jax.files import make_folder
from rest_jax.models.classifier import Classifier
from rest_jax.opening import check_data, open_judged, read_examples

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
    masks: bool (B, H, W) of the objects, empty where one has none or is cropped away; None where
      the data set has none.
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
    source: the images that are taken, in an order in which a larger sample goes on.
    count: how many.
    records: what has been found.
    line: what they are, for people.
  """

  command: Command
  classifier: Classifier
  methods: tuple[str, ...]
  options: Mapping[str, Mapping[str, Any]]
  source: ImageSource
  count: int
  records: Records
  line: str

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
  choices.check_group_cam(classifier, methods, command)
  extras = ('mask',) if command.data == 'digit_scenes' else ()
  if os.path.exists(os.path.expanduser(command.data)):
    extras = ('boxes',)
  check_data(command.data, classifier, command.model, command.output)
  judged = open_judged(
    command.data,
    command.data_dir,
    classifier,
    command.model,
    split=command.split,
    extras=extras,
    limit=command.limit or sys.maxsize,  # in an order that a smaller limit began
    seed=command.seed,
  )
  classifier, sample = judged.classifier, judged.sample
  options = {
    name: {**BUDGETS.get(name, {}), **choices.method_options(name, command)} for name in methods
  }
  if 'group_cam' in methods and command.variant is None:
    options['group_cam:latest'] = options['group_cam'] | {'variant': 'latest'}
  settings = _settings(command, classifier, judged.data)
  make_folder(command.output)
  records = Records(command.output / 'results.jsonl', settings)
  return Study(
    command, classifier, tuple(options), options, sample, len(sample), records, judged.line
  )


def _settings(command: Command, classifier: Classifier, data: JudgedData) -> dict[str, Any]:
  """What the numbers depend on, but for the methods and how many images: those may grow."""
  names = ('data', 'layer', 'groups', 'variant', 'seed', 'batch_size')
  budgets = {name: dict(budget) for name, budget in BUDGETS.items()}
  return {
    **{name: getattr(command, name) for name in names},
    'split': data.split,
    'files': data.digest,
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
  masks = _masks(study.classifier, examples)
  rows = np.minimum(np.arange(size), count - 1)
  return Batch(number, count, images[rows], labels[rows], masks if masks is None else masks[rows])


def _masks(classifier: Classifier, examples: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
  """The pixels of the objects as the classifier sees them, from masks or boxes."""
  if 'mask' in examples[0]:
    return np.stack([example['mask'] for example in examples])
  if 'boxes' not in examples[0]:
    return None
  return np.stack([_box_mask(classifier, example) for example in examples])


def _box_mask(classifier: Classifier, example: Mapping[str, Any]) -> np.ndarray:
  """bool (H, W): the pixels of the model's input whose centre lies in a box of the picture."""
  config, (height, width) = classifier.config, example['image'].shape[:2]
  size = config.input_size
  place = placement(
    (width, height), input_size=size, resize=config.resize, crop_pct=config.crop_pct
  )
  mask = np.zeros((size, size), bool)
  for left, top, right, bottom in example['boxes'].fractions(width, height):
    across = np.array([left, right]) * width - place.left
    down = np.array([top, bottom]) * height - place.top
    x0, x1 = across / (place.right - place.left)
    y0, y1 = down / (place.bottom - place.top)
    mask |= box_masks(np.array([[y0, x0, y1, x1]]), (size, size))[0]
  return mask
