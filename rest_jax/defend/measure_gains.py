"""A model directory with measured Wiener gains, to judge or to train on from.

  python -m rest_jax.defend.measure_gains --model work/base/model --output work/base_wiener

PGD perturbs random images of the training split (the test images stay unseen); the energies of the
features and of what the perturbation makes of them give the gains S / (S + N) of every band and
channel (`rest_jax.defend.with_wiener_gains`). Part of the scripts: it imports models and data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rest_jax import attacks
from rest_jax.attacks.threat import Threat
from rest_jax.command_line import (
  DATA_DIR_FLAG,
  MODEL_FLAGS,
  Flag,
  check_seed,
  check_whole,
  parse_flags,
)
from rest_jax.data.sample import take_sample
from rest_jax.defend.compression import add_compression, with_wiener_gains
from rest_jax.errors import run_script
from rest_jax.inputs import NORMS, check_norm, radius
from rest_jax.models.classifier import Classifier
from rest_jax.models.compression import Compression
from rest_jax.opening import open_classifier, open_training, read_examples
from rest_jax.paths import check_folder
from rest_jax.text import markdown_code, plural

_FLAGS = (
  *MODEL_FLAGS,
  Flag('data', dict(default='digit_scenes'), 'TFDS name or folder, its training split', 'name'),
  DATA_DIR_FLAG,
  Flag('output', dict(required=True), 'model directory to write', 'path'),
  Flag('limit', dict(type=int, default=512), 'so many images'),
  Flag('norm', dict(default='linf'), f'of the perturbation: {", ".join(NORMS)}'),
  Flag('eps', dict(default='8/255'), 'its radius, in units of [0, 1]'),
  Flag('steps', dict(type=int, default=20), 'of PGD'),
  Flag('stages', dict(type=int, nargs='+', default=[1]), 'that are followed by compression'),
  Flag('bands', dict(type=int, default=8), 'of the radius'),
  Flag('transform', dict(default='dct'), 'dct or fft'),
  Flag('soft', dict(action='store_true'), 'bands that overlap'),
  Flag('batch_size', dict(type=int, default=64), 'images a step'),
  Flag('seed', dict(type=int, default=0), 'of the choice of images and of the attack'),
)


def main(argv: Sequence[str] | None = None) -> None:
  """The command.

  Args:
    argv: as `sys.argv`.

  Raises:
    UserError: a bad flag, model or data set.
  """
  argv = sys.argv if argv is None else argv
  values = parse_flags(argv, str(__doc__), _FLAGS)
  if values is None:
    return
  args = argparse.Namespace(**values)
  check_folder(Path(args.output))
  check_whole(values, ('limit', 'steps', 'batch_size'))
  check_seed(args.seed)
  check_norm(args.norm)
  threat = Threat(args.norm, radius(args.eps, args.norm, what='--eps'))
  options = Compression('wiener', tuple(args.stages), args.transform, args.bands, args.soft)
  classifier = open_classifier(args.model, args.architecture, args.ema)
  images, labels = _examples(classifier, args)
  measured = _measured(add_compression(classifier, options), images, labels, threat, args)
  measured.save(args.output, card=_card(measured, args, len(images)))
  print(f'wrote {args.output}: {args.model} with Wiener gains from {plural(len(images), "image")}')


def _examples(classifier: Classifier, args: Any) -> tuple[np.ndarray, np.ndarray]:
  part, source = open_training(args.data, args.data_dir, classifier, args.model)
  sample = take_sample(source, part.num_classes, args.limit, args.seed)
  images, labels, _ = read_examples(sample, classifier, 0, len(sample))
  # The data may number the classes differently, or know some of them only.
  return images, np.asarray(getattr(part, 'classes', range(part.num_classes)))[labels]


def _measured(
  classifier: Classifier, images: np.ndarray, labels: np.ndarray, threat: Threat, args: Any
) -> Classifier:
  perturbed = attacks.pgd(
    classifier,
    images,
    labels,
    key=jax.random.key(args.seed),
    norm=threat.norm,
    eps=threat.eps,
    steps=args.steps,
    stop_early=False,
    query_batch=args.batch_size,
  )
  return with_wiener_gains(classifier, images, np.asarray(perturbed), batch_size=args.batch_size)


def _card(classifier: Classifier, args: Any, count: int) -> str:
  return (
    f'# {classifier.config.model} with band compression\n\n{markdown_code(args.model)} with Wiener '
    f'gains after stage {", ".join(map(str, args.stages))}, measured on '
    f'{plural(count, "training image")} of {markdown_code(args.data)} under '
    f'{plural(args.steps, "step")} of PGD within {args.norm} {args.eps} (seed {args.seed}). '
    'Accuracy not measured here.\n'
  )


if __name__ == '__main__':
  run_script(main)
