"""Training of detectors and segmenters: their model, batches, losses and release.

The loop, the state, the optimizer, checkpoints and resuming are those of classifiers; what is
another stands here, as `purpose.Purpose` asks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rest_jax.data.dense_augment import DetectionAugment, SegmentationAugment
from rest_jax.data.dense_batches import DenseEvalBatches, DenseTrainBatches, View
from rest_jax.data.dense_sources import Kind as DataKind
from rest_jax.data.dense_sources import load_dense
from rest_jax.data.iterators import TrainIterator
from rest_jax.data.sources import DataSources
from rest_jax.errors import UserError
from rest_jax.models import create_detector, create_segmenter, model_dir
from rest_jax.models.classifier import Classifier
from rest_jax.models.dense import Targets, normalise
from rest_jax.models.dense_model import Detector, Segmenter
from rest_jax.models.dense_registry import kind_of as kind_of_name
from rest_jax.text import plural
from rest_jax.train import dense_evaluate, freezing
from rest_jax.train.classifying import check_normalisation
from rest_jax.train.config import Config
from rest_jax.train.gradients import Aux, GradientFunction
from rest_jax.train.optim import check_decay

Tensors = dict[str, np.ndarray]
# Layers of classifiers behind the last map, which a dense head does not stand on.
_BEHIND_MAPS = ('norm', 'neck', 'fc1', 'fc2', 'head')
INIT_SIDE = 64  # px of the canvas that parameters are initialised on; no shape depends on it


def kind_of(config: Config) -> str:
  """'detector' or 'segmenter'."""
  return kind_of_name(config.model.name)


def init_side(config: Config) -> int:
  """Pixels a side of the canvas that parameters are initialised on."""
  return INIT_SIDE


def sizes(config: Config) -> str:
  """How large pictures are to the model, in words."""
  return ', '.join(f'{height}x{width}' for height, width in canvases_of(config))


def data_kind(config: Config) -> DataKind:
  """What is learnt of a picture."""
  if kind_of(config) == 'segmenter':
    return 'pixels'
  with_masks = config.model.name.startswith('mask_rcnn_')
  return 'masks' if with_masks and config.model.overrides.get('masks', True) else 'boxes'


def canvases_of(config: Config) -> tuple[tuple[int, int], ...]:
  """The canvases of a config as pairs of whole numbers."""
  return tuple((int(height), int(width)) for height, width in config.dense.canvases)


def create(config: Config, num_classes: int, axis: str | None = None) -> nn.Module:
  """Builds the model of a config.

  Args:
    config: the whole experiment configuration.
    num_classes: K.
    axis: mapped axis of the training step, over which counts are summed and, with
      `train.sync_bn`, batch norms synchronised; None outside of it.

  Raises:
    UserError: unknown names or options.
  """
  backbone, options = config.model.backbone.to_dict(), config.model.overrides.to_dict()
  detector = kind_of(config) == 'detector'
  if config.model.dtype != 'float32':
    backbone['dtype'] = options['dtype'] = jnp.dtype(config.model.dtype)
  if axis is not None and config.train.sync_bn:
    backbone['bn_axis_name'] = axis
    options |= {} if detector else {'bn_axis_name': axis}
  if axis is not None and detector:
    options['axis_name'] = axis
  make = create_detector if detector else create_segmenter
  return make(config.model.name, num_classes, backbone=backbone, **options)


def load_sources(config: Config) -> DataSources:
  """Opens the data set of a config.

  Raises:
    UserError: it is missing or damaged, or a picture to learn from has more objects than there is
      room for; the line says where.
  """
  sources = load_dense(
    config.data.name,
    data_kind(config),
    data_dir=config.data.dir,
    train_split=config.data.train_split,
    test_split=config.data.test_split,
    val_split=config.data.val_split,
  )
  train: Any = sources.train
  count, name = train.most_objects()
  if kind_of(config) == 'detector' and count > config.dense.max_objects:
    raise UserError(
      f'{config.data.name} ({sources.splits[0]}): the picture {name} has {count} objects, room is '
      f'for {config.dense.max_objects}; set dense.max_objects={count}'
    )
  return sources


def train_batches(config: Config, source: Any) -> TrainIterator:
  """The endless iterator over this process's rows of augmented training batches."""
  room = {'max_objects': config.dense.max_objects} if kind_of(config) == 'detector' else {}
  batches = DenseTrainBatches(
    source,
    config.train.batch_size,
    augmentation(config),
    canvases_of(config),
    seed=config.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    **room,
  )
  return TrainIterator(batches, config.data.workers)  # pyright: ignore[reportArgumentType]


