"""The compiled parts of a run: initialisation, training step, evaluation step.

A run may start from the weights of a model of the zoo, a model directory or a PyTorch checkpoint
(`model.init`).
"""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rest_jax.errors import UserError
from rest_jax.models import create_model, model_dir
from rest_jax.models.classifier import Classifier
from rest_jax.models.compression import is_compressor
from rest_jax.models.pytorch import from_pytorch, load_state_dict
from rest_jax.models.pytorch_names import table_for, target
from rest_jax.text import plural
from rest_jax.train import dense, dense_evaluate, freezing, parallel, pipeline
from rest_jax.train.config import Config
from rest_jax.train.evaluate import evaluate
from rest_jax.train.optim import check_decay, depths_of, make_optimizer, make_schedule
from rest_jax.train.pipeline import Plan
from rest_jax.train.processes import is_main
from rest_jax.train.state import TrainState, create_state
from rest_jax.train.step import AXIS, make_eval_step, make_train_step, seed_keys

_HEAD = 'params/head/'
# Layers of classifiers behind the last map, which a dense head does not stand on.
_BEHIND_MAPS = ('norm', 'neck', 'fc1', 'fc2', 'head')
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Task:
  """What the loop calls; every function compiles once.

  Attributes:
    mesh: the devices.
    create: () -> TrainState at step 0, replicated.
    template: shapes and dtypes of the state.
    train_step: (state, global batch) -> (state, metrics); uses the state up.
    eval_step: (variables, global batch, totals) -> totals; of a detector or segmenter (variables,
      images, sizes) -> its outputs.
    measure: (variables, source) -> result, see `rest_jax.train.measured`.
  """

  mesh: Mesh
  create: Callable[[], TrainState]
  template: TrainState
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]
  measure: Callable[[Any, Any], dict[str, Any]]


def build_task(
  config: Config,
  plan: Plan,
  mesh: Mesh,
  class_names: Sequence[str],
  class_weights: Sequence[float] | None = None,
) -> Task:
  """Builds model, optimizer and mapped steps of a config; compiles nothing yet.

  Args:
    config: the whole experiment configuration.
    plan: from `pipeline.make_plan`.
    mesh: from `parallel.make_mesh`.
    class_names: one a class.
    class_weights: one a class, or None for equal ones.

  Returns:
    The task.

  Raises:
    UserError: unknown model or overrides.
  """
  # Only the training step runs inside the mapped axis that synchronised batch norm needs.
  model, trained = (_model(config, len(class_names), axis) for axis in (None, AXIS))
  schedule = make_schedule(
    config.optim,
    batch_size=config.train.batch_size,
    steps_per_epoch=plan.steps_per_epoch,
    total=plan.total,
  )
  optimizer = _optimizer(config, model, schedule)
  create = functools.partial(_create, model, optimizer, config)
  template = jax.eval_shape(create)
  spec, sharding = parallel.state_spec(template), parallel.state_sharding(template, mesh)
  compiled = parallel.replicate(create, mesh, sharding)

  def start() -> TrainState:
    if not config.model.init:
      return compiled()
    weights, what = load_initial(config, len(class_names))
    if is_main():
      print(what, flush=True)
    return compiled(weights)

  eval_step, measure = _measure(model, config, mesh, class_names)
  step = make_train_step(trained, optimizer, schedule, config, len(class_names), class_weights)
  return Task(
    mesh=mesh,
    create=start,
    template=template,
    train_step=parallel.map_train_step(step, mesh, spec),
    eval_step=eval_step,
    measure=measure,
  )


def _model(config: Config, num_classes: int, axis: str | None) -> nn.Module:
  """The model outside of the mapped axis, or inside of it."""
  if dense.kind_of(config):
    return dense.create(config, num_classes, axis)
  overrides = config.model.overrides.to_dict()
  if config.model.dtype != 'float32':
    overrides['dtype'] = jnp.dtype(config.model.dtype)
  if config.train.sync_bn and axis is not None:
    overrides['bn_axis_name'] = axis
  return create_model(config.model.name, num_classes=num_classes, **overrides)


