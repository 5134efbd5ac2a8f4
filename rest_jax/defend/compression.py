"""Measuring band energies inside a classifier, and Wiener gains from them.

The layer itself is `rest_jax.models.compression.BandCompression`; `create_model(...,
compression=...)` puts it behind stages. Here are the parts that need a classifier and images.

Our reading of arXiv 2012.09384, section on adaptive compression (see there): for a feature X and a
perturbation D of it that are uncorrelated, the gain per band and channel that recovers X from X + D
with the least squared error is Wiener's S / (S + N), S and N the energies of X and D in the band.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rest_jax.errors import UserError
from rest_jax.layers import Call, run_through
from rest_jax.models import model_dir
from rest_jax.models.classifier import Classifier
from rest_jax.models.compression import (
  PREFIX,
  BandCompression,
  Compression,
  is_compressor,
  parse_compression,
)
from rest_jax.ops.bands import band_energies
from rest_jax.ops.platform import jit

__all__ = [
  'BandCompression',
  'BandEnergies',
  'Compression',
  'add_compression',
  'measure_bands',
  'wiener_gains',
  'with_wiener_gains',
]


class BandEnergies(NamedTuple):
  """Energies per band and channel, means over images of sums over the plane.

  Attributes:
    clean: float64 (K, C), of the features of clean images.
    noise: float64 (K, C), of the difference that the perturbation makes to the features.
  """

  clean: np.ndarray
  noise: np.ndarray


def add_compression(
  classifier: Classifier, compression: Any, *, key: jax.Array | None = None
) -> Classifier:
  """The same classifier with new compression layers; what it had of them is dropped.

  Args:
    classifier: of a backbone here.
    compression: a strategy or options, as `create_model` takes them; None or 'none' for none.
    key: of the layers' random initial values ('learned'); `jax.random.key(0)` by default.

  Returns:
    A classifier. For 'soft_threshold' and 'wiener' it computes what the old one did, to the bit.

  Raises:
    UserError: unknown options, or a model without stages.
  """
  config = classifier.config
  overrides = {k: v for k, v in config.overrides if k != 'compression'}
  if parse_compression(compression) is not None:
    overrides['compression'] = compression
  old = model_dir.flatten(classifier.variables)
  kept = {path: leaf for path, leaf in old.items() if not is_compressor(path)}
  options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  for name in ('model', 'num_classes', 'overrides'):
    del options[name]
  new = Classifier.create(
    config.model,
    {},
    num_classes=config.num_classes,
    overrides=overrides,
    class_names=classifier.class_names,
    **options,
  )
  fresh = _fresh(new.module, jax.random.key(0) if key is None else key)
  return dataclasses.replace(new, variables=model_dir.unflatten(kept | fresh))


def _fresh(module: nn.Module, key: jax.Array) -> dict[str, jax.Array]:
  """Initial values of the compression layers; the compiler leaves the rest of the model out."""

  @jit
  def initialise(key):
    images = jnp.zeros((1, 64, 64, getattr(module, 'in_channels', 3)))
    flat = model_dir.flatten(module.init({'params': key}, images, train=False))
    return {path: leaf for path, leaf in flat.items() if is_compressor(path)}

  return initialise(key)


def measure_bands(
  classifier: Classifier,
  clean: jax.Array | np.ndarray,
  perturbed: jax.Array | np.ndarray,
  *,
  batch_size: int = 64,
) -> dict[int, BandEnergies]:
  """Energies of the features that enter each compression layer.

  The layers' own effect on later stages is included, as they are now.

  Args:
    classifier: one with compression.
    clean: floats (N, H, W, 3) in [0, 1], N of 1 or more.
    perturbed: the same images after an attack.
    batch_size: images a forward pass.

  Returns:
    {stage: BandEnergies}, in the bands of the classifier's options.

  Raises:
    UserError: no compression, or images of different shapes.
  """
  options = _options(classifier)
  clean, perturbed = np.asarray(clean), np.asarray(perturbed)
  if clean.shape != perturbed.shape or not len(clean):
    raise UserError(
      f'clean and perturbed images have one shape (N, H, W, C), not {clean.shape} and '
      f'{perturbed.shape}'
    )
  total: Any = None
  for start in range(0, len(clean), batch_size):
    rows = slice(start, start + batch_size)
    # One size, hence one compilation; what fills up the last batch does not count.
    count = len(clean[rows])
    short = batch_size - count if start else 0
    pair = [np.pad(x[rows], ((0, short), (0, 0), (0, 0), (0, 0))) for x in (clean, perturbed)]
    found = jax.device_get(_energies(classifier, options, *pair))
    found = jax.tree.map(lambda e, count=count: np.sum(e[:count], axis=0, dtype=np.float64), found)
    total = found if total is None else jax.tree.map(np.add, total, found)
  return {s: BandEnergies(*(e / len(clean) for e in total[s])) for s in options.stages}


def _options(classifier: Classifier) -> Compression:
  options = parse_compression(getattr(classifier.module, 'compression', None))
  if options is None:
    raise UserError(
      f'{classifier.config.model} has no band compression to measure at; add_compression('
      "classifier, 'wiener') adds it"
    )
  return options


def _energies_of_batch(classifier, options, clean, perturbed):
  """{stage: (clean, noise)}, each float32 (B, K, C)."""
  before, after = (_entering(classifier, images) for images in (clean, perturbed))

  def bands(x):
    return band_energies(x, options.bands, options.transform, soft=options.soft)

  return {s: (bands(before[s]), bands(after[s] - before[s])) for s in options.stages}


_energies = jit(_energies_of_batch, static_argnums=1)


def _entering(classifier: Classifier, images) -> dict[int, jax.Array]:
  """The maps that go into the compression layers, float32, by stage."""
  maps = {}

  def record(call: Call) -> Any:
    if isinstance(call.module, BandCompression):
      stage = call.path.rpartition('/')[2][len(PREFIX) :]
      maps[int(stage)] = call.inputs[0].astype(jnp.float32)
    return call.output

  run_through(classifier, record, images)
  return maps


def wiener_gains(clean: Any, noise: Any) -> np.ndarray:
  """S / (S + N), element by element.

  Args:
    clean: S, energies of 0 or more, any shape.
    noise: N, of the same shape and unit.

  Returns:
    float32 gains in [0, 1]; 1 where both are 0, as there is nothing to remove.

  Raises:
    UserError: different shapes, or a negative energy or one that is not finite.
  """
  clean, noise = np.asarray(clean, np.float64), np.asarray(noise, np.float64)
  if clean.shape != noise.shape:
    raise UserError(f'energies have one shape, not {clean.shape} and {noise.shape}')
  for name, energy in (('clean', clean), ('noise', noise)):
    if not (np.isfinite(energy) & (energy >= 0)).all():
      raise UserError(f'{name} energies are finite numbers of 0 or more; check the images')
  total = clean + noise
  return np.where(total > 0, clean / np.where(total > 0, total, 1), 1).astype(np.float32)


def with_wiener_gains(
  classifier: Classifier,
  clean: jax.Array | np.ndarray,
  perturbed: jax.Array | np.ndarray,
  *,
  batch_size: int = 64,
) -> Classifier:
  """The classifier with the Wiener gains of these images in its compression layers.

  All layers are measured with the gains that they have, 1 in a new classifier.

  Args:
    classifier: one whose compression has the strategy 'wiener'.
    clean: floats (N, H, W, 3) in [0, 1]; not test images, which would be judged with gains that
      were fitted to them.
    perturbed: the same images after an attack on the classifier.
    batch_size: images a forward pass.

  Returns:
    A new classifier.

  Raises:
    UserError: another strategy, or as `measure_bands`.
  """
  options = _options(classifier)
  if options.strategy != 'wiener':
    raise UserError(
      f"gains belong to the strategy 'wiener'; this classifier's is {options.strategy!r}"
    )
  measured = measure_bands(classifier, clean, perturbed, batch_size=batch_size)
  return dataclasses.replace(classifier, variables=_with_gains(classifier.variables, measured))


def _with_gains(variables: Any, measured: Mapping[int, BandEnergies]) -> dict[str, Any]:
  gains = {
    f'batch_stats/{PREFIX}{stage}/gain': jnp.asarray(wiener_gains(*energies))
    for stage, energies in measured.items()
  }
  return model_dir.unflatten(model_dir.flatten(variables) | gains)