def augmentation(config: Config) -> DetectionAugment | SegmentationAugment:
  """What happens to a training picture.

  Raises:
    UserError: a value out of its range.
  """
  dense, mirrored = config.dense, 0.5 if config.augment.flip else 0.0
  if kind_of(config) == 'segmenter':
    return SegmentationAugment(
      short=tuple(dense.short),
      long=dense.long,
      ratio=tuple(dense.jitter),
      square=min(min(canvas) for canvas in canvases_of(config)),
      most_of_a_class=dense.most_of_a_class,
      flip=mirrored,
      photometric=dense.photometric,
    )
  return DetectionAugment(
    short=tuple(dense.short),
    long=dense.long,
    jitter=tuple(dense.jitter),
    crop_share=tuple(dense.crop_share),
    flip=mirrored,
    least_visible=dense.least_visible,
  )


def test_batches(config: Config, source: Any) -> DenseEvalBatches:
  """All test pictures, each on the smallest canvas; every process gets all of them."""
  size = config.data.eval_batch_size or config.train.batch_size
  view = View(config.dense.test_short, config.dense.test_long, canvases_of(config))
  return DenseEvalBatches(source, size, view)


def test_view(config: Config) -> dict[str, Any]:
  """How often a segmenter looks at a test picture, as its model directory keeps it too."""
  return {
    'scales': tuple(float(scale) for scale in config.dense.test_scales),
    'mirrored': bool(config.dense.test_flip),
  }


def inputs(
  config: Config,
  num_classes: int,
  model: nn.Module,
  variables: Any,
  batch: dict[str, jax.Array],
  key: jax.Array,
) -> tuple[jax.Array, Any]:
  """Normalised canvases, and what is learnt from them.

  Args:
    config: the whole experiment configuration.
    num_classes: K.
    model: the detector or segmenter.
    variables: of it.
    batch: a device's slice of a batch of `DenseTrainBatches`.
    key: of this step and device; pictures were augmented on the host.

  Returns:
    float32 (b, H, W, 3), and `Targets` or labels (b, H, W).
  """
  images = normalise(batch['image'], batch['size'], tuple(config.data.mean), tuple(config.data.std))
  if kind_of(config) == 'segmenter':
    return images, batch['segmentation'].astype(jnp.int32)
  masks = batch['masks'].astype(jnp.float32) if 'masks' in batch else None
  return images, Targets(batch['boxes'], batch['labels'], masks, batch['size'])


def gradients(model: nn.Module, config: Config) -> GradientFunction:
  """The gradient function of the sum of a model's losses, each of which is measured too.

  Args:
    model: a detector or a segmenter.
    config: the whole experiment configuration.

  Returns:
    As `gradients.plain_gradients`, of rows that `inputs` gives.
  """

  def loss_fn(trained, frozen, stats, rows, key):
    images, targets, _ = rows
    losses, new = model.apply(
      {'params': freezing.merge(trained, frozen), 'batch_stats': stats},
      images,
      targets,
      method='losses',
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )
    losses = {f'{name}_loss': value for name, value in losses.items()}
    return jnp.sum(jnp.stack(list(losses.values()))), Aux(new.get('batch_stats', {}), losses)

  return jax.value_and_grad(loss_fn, has_aux=True)


def measuring(
  model: nn.Module, config: Config, mesh: Mesh, class_names: Sequence[str]
) -> tuple[Callable[..., Any], Callable[[Any, Any], dict[str, Any]]]:
  """The evaluation step, and what measures weights on a split with it; compiles nothing yet."""
  own, kind = dense_evaluate.local_mesh(mesh), kind_of(config)
  step = dense_evaluate.make_step(model, kind, config.data.mean, config.data.std, own)
  masks = data_kind(config) == 'masks'

  def measure(variables: Any, source: Any) -> dict[str, Any]:
    weights = dense_evaluate.replicated(variables, own)
    batches = dataclasses.replace(test_batches(config, source), multiple=own.size)
    if kind == 'detector':
      return dense_evaluate.judge_detector(step, weights, batches, class_names, masks)
    view = test_view(config)
    return dense_evaluate.judge_segmenter(step, weights, batches, class_names, **view)

  return step, measure


