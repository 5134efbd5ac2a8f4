"""Training of classifiers, and of models that take noise out of images: what is theirs alone.

Each function answers for `purpose.Purpose`; a run may start from the weights of a model of the zoo,
a model directory or a PyTorch checkpoint (`model.init`).
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from rest_jax import data
from rest_jax.data import device
from rest_jax.data.device import normalise, to_unit
from rest_jax.errors import UserError
from rest_jax.models import create_model, model_dir
from rest_jax.models.classifier import Classifier
from rest_jax.models.compression import is_compressor
from rest_jax.models.model_config import ModelConfig, freeze_overrides
from rest_jax.models.pytorch import from_pytorch, load_state_dict
from rest_jax.models.pytorch_names import table_for, target
from rest_jax.text import plural
from rest_jax.train import freezing, parallel
from rest_jax.train.adversarial import adversarial_gradients, attack_for_evaluation
from rest_jax.train.config import Config
from rest_jax.train.denoising import denoising_gradients, denoising_sums
from rest_jax.train.evaluate import evaluate
from rest_jax.train.gradients import GradientFunction, plain_gradients
from rest_jax.train.losses import hits_at, smooth_one_hot, soft_cross_entropy
from rest_jax.train.optim import check_decay
from rest_jax.train.parallel import AXIS
from rest_jax.train.saliency import blur_background
from rest_jax.train.state import seed_keys
from rest_jax.train.totals import add, note_outputs

_HEAD = 'params/head/'
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Tensors = dict[str, np.ndarray]


def init_side(config: Config) -> int:
  """Pixels a side of the image that parameters are initialised on."""
  return config.data.image_size


def sizes(config: Config) -> str:
  """How large images are to the model, in words."""
  return str(config.data.image_size)


def check(config: Config) -> None:
  """Refuses a config that would fail later, before any data is opened.

  Raises:
    UserError: options that make no model, or a model directory that could not say how images look.
  """
  _check_model(config)
  _check_release(config)


def _check_model(config: Config) -> None:
  """Traces the model once, with two classes: those of the data are not known yet."""
  overrides = dict(config.model.overrides.to_dict())
  for name, whose in (('num_classes', "the data's"), ('bn_axis_name', 'train.sync_bn')):
    if name in overrides:
      raise UserError(f'model.overrides: {name!r} is {whose}; leave it out')
  if config.train.sync_bn:
    overrides['bn_axis_name'] = None  # whether the model knows it
  try:
    model = create_model(config.model.name, num_classes=2, **overrides)
    image = jax.ShapeDtypeStruct((1, *(config.data.image_size,) * 2, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, {'params': jax.random.key(0)}, image)['params']
  except UserError as error:
    raise UserError(f'{_described(config)}: {error}') from error
  except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(f'{_described(config)} make no model: {reason}') from error
  freezing.check_pattern(params, config.optim.freeze)
  check_decay(params, config.optim)


def _described(config: Config) -> str:
  return (
    f'model.name={config.model.name!r}, model.overrides={config.model.overrides.to_dict()} and '
    f'data.image_size={config.data.image_size}'
  )


def _check_release(config: Config) -> None:
  """What the model directory will say of the images must be what it can say."""
  try:
    ModelConfig(
      config.model.name,
      0,
      freeze_overrides(config.model.overrides.to_dict()),
      tuple(config.data.mean),
      tuple(config.data.std),
      config.data.image_size,
      config.data.eval_resize,
      config.data.eval_crop_pct,
      config.augment.interpolation,
    )
  except UserError as error:
    raise UserError(f'the model of this config could not be saved: {error}') from error


def create(config: Config, num_classes: int, axis: str | None = None) -> nn.Module:
  """The model outside of the mapped axis, or inside of it."""
  overrides = config.model.overrides.to_dict()
  if config.model.dtype != 'float32':
    overrides['dtype'] = jnp.dtype(config.model.dtype)
  if config.train.sync_bn and axis is not None:
    overrides['bn_axis_name'] = axis
  return create_model(config.model.name, num_classes=num_classes, **overrides)


def load_sources(config: Config) -> data.DataSources:
  """Opens the data set of a config.

  Raises:
    UserError: it is missing or damaged; the line says how to get it.
  """
  if config.data.cache and config.data.scaled_decoding:
    raise UserError(
      'data.scaled_decoding decodes files smaller, and data.cache keeps them decoded once: set one '
      'of them to False'
    )
  return data.load(
    config.data.name,
    data_dir=config.data.dir,
    train_split=config.data.train_split,
    val_split=config.data.val_split,
    test_split=config.data.test_split,
    cache=config.data.cache,
    on_error=config.data.on_error,
    labels=not config.denoise.noise,  # of images alone one folder will do
  )


def train_batches(config: Config, source: Any) -> Any:
  """Returns the endless iterator over this process's rows of augmented training batches."""
  augment = config.augment
  return data.train_iterator(
    source,
    batch_size=config.train.batch_size,
    image_size=config.data.image_size,
    augment=data.AugmentConfig(
      crop_scale=tuple(augment.crop_scale) or None,
      crop_ratio=tuple(augment.crop_ratio),
      padding=augment.padding,
      flip=augment.flip,
      color_jitter=tuple(augment.color_jitter) or (0.0, 0.0, 0.0),
      interpolation=augment.interpolation,
      rand_augment=augment.rand_augment,
      # The mean colour, as timm has it.
      fill=tuple(min(255, round(255 * level)) for level in config.data.mean),
      scaled_decoding=config.data.scaled_decoding,
    ),
    seed=config.seed,
    workers=config.data.workers,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    repeats=augment.repeats,
    on_error=config.data.on_error,
  )


