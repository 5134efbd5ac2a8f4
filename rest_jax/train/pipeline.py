"""From a config to its checks at the start, to data sources, batches and the plan of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rest_jax import data, hub
from rest_jax.data.source import label_of
from rest_jax.errors import UserError
from rest_jax.models import model_dir
from rest_jax.train.config import Config
from rest_jax.train.parallel import check_batch
from rest_jax.train.purpose import purpose_of


@dataclasses.dataclass(frozen=True)
class Plan:
  """When what happens in a run.

  Attributes:
    total: number of training steps.
    steps_per_epoch: training images / batch size; batches run on over the end of an epoch.
    evaluations: steps after which the model is evaluated; the last one always is.
    agree_every: with several processes, steps between questions whether one wants to stop.
  """

  total: int
  steps_per_epoch: float
  evaluations: frozenset[int]
  agree_every: int

  def may_agree(self, step: int) -> bool:
    """Whether the processes may exchange decisions after this step."""
    return step % self.agree_every == 0 or step in self.evaluations

  def epoch(self, step: int) -> float:
    """Returns the number of passes over the training images after `step` steps."""
    return step / self.steps_per_epoch


def check_start(config: Config, mesh: Mesh) -> None:
  """Refuses a config that would fail later.

  Args:
    config: from `check_config`.
    mesh: the devices.

  Raises:
    UserError: batches that do not divide over the devices; an unknown model or override, or a model
      that does not take images of this size; a pattern of `optim.freeze` that matches nothing or
      everything; `optim.layer_decay` for a model without stages of blocks; no model of the name
      `model.init`.
  """
  _check_batches(config, mesh)
  purpose_of(config).check(config)
  init = config.model.init
  if (
    init
    and not hub.is_remote(init)
    and not Path(init).exists()
    and init not in model_dir.zoo_names()
  ):
    raise UserError(
      f'model.init: there is no file, model directory or zoo model {init!r}; the zoo has '
      f'{", ".join(model_dir.zoo_names())}'
    )


def _check_batches(config: Config, mesh: Mesh) -> None:
  """Raises `UserError` for batches that do not divide over the devices."""
  train = config.train
  check_batch(train.batch_size, train.accumulate, mesh, 'train.batch_size')
  check_batch(config.data.eval_batch_size or train.batch_size, 1, mesh, 'data.eval_batch_size')


def make_plan(config: Config, train_examples: int, mesh: Mesh) -> Plan:
  """Counts steps, and checks that the batches divide over the devices.

  Args:
    config: the whole experiment configuration.
    train_examples: images in the training split.
    mesh: the devices.

  Returns:
    The plan.

  Raises:
    UserError: a batch that does not divide.
  """
  train, batch = config.train, config.train.batch_size
  _check_batches(config, mesh)
  steps_per_epoch = train_examples / batch
  total = max(round(train.epochs * steps_per_epoch), 1)
  if total >= 2**31:
    raise UserError(f'train.epochs={train.epochs} are {total} steps; it takes fewer than 2**31')
  # More evaluations than steps are one after each step.
  count = int(min(train.epochs / train.eval_every + 1e-6, total))
  every = max(train.eval_every, train.epochs / total)
  marks = {round(i * every * steps_per_epoch) for i in range(1, count + 1)}
  several = jax.process_count() > 1
  return Plan(
    total=total,
    steps_per_epoch=steps_per_epoch,
    evaluations=frozenset({mark for mark in marks if 0 < mark < total} | {total}),
    agree_every=config.log.every if several else 1,
  )


def class_weights(config: Config, sources: data.DataSources) -> tuple[float, ...] | None:
  """The weights of the classes in the loss.

  Args:
    config: the whole experiment configuration.
    sources: from `load_sources`; the labels of its training images are counted.

  Returns:
    None where `train.class_weights` is empty. 'balanced' is N / (K n_c), as scikit-learn has it:
    all classes weigh the same together, and the mean over the images is 1. A class without images
    weighs nothing.
  """
  if not config.train.class_weights:
    return None
  count = len(sources.class_names)
  labels = [label_of(sources.train, index) for index in range(len(sources.train))]
  there = np.bincount(labels, minlength=count)
  weights = len(labels) / (np.count_nonzero(there) * np.maximum(there, 1)) * (there > 0)
  return tuple(float(weight) for weight in weights)


def load_sources(config: Config) -> data.DataSources:
  """Opens the data set of a config.

  Raises:
    UserError: it is missing or damaged; the line says how to get it.
  """
  return purpose_of(config).load_sources(config)


def train_batches(config: Config, source: Any) -> Any:
  """Returns the endless iterator over this process's rows of augmented training batches."""
  return purpose_of(config).train_batches(config, source)


def test_batches(config: Config, source: Any) -> Any:
  """Returns all test batches, padded and masked: of a classifier this process's rows of them."""
  return purpose_of(config).test_batches(config, source)