def _measure(
  model: nn.Module, config: Config, mesh: Mesh, class_names: Sequence[str]
) -> tuple[Callable[..., Any], Callable[[Any, Any], dict[str, Any]]]:
  """The evaluation step, and what measures weights on a split with it; compiles nothing yet."""
  if dense.kind_of(config):
    return _measure_dense(model, config, mesh, class_names)
  step = parallel.map_eval_step(make_eval_step(model, config), mesh)
  robust, denoising = bool(config.adversarial.eval_steps), bool(config.denoise.noise)

  def measure(variables: Any, source: Any) -> dict[str, Any]:
    batches = pipeline.test_batches(config, source)
    return evaluate(step, variables, batches, mesh, robust, denoising)

  return step, measure


def _measure_dense(
  model: nn.Module, config: Config, mesh: Mesh, class_names: Sequence[str]
) -> tuple[Callable[..., Any], Callable[[Any, Any], dict[str, Any]]]:
  """As `_measure`, of a detector or a segmenter."""
  own, kind = dense_evaluate.local_mesh(mesh), dense.kind_of(config)
  step = dense_evaluate.make_step(model, kind, config.data.mean, config.data.std, own)
  masks = dense.data_kind(config) == 'masks'

  def measure(variables: Any, source: Any) -> dict[str, Any]:
    weights = dense_evaluate.replicated(variables, own)
    batches = dense.test_batches(config, source)
    if kind == 'detector':
      return dense_evaluate.judge_detector(step, weights, batches, class_names, masks)
    options: Any = {'scales': config.dense.test_scales, 'mirrored': config.dense.test_flip}
    return dense_evaluate.judge_segmenter(step, weights, batches, class_names, **options)

  return step, measure


def _create(model: nn.Module, optimizer: Any, config: Config, start: Any = None) -> TrainState:
  key, _ = seed_keys(config.seed)
  return create_state(
    model,
    optimizer,
    key,
    dense.INIT_SIDE if dense.kind_of(config) else config.data.image_size,
    ema=bool(config.train.ema),
    start=start,
    freeze=config.optim.freeze,
    free_batch=config.train.batch_size if config.adversarial.kind == 'free' else 0,
  )


def _optimizer(
  config: Config, model: nn.Module, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """The optimizer; where it goes by the names of parameters, they are checked first."""
  optim, adversarial, depths = config.optim, config.adversarial, ()
  if optim.freeze or optim.layer_decay != 1.0 or optim.stage_decay != 1.0:
    image = jax.ShapeDtypeStruct((1, *(config.data.image_size,) * 2, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, {'params': jax.random.key(0)}, image)['params']
    freezing.check_pattern(params, optim.freeze)
    check_decay(params, optim)
    depths = depths_of(params) if optim.layer_decay != 1.0 else ()
  # Free training updates several times a step; all of them have the step's learning rate.
  replays = adversarial.replays if adversarial.kind == 'free' else 1
  by_update = schedule if replays == 1 else lambda count: schedule(count // replays)
  return make_optimizer(optim, by_update, depths)


def load_initial(config: Config, num_classes: int) -> tuple[Tensors, str]:
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
  if dense.kind_of(config):
    return _initial_dense(config, num_classes)
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


def _initial_dense(config: Config, num_classes: int) -> tuple[Tensors, str]:
  """The backbone from a classifier; as `load_initial`."""
  classifier = Classifier.load(config.model.init)
  _check_normalisation(classifier, config)
  tensors = {n: np.asarray(a) for n, a in model_dir.flatten(classifier.variables).items()}
  expected = model_dir.shapes(model_dir.abstract_tensors(dense.create(config, num_classes)))
  taken, left = dense.backbone_weights(tensors, expected)
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
  _check_normalisation(classifier, config)
  return {n: tensors[n] for n in found}


def _without_head(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
  return {n: shape for n, shape in shapes.items() if not n.startswith(_HEAD)}


def _check_normalisation(classifier: Classifier, config: Config) -> None:
  own = (tuple(config.data.mean), tuple(config.data.std))
  if not np.allclose((classifier.mean, classifier.std), own):
    raise UserError(
      f'model.init: {config.model.init} was trained on images normalised with mean '
      f'{classifier.mean} and std {classifier.std}; set data.mean and data.std to these'
    )
