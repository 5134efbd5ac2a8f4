"""What `--mode evaluate` of detectors and segmenters opens: how it looks, at which pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from rest_jax.data.dense_sources import EMBEDDED, DenseSource, Kind, judged_split, load_dense
from rest_jax.errors import UserError
from rest_jax.models.dense_config import DenseConfig, check_scales
from rest_jax.text import plural


def words(config: DenseConfig) -> str:
  """How pictures are looked at where a model is judged, in words."""
  short = f'shorter side {config.short} px' if config.short else 'their own size'
  parts = [short, f'longer side at most {config.long} px' if config.short and config.long else '']
  if config.kind == 'segmenter':
    several = config.scales != (1.0,)
    parts += [f'at {", ".join(f"{scale:g}" for scale in config.scales)} times that' * several]
    parts += ['mirror images too' if config.mirrored else '']
  canvases = ', '.join(f'{height}x{width}' for height, width in config.canvases)
  return '; '.join((', '.join(filter(None, parts)), f'canvases {canvases}'))


def looking(found: Any, options: dict[str, Any]) -> Any:
  """A model with the views that it is judged by: its own unless flags say others.

  Args:
    found: the detector or segmenter.
    options: of the command line: scales, a list of texts, and mirrored; None where not given.

  Raises:
    UserError: views of a detector, or scales that are none.
  """
  given = {
    'scales': None if options['scales'] is None else _scales(options['scales']),
    'mirrored': options['mirrored'],
  }
  given = {name: value for name, value in given.items() if value is not None}
  if given and found.config.kind != 'segmenter':
    raise UserError(f'{" and ".join(f"--{name}" for name in given)}: for segmenters; leave it out')
  return dataclasses.replace(found, config=dataclasses.replace(found.config, **given))


def _scales(texts: list[str]) -> tuple[float, ...]:
  """The factors of --scales."""
  try:
    scales = tuple(float(text) for text in texts)
    check_scales(scales)
  except (ValueError, UserError) as error:
    raise UserError(f'--scales {",".join(texts)}: {error}; it takes such as 0.5,1,1.5') from error
  return scales


def pictures(found: Any, options: dict[str, Any]) -> tuple[DenseSource, str]:
  """The pictures that a model is judged on, and what they are called.

  Args:
    found: the detector or segmenter.
    options: of the command line: model, data, data_dir, split, limit, seed.

  Raises:
    UserError: there are none, or they have other classes.
  """
  name = EMBEDDED if options['data'] == 'digit_scenes' else options['data']
  kind = _data_kind(found, name)
  split = options['split'] or judged_split(name, kind)
  sources = load_dense(
    name,
    kind,
    data_dir=options['data_dir'],
    train_split=split,
    test_split=split,
  )
  if sources.class_names != found.class_names:
    missing = [n for n in sources.class_names if n not in found.class_names]
    raise UserError(
      f'{name} has {plural(len(sources.class_names), "class")}, {options["model"]} '
      f'{plural(len(found.class_names), "class")}: they are not the same or in another order'
      + (f'; the model does not know {", ".join(missing[:3])}' if missing else '')
    )
  source: Any = sources.test
  where, limit, seed = f'{name} ({split})', options['limit'], options['seed']
  if limit and limit < len(source):
    where = f'{where}, {limit} of its {len(source)}, seed {seed}'
    chosen = np.random.default_rng(seed).permutation(len(source))[:limit]
    source = dataclasses.replace(source, examples=_Some(source.examples, tuple(chosen.tolist())))
  return source, where


@dataclasses.dataclass(frozen=True)
class _Some:
  """Some pictures of a source."""

  source: Any
  chosen: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.chosen)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.source[self.chosen[index]]


def _data_kind(found: Any, name: str) -> Kind:
  """What can be judged: masks where the model has them and the data too."""
  if found.config.kind == 'segmenter':
    return 'pixels'
  has_masks = getattr(found.module, 'masks', False)
  known = name == EMBEDDED or (Path(name).expanduser() / 'annotations').is_dir()
  return 'masks' if has_masks and known else 'boxes'
