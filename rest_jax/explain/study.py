"""What `explain.py --evaluate` is about: model, methods, images, records. Part of the script."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rest_jax.data.source import ImageSource
from rest_jax.data.sources import JudgedData
from rest_jax.errors import UserError
from rest_jax.evaluation.batches import Images
from rest_jax.evaluation.fingerprint import pin
from rest_jax.evaluation.records import RESULTS, Records
from rest_jax.explain import choices
from rest_jax.explain.command import Command
from rest_jax.explain.metrics import box_masks
from rest_jax.explain.outputs import refuse_probabilities
from rest_jax.explain.queries import logits_once
from rest_jax.explain.run import check_layer
from rest_jax.files import make_folder
from rest_jax.models.classifier import Classifier
from rest_jax.models.predictions import Placement, placement_by
from rest_jax.opening import check_data, open_judged, read_examples
from rest_jax.text import plural

BASELINES = ('centre', 'random')
_BESIDES = ('sanity', 'fine')  # what is measured of a method in cases of their own
# What a table over hundreds of images can afford; all else as the methods' defaults are.
BUDGETS: Mapping[str, Mapping[str, Any]] = {
  'rise': {'masks': 500},
  'road': {'percentiles': (20, 50, 80)},
}


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

  def pieces(self) -> Iterator[Images]:
    """The images, a batch a piece: the draws of methods with chance go by the place in a batch."""
    size = self.command.batch_size
    for first in range(0, self.count, size):
      indices = range(first, min(first + size, self.count))
      yield Images(indices, read=functools.partial(_read, self, indices))

  def cases(self, piece: Images) -> list[str]:
    """What is measured on a piece: the baselines, the methods, on the first their sanity checks."""
    checks = [label(m, 'sanity') for m in self.methods] if piece.indices[0] == 0 else []
    maps = [*BASELINES, *self.methods]
    fine = [label(case, 'fine') for case in maps] if self.command.fine_steps else []
    return [*maps, *fine, *checks]


def label(method: str, besides: str) -> str:
  """The label of what is measured of a method, or a baseline, besides: 'sanity' or 'fine'."""
  return f'{method}:{besides}'


def split_label(case: str) -> tuple[str, str]:
  """The method of a label, and what is measured of it besides; '' where it is the method's own."""
  method, _, besides = case.rpartition(':')
  return (method, besides) if besides in _BESIDES else (case, '')


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
  choices.check_own_flags(classifier, methods, command)
  is_place = os.path.exists(os.path.expanduser(command.data))
  extras = ('boxes',) if is_place else ('mask',) if command.data == 'digit_scenes' else ()
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
  classifier, sample, options = judged.classifier, judged.sample, _options(methods, command)
  make_folder(command.output)
  records = Records(
    command.output / RESULTS,
    _settings(command, judged.data),
    model=pin(classifier, classifier.config.to_json()),
    place='--output',
  )
  return Study(
    command, classifier, tuple(options), options, sample, len(sample), records, judged.line
  )


def _options(methods: Sequence[str], command: Command) -> dict[str, dict[str, Any]]:
  """What each method is called with; Group-CAM in its other variant too, where none is asked."""
  options = {
    name: {**BUDGETS.get(name, {}), **choices.method_options(name, command)} for name in methods
  }
  if 'group_cam' in methods and command.variant is None:
    options['group_cam:latest'] = options['group_cam'] | {'variant': 'latest'}
  return options


def _settings(command: Command, data: JudgedData) -> dict[str, Any]:
  """What the numbers depend on, but for the methods and how many images: those may grow."""
  names = ('data', 'layer', 'groups', 'variant', 'seed', 'batch_size')
  return {
    **{name: getattr(command, name) for name in names},
    'split': data.split,
    'files': data.digest,
    'boxes': data.boxes_digest,
    'budgets': {name: dict(budget) for name, budget in BUDGETS.items()},
  }


# ---- Images -------------------------------------------------------------------------------------


def _read(study: Study, indices: range) -> dict[str, np.ndarray | None]:
  """Images as the classifier sees them, their labels, the pixels of objects, the logits.

  Returns:
    'images' (N, H, W, 3) float32 in [0, 1]; 'labels' int (N,); 'masks' bool (N, H, W), empty where
    an image has none or it is cropped away, None where the data set has none; 'marked' bool (N,),
    whether the data say where an object is, None likewise; 'logits' (N, K).
  """
  count, size = len(indices), study.command.batch_size
  images, labels, examples = read_examples(study.source, study.classifier, indices[0], count)
  padded = images[np.minimum(np.arange(size), count - 1)]
  logits = np.asarray(logits_once(study.classifier, padded))[:count]
  _check_finite(logits, indices[0] // size)
  refuse_probabilities(logits)
  masks, marked = _masks(study.classifier, examples)
  return {'images': images, 'labels': labels, 'masks': masks, 'marked': marked, 'logits': logits}


def _check_finite(logits: np.ndarray, number: int) -> None:
  """Refuses a model of which there is nothing to measure."""
  wrong = ~np.isfinite(logits)
  if wrong.any():
    raise UserError(
      f'{wrong.sum()} of {plural(wrong.size, "logit")} that the model gives in batch {number + 1} '
      f'are not finite ({plural(int(wrong.any(1).sum()), "image")}), so there are no decisions to '
      'measure; check its weights'
    )


def _masks(
  classifier: Classifier, examples: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """The pixels of the objects as the classifier sees them, and which examples have an object."""
  if 'mask' in examples[0]:
    place, marked = _placed_mask, [bool(np.any(example['mask'])) for example in examples]
  elif 'boxes' in examples[0]:
    place, marked = _box_mask, [bool(example['boxes'].edges) for example in examples]
  else:
    return None, None
  return np.stack([place(classifier, example) for example in examples]), np.array(marked)


def _placement(classifier: Classifier, example: Mapping[str, Any]) -> Placement:
  height, width = example['image'].shape[:2]
  return placement_by(classifier.config, (width, height))


def _placed_mask(classifier: Classifier, example: Mapping[str, Any]) -> np.ndarray:
  """bool (H, W): for each pixel of the model's input the nearest one of the picture's mask."""
  mask, place = np.asarray(example['mask'], bool), _placement(classifier, example)
  centres = (np.arange(classifier.config.input_size) + 0.5) / classifier.config.input_size
  down = place.top + centres * (place.bottom - place.top)
  across = place.left + centres * (place.right - place.left)
  # A centre on the edge of two pixels is the second one's, whatever the rounding of its place.
  rows, columns = (
    np.clip(np.floor(at + 1e-6).astype(int), 0, side - 1)
    for at, side in zip((down, across), mask.shape, strict=True)
  )
  return mask[np.ix_(rows, columns)]


def _box_mask(classifier: Classifier, example: Mapping[str, Any]) -> np.ndarray:
  """bool (H, W): the pixels of the model's input whose centre lies in a box of the picture."""
  size, place = classifier.config.input_size, _placement(classifier, example)
  height, width = example['image'].shape[:2]
  mask = np.zeros((size, size), bool)
  for left, top, right, bottom in example['boxes'].fractions(width, height):
    across = np.array([left, right]) * width - place.left
    down = np.array([top, bottom]) * height - place.top
    x0, x1 = across / (place.right - place.left)
    y0, y1 = down / (place.bottom - place.top)
    mask |= box_masks(np.array([[y0, x0, y1, x1]]), (size, size))[0]
  return mask