def test_batches(config: Config, source: Any) -> Any:
  """Returns this process's rows of all test batches, padded and masked."""
  return data.eval_batches(
    source,
    batch_size=config.data.eval_batch_size or config.train.batch_size,
    image_size=config.data.image_size,
    resize=config.data.eval_resize,
    crop_pct=config.data.eval_crop_pct,
    interpolation=config.augment.interpolation,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    on_error=config.data.on_error,
  )


def inputs(
  config: Config, num_classes: int, model: nn.Module, variables: Any, batch: Batch, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Images as the loss takes them, and their targets.

  Args:
    config: the whole experiment configuration.
    num_classes: K.
    model: what Group-CAM explains.
    variables: of it.
    batch: a device's slice: 'image' uint8 (b, H, W, 3), 'label' int32 (b,).
    key: of this step and device.

  Returns:
    Images float32 (b, H, W, 3), normalised, but in [0, 1] for adversarial losses, and targets
    float32 (b, K).
  """
  classify = Partial(functools.partial(_logits, model, config), variables)
  images, targets = augment_on_device(key, batch, config, num_classes, classify)
  if config.adversarial.kind:
    return jnp.clip(images, 0.0, 1.0), targets  # the noise of random erasing goes beyond
  return normalise(images, config.data.mean, config.data.std), targets


def augment_on_device(
  key: jax.Array,
  batch: Batch,
  config: Config,
  num_classes: int,
  classify: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Group-CAM's blurring, random erasing, then mixup or cutmix (timm's order).

  Args:
    key: random key of this step and device.
    batch: 'image' uint8 (B, H, W, 3), 'label' int32 (B,).
    config: the whole experiment configuration.
    num_classes: K.
    classify: images in [0, 1] to logits, what Group-CAM explains; needed where it is on.

  Returns:
    Images float32 (B, H, W, 3) in [0, 1] and targets float32 (B, K).
  """
  augment, mean, std = config.augment, tuple(config.data.mean), tuple(config.data.std)
  images = to_unit(batch['image'])
  targets = smooth_one_hot(batch['label'], num_classes, augment.label_smoothing)
  if augment.group_cam and classify is not None:
    images = blur_background(classify, images, batch['label'], augment)
  erase_key, mix_key = jax.random.split(key)
  if augment.erasing:
    images = device.random_erasing(erase_key, images, augment.erasing, mean=mean, std=std)
  if augment.mixup or augment.cutmix:
    images, targets = device.mixup_cutmix(
      mix_key,
      images,
      targets,
      mixup_alpha=augment.mixup,
      cutmix_alpha=augment.cutmix,
      switch_prob=augment.switch_prob,
      prob=augment.mix_prob,
    )
  return images, targets


def gradients(model: nn.Module, config: Config) -> GradientFunction:
  """Builds the gradient function of the config's loss.

  Its images are as `inputs` gives them. Loss and gradients are means over all rows.
  """
  if config.denoise.noise:
    return denoising_gradients(model, config)
  return adversarial_gradients(model, config) if config.adversarial.kind else plain_gradients(model)


def _logits(model: nn.Module, config: Config, variables: Any, images: jax.Array) -> jax.Array:
  """Logits of images in [0, 1], in evaluation mode."""
  images = normalise(images, config.data.mean, config.data.std)
  return jnp.asarray(model.apply(variables, images, train=False))


def make_eval_step(model: nn.Module, config: Config) -> Callable[[Any, Batch, Metrics], Metrics]:
  """Builds the evaluation step of one device.

  Args:
    model: Linen module without a batch-norm axis.
    config: the whole experiment configuration.

  Returns:
    Function (variables, batch, totals) -> totals to be mapped over `AXIS`. The batch has a bool
    'mask' (b,), False for padding. The totals are sums over all real examples seen so far:
    count, top1, top5 (int32) and loss (float32 in two parts, `totals.add`); robust_top1 (int32)
    where `config.adversarial.eval_steps` is set: right before and after the attack. Of a model that
    takes noise out of images (`config.denoise.noise`) they are `denoising_sums`'. Outputs that are
    not finite are counted (`totals.note_outputs`) and no hits. `evaluate.zero_totals` begins them.
  """

  def step(variables: Any, batch: Batch, totals: Metrics) -> Metrics:
    def classify(images):
      return jnp.asarray(_logits(model, config, variables, images), jnp.float32)

    images, mask, labels = to_unit(batch['image']), batch['mask'], batch['label']
    logits = classify(images)
    losses = soft_cross_entropy(logits, smooth_one_hot(labels, logits.shape[-1]))
    sums = {
      'count': jnp.sum(mask.astype(jnp.int32)),
      'top1': jnp.sum((mask & hits_at(logits, labels, 1)).astype(jnp.int32)),
      'top5': jnp.sum((mask & hits_at(logits, labels, 5)).astype(jnp.int32)),
      'loss': jnp.sum(jnp.where(mask, losses, 0.0)),
    }
    outputs = [logits]
    if config.adversarial.eval_steps:
      keys = _image_keys(config.seed, totals['count'], labels.shape[0])
      attacked = classify(attack_for_evaluation(classify, images, labels, keys, config))
      robust = mask & hits_at(logits, labels, 1) & hits_at(attacked, labels, 1)
      sums['robust_top1'] = jnp.sum(robust.astype(jnp.int32))
      outputs.append(attacked)
    return _added(totals, sums, outputs, mask)

  def denoise(variables: Any, batch: Batch, totals: Metrics) -> Metrics:
    keys = _image_keys(config.seed, totals['count'], batch['mask'].shape[0])
    batch = batch | {'image': to_unit(batch['image'])}
    sums, outputs = denoising_sums(model, config, variables, batch, keys)
    return _added(totals, sums, [outputs], batch['mask'])

  return denoise if config.denoise.noise else step


def _added(totals: Metrics, sums: Metrics, outputs: list[jax.Array], mask: jax.Array) -> Metrics:
  """The totals with this batch's sums of every device."""
  everywhere = jax.lax.psum(sums, AXIS)
  new = {name: add(totals[name], value) for name, value in everywhere.items()}
  return totals | new | note_outputs(totals, outputs, mask, AXIS)


def _image_keys(seed: int, seen: jax.Array, rows: int) -> jax.Array:
  """A key an image, by its place in the split: the same for any number of devices."""
  _, key = seed_keys(seed)
  places = seen + jax.lax.axis_index(AXIS) * rows + jnp.arange(rows, dtype=jnp.int32)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, places)