def check(config: Config) -> None:
  """Refuses a config that would fail later, before any data is opened.

  Raises:
    UserError: options that make no model, or values of the group `dense` that do not fit together.
  """
  for options, name in ((config.model.overrides, 'overrides'), (config.model.backbone, 'backbone')):
    if given := {'num_classes', 'bn_axis_name', 'axis_name', 'dtype'} & set(options):
      raise UserError(
        f'model.{name}: {min(given)!r} is not an option of its own; the classes are those of the '
        'data, the rest is train.sync_bn and model.dtype'
      )
  augmentation(config)
  try:
    shapes = jax.eval_shape(_initialise(create(config, 2)), jax.random.key(0))
  except UserError as error:
    raise UserError(f'model.name={config.model.name!r}: {error}') from error
  except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(
      f'model.name={config.model.name!r} and its options make no model: {reason}'
    ) from error
  freezing.check_pattern(shapes['params'], config.optim.freeze)
  check_decay(shapes['params'], config.optim)


def _initialise(model: nn.Module):
  image = jnp.zeros((1, INIT_SIDE, INIT_SIDE, 3), jnp.float32)
  return lambda key: model.init({'params': key}, image, train=False)


def release(
  config: Config, variables: Any, class_names: tuple[str, ...], directory: Path, card: str
) -> None:
  """Writes the model directory, which `Detector.load` or `Segmenter.load` reads."""
  is_detector = kind_of(config) == 'detector'
  cls, judged = (Detector, {}) if is_detector else (Segmenter, test_view(config))
  found = cls.create(
    config.model.name,
    jax.device_get(variables),
    class_names,
    backbone=config.model.backbone.to_dict(),
    overrides=config.model.overrides.to_dict(),
    mean=tuple(config.data.mean),
    std=tuple(config.data.std),
    short=config.dense.test_short,
    long=config.dense.test_long,
    canvases=canvases_of(config),
    **judged,
  )
  found.save(directory, card=card, overwrite=True)


def initial(config: Config, num_classes: int) -> tuple[Tensors, str]:
  """Reads the backbone's weights from the classifier that `config.model.init` names.

  Args:
    config: the whole experiment configuration; `model.init` is not empty.
    num_classes: classes of the data.

  Returns:
    {'params/backbone/stem/conv1/kernel': array, ...}, and a line that says what was taken.

  Raises:
    UserError: no such model, or one that does not fit the config's.
  """
  classifier = Classifier.load(config.model.init)
  check_normalisation(classifier, config)
  tensors = {n: np.asarray(a) for n, a in model_dir.flatten(classifier.variables).items()}
  expected = model_dir.shapes(model_dir.abstract_tensors(create(config, num_classes)))
  taken, left = backbone_weights(tensors, expected)
  blocks = [n for n in left if n.split('/')[1] not in _BEHIND_MAPS]
  if blocks or not taken:
    raise UserError(
      f'model.init: {config.model.init} is {classifier.config.model} with overrides '
      f'{dict(classifier.config.overrides)}, which is not the backbone of {config.model.name} with '
      f'model.backbone {config.model.backbone.to_dict()}: {plural(len(blocks), "array")} do not '
      f'fit ({", ".join(blocks[:3])})'
    )
  count = sum(name.startswith(('params/backbone/', 'batch_stats/backbone/')) for name in expected)
  new = 'its output norms and the head start new' if len(taken) < count else 'the head starts new'
  return taken, (
    f'Starting from {config.model.init}: {len(taken)} of the {plural(count, "array")} of the '
    f'backbone; {new}'
  )


def backbone_weights(
  tensors: dict[str, np.ndarray], expected: dict[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], list[str]]:
  """The weights of a classifier under the names of a backbone.

  Args:
    tensors: {'params/stem/conv1/kernel': array} of the classifier.
    expected: {'params/backbone/stem/conv1/kernel': shape} of the dense model.

  Returns:
    What the dense model takes, under its names, and the names of the classifier's that it does not
    take: its head, and norms that stand elsewhere below a dense head.
  """
  taken, left = {}, []
  for name, array in tensors.items():
    collection, _, rest = name.partition('/')
    below = f'{collection}/backbone/{rest}'
    if expected.get(below) == array.shape:
      taken[below] = array
    else:
      left.append(name)
  return taken, left
