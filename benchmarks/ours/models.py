"""Forward passes, gradients and whole training steps of the library's models."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.ours.programs import count, program
from benchmarks.photographs import write_photographs
from benchmarks.work import Work
from rest_jax.models import create_model
from rest_jax.ops import use_form

ROOT = Path(__file__).resolve().parents[2]


def weights(module: Any, *shape: int, **arguments: Any) -> Any:
  """Variables for images of a shape, of noise: what they are does not change a time.

  Compiling the initialisers takes longer than anything that is measured here.
  """
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  given = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **arguments), images)
  rng = np.random.default_rng(0)
  found = {path: _leaf(path[-1], spec, rng) for path, spec in flatten_dict(given).items()}
  return unflatten_dict(found)


def filled(state: Any) -> Any:
  """A training state of noise for a template: compiling its initialisers takes long."""
  rng = np.random.default_rng(0)

  def fill(path, spec):
    names = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
    if 'opt_state' in names:
      return jnp.zeros(spec.shape, spec.dtype)
    return _leaf(names[-1], spec, rng)

  return jax.tree_util.tree_map_with_path(fill, state)


def _leaf(name: str, spec: Any, rng: np.random.Generator) -> jax.Array:
  if re.fullmatch(r'scale|var|gamma', name):
    return jnp.ones(spec.shape, spec.dtype)
  if not jnp.issubdtype(spec.dtype, jnp.floating) or re.fullmatch(r'bias|mean', name):
    return jnp.zeros(spec.shape, spec.dtype)
  return jnp.asarray(0.02 * rng.standard_normal(spec.shape, np.float32), spec.dtype)


def noise(batch: int, size: int, dtype: str = 'float32') -> jax.Array:
  """Images (batch, size, size, 3) with the mean and the deviation that models see."""
  images = np.random.default_rng(1).standard_normal((batch, size, size, 3), np.float32)
  return jnp.asarray(images, dtype)


def build(name: str, dtype: str, overrides: Mapping[str, Any] | None = None) -> Any:
  """A module that computes in a dtype."""
  more = {} if dtype == 'float32' else {'dtype': jnp.dtype(dtype)}
  return create_model(name, **{**(overrides or {}), **more})


def forward(
  model: str, batch: int, size: int, dtype: str = 'float32', overrides: Any = None
) -> Work:
  """Logits in evaluation mode."""
  module = build(model, dtype, overrides)
  variables = weights(module, 1, size, size, 3)
  return program(lambda v, x: module.apply(v, x, train=False), variables, noise(batch, size))


def gradient(
  model: str, batch: int, size: int, dtype: str = 'float32', overrides: Any = None
) -> Work:
  """The gradient of all parameters in training mode."""
  module = build(model, dtype, overrides)
  variables = weights(module, 1, size, size, 3)
  params = variables.pop('params')

  def loss(params, rest, images):
    logits, new = module.apply(
      {**rest, 'params': params},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), new

  return program(jax.grad(loss, has_aux=True), params, variables, noise(batch, size))


def step(
  model: str, batch: int, size: int, dtype: str, most: int = 4096, overrides: Any = None
) -> Work:
  """The whole training step of configs/MODEL.py.

  Args:
    model: name of a config.
    batch: images; 0: the largest power of two that the device holds (`largest`).
    size: pixels a side.
    dtype: computing dtype.
    most: largest batch that is tried.
    overrides: attributes of the model that differ from the config's.
  """
  if batch:
    run = TrainingStep(model, batch, size, dtype, overrides)
  else:
    run = largest(model, size, dtype, most)
  return Work(run, run.facts)


def fed(model: str, batch: int, size: int, dtype: str, pictures: int, workers: int) -> Work:
  """The training step with the input pipeline in front: JPEGs read, decoded, augmented."""
  run = FedStep(model, batch, size, dtype, pictures, workers)
  return Work(run, run.facts, run.close)


def largest(model: str, size: int, dtype: str, most: int) -> TrainingStep:
  """The step at the largest power of two of images that the device holds, run once.

  Compiling takes minutes on some devices, so the search begins where what a gradient keeps of the
  forward pass would fill the memory, and halves from there until a step runs.

  Raises:
    JaxRuntimeError: not even one image fits, or something else is wrong.
  """
  limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', 2**31)
  batch = min(2 ** int(np.log2(max(limit / kept_bytes(model, size, dtype), 1))), most)
  while True:
    try:
      run = TrainingStep(model, batch, size, dtype)
      run()
      return run
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error) or batch == 1:
        raise
    run, batch = None, batch // 2  # its memory is the next one's


def kept_bytes(model: str, size: int, dtype: str) -> int:
  """Bytes of an image that a gradient of a config's model keeps of the forward pass, as traced."""
  settings = configured(model, 1, size, dtype).model
  module = build(settings.name, dtype, settings.overrides.to_dict())
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)
  params = variables.pop('params')

  def kept(params, rest, images):
    keys = {'dropout': jax.random.key(0)}
    apply = functools.partial(module.apply, train=True, mutable=['batch_stats'], rngs=keys)
    _, pull, _ = jax.vjp(lambda p: apply({**rest, 'params': p}, images), params, has_aux=True)
    return pull

  held = jax.eval_shape(kept, params, variables, images)
  return max(_bytes(held) - _bytes(params), 1)