def measuring(
  model: nn.Module, config: Config, mesh: Mesh, class_names: Sequence[str]
) -> tuple[Callable[..., Any], Callable[[Any, Any], dict[str, Any]]]:
  """The evaluation step, and what measures weights on a split with it; compiles nothing yet."""
  step = parallel.map_eval_step(make_eval_step(model, config), mesh)
  robust, denoising = bool(config.adversarial.eval_steps), bool(config.denoise.noise)

  def measure(variables: Any, source: Any) -> dict[str, Any]:
    batches = test_batches(config, source)
    return evaluate(step, variables, batches, mesh, robust, denoising)

  return step, measure


def initial(config: Config, num_classes: int) -> tuple[Tensors, str]:
  """Reads the weights that `config.model.init` names.

  The head is left out where it is for another number of classes: the new one starts at random.
  Layers of band compression start new where the weights are of a model without.
  Images may be of another size than the weights were trained with.

  Args:
    config: the whole experiment configuration; `model.init` is not empty.
    num_classes: classes of the data.

  Returns:
    {'params/stem/conv1/kernel': array, ...}, and a line that says what was taken.

  Raises:
    UserError: no such model, or one that does not fit the config's.
  """
  name, overrides = config.model.name, config.model.overrides.to_dict()
  init = config.model.init
  model = create_model(name, num_classes, **overrides)
  if (file := model_dir.checkpoint(init)) is not None:
    tensors = _from_checkpoint(file, name, num_classes, overrides)
  else:
    tensors = _from_classifier(init, config, model)
  head = 'its head too' if any(n.startswith(_HEAD) for n in tensors) else 'but a new head'
  new = [n for n in model_dir.abstract_tensors(model) if is_compressor(n) and n not in tensors]
  compression = f'; band compression starts new ({plural(len(new), "array")})' if new else ''
  return tensors, (
    f'Starting from {init}: {plural(len(tensors), "array")}, {head} for '
    f'{plural(num_classes, "class")}{compression}'
  )


