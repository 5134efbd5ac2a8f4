"""Weights to start a training from: a model of the zoo, a model directory, a PyTorch checkpoint."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from rest_jax.errors import UserError
from rest_jax.models import create_model, model_dir
from rest_jax.models.classifier import Classifier
from rest_jax.models.compression import is_compressor
from rest_jax.models.convert import from_pytorch, load_state_dict
from rest_jax.models.convert_tables import table_for, target
from rest_jax.text import plural
from rest_jax.train.config import Config

_HEAD = 'params/head/'
Tensors = dict[str, np.ndarray]


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