def _bytes(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def configured(model: str, batch: int, size: int, dtype: str, overrides: Any = None) -> Any:
  """The config configs/MODEL.py for a batch on one device."""
  from rest_jax.train.command import load_config

  config = load_config(ROOT / 'configs' / f'{model}.py')
  with config.unlocked():
    config.model.dtype, config.data.image_size = dtype, size
    config.model.overrides = overrides or config.model.overrides
    config.train.batch_size = config.data.eval_batch_size = batch
    config.train.accumulate = 1
  return config


class TrainingStep:
  """A compiled training step with its state and a batch on the device."""

  def __init__(self, model: str, batch: int, size: int, dtype: str, overrides: Any = None):
    from rest_jax.train import parallel, pipeline
    from rest_jax.train.task import build_task

    config = configured(model, batch, size, dtype, overrides)
    self.config, self.mesh, self.size = config, parallel.make_mesh(jax.devices()[:1]), size
    plan = pipeline.make_plan(config, 1_281_167, self.mesh)
    self.task = build_task(config, plan, self.mesh, tuple(map(str, range(1000))))
    rng = np.random.default_rng(0)
    rows = {
      'image': rng.integers(0, 256, (batch, size, size, 3), np.uint8),
      'label': rng.integers(0, 1000, batch).astype(np.int32),
    }
    self.batch = parallel.to_global(rows, self.mesh)
    replicated = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
    self.state = jax.device_put(filled(self.task.template), replicated)

  def __call__(self) -> None:
    self.state, metrics = self.task.train_step(self.state, self.batch)
    jax.block_until_ready(metrics)

  def facts(self) -> dict[str, Any]:
    """The batch, and the usual count of a step's operations: three forward passes'."""
    module = create_model(self.config.model.name, **self.config.model.overrides.to_dict())
    images = jax.ShapeDtypeStruct((1, self.size, self.size, 3), jnp.float32)
    with use_form('plain'):
      variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)
      lowered = jax.jit(lambda v, x: module.apply(v, x, train=False)).lower(variables, images)
    batch = self.config.train.batch_size
    return {'batch': batch, 'flops': 3 * batch * count(lowered, 'flops'), 'loops': False}


class FedStep(TrainingStep):
  """The same, where each call reads a batch first."""

  def __init__(self, model: str, batch: int, size: int, dtype: str, pictures: int, workers: int):
    from rest_jax.train import pipeline

    super().__init__(model, batch, size, dtype)
    self.folder = tempfile.TemporaryDirectory()
    write_photographs(Path(self.folder.name), pictures, (500, 375))
    with self.config.unlocked():
      self.config.data.name, self.config.data.workers = self.folder.name, workers
    sources = pipeline.load_sources(self.config)
    self.batches = pipeline.train_batches(self.config, sources.train)

  def __call__(self) -> None:
    from rest_jax.train import parallel

    self.batch = parallel.to_global(next(self.batches), self.mesh)
    super().__call__()

  def close(self) -> None:
    """Ends the workers that read."""
    self.batches.close()
    self.folder.cleanup()
