"""Methods measured on a test split: what `explain.py --evaluate` does.

Part of the script: it imports `rest_jax.data` and `rest_jax.models`. Batches are shared out over
the devices, each of which holds the model; results do not depend on how many there are.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import queue
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rest_jax import explain
from rest_jax.data.sources import ImageSource, load
from rest_jax.errors import UserError
from rest_jax.explain import choices, evaluation_results, metrics
from rest_jax.explain.command import Command
from rest_jax.explain.findings import paper_step
from rest_jax.explain.records import Records
from rest_jax.explain.run import check_layer
from rest_jax.explain.sanity import initial_variables
from rest_jax.models.classifier import Classifier
from rest_jax.train.progress import clock

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
  study = _open(command)
  todo = [n for n in range(study.batches) if any(_missing(study, n))]
  done = study.batches - len(todo)
  state = f', {done} of {study.batches} batches done before' if done else ''
  began = time.monotonic()
  print(f'{len(study.methods)} methods on {study.count} images of {command.data}{state}')
  steps = len(study.methods) + len(BASELINES)
  with tqdm(total=study.batches * steps, initial=done * steps, unit='batch', **_bar()) as bar:
    _over_devices(study, todo, bar)
  line = evaluation_results.write(study)
  print(f'{line}; this run took {clock(time.monotonic() - began)}')
  return 0


def _bar() -> dict[str, Any]:
  return dict(dynamic_ncols=True, disable=not sys.stderr.isatty())


def _open(command: Command) -> Study:
  if command.target != 'predicted':
    raise UserError('--evaluate explains the predicted class; leave --target out')
  classifier = choices.open_classifier(command.model, command.architecture)
  methods, left_out = choices.usable_methods(command.method, classifier)
  if left_out:
    print(left_out, file=sys.stderr)
  check_layer(classifier, methods, command.layer)
  extras = ('mask',) if command.data == 'digit_scenes' else ()
  sources = load(command.data, command.data_dir, extras=extras)
  if sources.class_names != classifier.class_names:
    raise UserError(
      f'{command.data} has classes {_some(sources.class_names)}, the model {command.model} '
      f'{_some(classifier.class_names)}: choose a model of this data set'
    )
  options = {
    name: {**BUDGETS.get(name, {}), **choices.method_options(name, command)} for name in methods
  }
  if 'group_cam' in methods and command.variant is None:
    options['group_cam:latest'] = options['group_cam'] | {'variant': 'latest'}
  count = min(command.limit or len(sources.test), len(sources.test))
  records = Records(command.output / 'results.jsonl', _settings(command, classifier))
  return Study(command, classifier, tuple(options), options, sources.test, count, records)


def _some(names: tuple[str, ...]) -> str:
  shown = ', '.join(names[:3])
  return f'{shown} and {len(names) - 3} more' if len(names) > 3 else shown


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


def _missing(study: Study, number: int) -> Iterator[str]:
  """Methods and baselines whose results for a batch are not there yet."""
  count = min(study.command.batch_size, study.count - number * study.command.batch_size)
  for method in (*BASELINES, *study.methods):
    found = study.records.get(method, number)
    if found is None or found['count'] != count:
      yield method
  for method in study.methods if number == 0 else ():
    found = study.records.get(method, SANITY)
    if found is None or found['count'] != count:
      yield f'{method}:sanity'


def _over_devices(study: Study, todo: list[int], bar: tqdm) -> None:
  """Shares the batches out: each device takes the next one when it is free."""
  devices = jax.local_devices()[: max(1, len(todo))]
  if len(devices) == 1:
    for number in todo:
      _measure_batch(study, number, devices[0], bar)
    return
  pending: queue.SimpleQueue[int] = queue.SimpleQueue()
  for number in todo:
    pending.put(number)
  stop = []
  with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
    futures = [pool.submit(_drain, study, pending, device, bar, stop) for device in devices]
    try:
      for future in concurrent.futures.as_completed(futures):
        future.result()
    finally:
      stop.append(True)


def _drain(study: Study, pending: queue.SimpleQueue, device: Any, bar: tqdm, stop: list) -> None:
  while not stop:
    try:
      number = pending.get_nowait()
    except queue.Empty:
      return
    _measure_batch(study, number, device, bar)


def read_batch(study: Study, number: int) -> Batch:
  """Reads a batch of the split as the classifier sees it."""
  size = study.command.batch_size
  first = number * size
  count = min(size, study.count - first)
  examples = [study.source[first + row] for row in range(count)]
  examples += examples[-1:] * (size - count)
  images = np.concatenate([study.classifier.preprocess(e['image']) for e in examples])
  labels = np.array([e['label'] for e in examples])
  masks = np.stack([e['mask'] for e in examples]) if 'mask' in examples[0] else None
  return Batch(number, count, images, labels, masks)


def _measure_batch(study: Study, number: int, device: Any, bar: tqdm) -> None:
  """Runs what is missing for a batch on one device and records it."""
  missing = list(_missing(study, number))
  if not missing:
    return
  with jax.default_device(device):
    classifier = jax.device_put(study.classifier, device)
    batch = read_batch(study, number)
    logits = np.asarray(logits_of(classifier, batch.images))
    for name in missing:
      if name.endswith(':sanity'):
        method = name.removesuffix(':sanity')
        study.records.add(method, SANITY, _sanity(study, classifier, batch, method, logits))
        continue
      found = _measure(study, classifier, batch, logits, name, device)
      study.records.add(name, number, found)
      bar.update(1)


logits_of = jax.jit(lambda classifier, images: classifier(images))


def _measure(
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
  kept = {key: np.asarray(v)[: batch.count].tolist() for key, v in values.items()}
  return {'count': batch.count, 'seconds': seconds, 'queries': queries, 'values': kept}


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
    hits = metrics.pointing_game(maps, batch.masks)
    values['pointing'] = np.asarray(hits, np.float32)
    values['energy'] = metrics.energy_share(maps, batch.masks)
  return values


def _sanity(
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