def _from_checkpoint(path: Path, name: str, num_classes: int, overrides: dict[str, Any]) -> Tensors:
  state_dict = load_state_dict(path)
  model = create_model(name, num_classes, **overrides)
  prefix = target(f'{_HEAD}bias', table_for(model)).torch_name.removesuffix('bias')
  bias = state_dict.get(f'{prefix}bias')
  if bias is None or bias.shape != (num_classes,):
    state_dict = {n: a for n, a in state_dict.items() if not n.startswith(prefix)}
    model = create_model(name, 0, **overrides)
  try:
    variables = from_pytorch(state_dict, model)
  except UserError as error:
    raise UserError(f'model.init: {path} does not fit {name}: {error}') from error
  flat = model_dir.flatten(variables)
  return {n: np.asarray(a) for n, a in flat.items() if not is_compressor(n)}


def _from_classifier(init: str, config: Config, model: nn.Module) -> Tensors:
  classifier = Classifier.load(init)
  tensors = {n: np.asarray(a) for n, a in model_dir.flatten(classifier.variables).items()}
  found = model_dir.shapes(tensors)
  expected = model_dir.shapes(model_dir.abstract_tensors(model))
  if any(found.get(n) != shape for n, shape in expected.items() if n.startswith(_HEAD)):
    found, expected = _without_head(found), _without_head(expected)
  if not any(map(is_compressor, found)):
    expected = {n: shape for n, shape in expected.items() if not is_compressor(n)}
  wrong = model_dir.misfits(expected, found)
  if wrong:
    own, wrong = dict(classifier.config.overrides), textwrap.shorten(wrong, 200, placeholder=' ...')
    raise UserError(
      f'model.init: {init} is {classifier.config.model} with overrides {own}, which does not fit '
      f'{config.model.name} with {config.model.overrides.to_dict()}; give the same model.name and '
      f'model.overrides ({wrong})'
    )
  check_normalisation(classifier, config)
  return {n: tensors[n] for n in found}


def _without_head(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
  return {n: shape for n, shape in shapes.items() if not n.startswith(_HEAD)}


def check_normalisation(classifier: Classifier, config: Config) -> None:
  """Raises `UserError` where the classifier of `model.init` saw images normalised otherwise."""
  own = (tuple(config.data.mean), tuple(config.data.std))
  if not np.allclose((classifier.mean, classifier.std), own):
    raise UserError(
      f'model.init: {config.model.init} was trained on images normalised with mean '
      f'{classifier.mean} and std {classifier.std}; set data.mean and data.std to these'
    )


def release(
  config: Config, variables: Any, class_names: tuple[str, ...], directory: Path, card: str
) -> None:
  """Writes the model directory, which `Classifier.load` reads."""
  if config.denoise.noise:
    class_names = ()  # it gives images
  classifier = Classifier.create(
    config.model.name,
    jax.device_get(variables),
    num_classes=len(class_names),
    overrides=config.model.overrides.to_dict(),
    class_names=class_names,
    mean=tuple(config.data.mean),
    std=tuple(config.data.std),
    input_size=config.data.image_size,
    resize=config.data.eval_resize,
    crop_pct=config.data.eval_crop_pct,
    interpolation=config.augment.interpolation,
  )
  classifier.save(directory, card=card, overwrite=True)
