"""What an evaluation measured, by what the model is for: how it is judged, shown and tabulated.

A result is a dictionary of numbers. Which kind it is of shows in its keys: 'top1' of a classifier,
'psnr' of a denoiser, 'AP' of a detector (and 'mask_AP'), 'miou' of a segmenter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from rest_jax.text import percent, plural
from rest_jax.train.totals import finite_or

Result = dict[str, Any]
Panel = tuple[str, tuple[tuple[str, str], ...]]  # title, and name and label of each curve


class Kind(NamedTuple):
  """One kind of result.

  Attributes:
    key: that tells the kind.
    merit: what the best evaluation is chosen by; more is better.
    short: in the line at the end of a run.
    columns: title -> 'key:format', for the card.
    logged: keys that `metrics.jsonl` gets.
    curves: of a run, beside those of loss and rate.
  """

  key: str
  merit: Callable[[Result], float]
  short: Callable[[Result], str]
  columns: dict[str, str]
  logged: tuple[str, ...]
  curves: Panel


def figure(value: float, style: str = '.1%') -> str:
  """A number as it is shown; '-' for what is none, such as a mean over nothing."""
  if digits := re.fullmatch(r'\.(\d+)%', style):
    return percent(value, int(digits[1]), '%')
  return '-' if math.isnan(value) else format(value, style)


def over(result: Result) -> str:
  """' over 3 of 4 classes', which a mean over classes is of; '' of runs from before it was kept."""
  if 'judged' not in result or 'classes' not in result:
    return ''
  classes = result['classes'].get('box', result['classes']) if 'AP' in result else result['classes']
  return f' over {result["judged"]} of {plural(len(classes), "class")}'


def _accuracy(result: Result) -> str:
  robust = f' (robust {percent(result["robust_top1"], 2, "%")})' if 'robust_top1' in result else ''
  return f'top-1 {percent(result["top1"], 2, "%")}{robust}'


def _precision(result: Result) -> str:
  masks = f', mask AP {figure(result["mask_AP"])}' if 'mask_AP' in result else ''
  return f'box AP {figure(result["AP"])} (AP50 {figure(result["AP50"])}){masks}{over(result)}'


def _pixels(result: Result) -> str:
  return f'mIoU {figure(result["miou"])}{over(result)}, pixels {figure(result["accuracy"])}'


def _panel(title: str, names: dict[str, str]) -> Panel:
  """What evaluations measure, {key: title}, on every split."""
  splits = (('val', 'val'), ('test', 'test'), ('ema', 'average'))
  curves = tuple((f'{s}/{key}', f'{at}, {name}') for s, at in splits for key, name in names.items())
  return title, curves


_ACCURACIES: Panel = (
  'top-1 accuracy',
  (
    ('train/top1', 'train'),
    ('train/adversarial_top1', 'train, attacked'),
    ('val/top1', 'val'),
    ('test/top1', 'test'),
    ('ema/top1', 'average'),
    ('val/robust_top1', 'val, attacked'),
    ('test/robust_top1', 'test, attacked'),
    ('ema/robust_top1', 'average, attacked'),
  ),
)
_NOISE: Panel = (
  'PSNR, dB',
  (
    ('train/psnr', 'train'),
    ('val/psnr', 'val'),
    ('val/noisy_psnr', 'val, before'),
    ('test/psnr', 'test'),
    ('test/noisy_psnr', 'test, before'),
  ),
)
_PRECISION = _panel('average precision', {'AP': 'box AP', 'AP50': 'AP50', 'mask_AP': 'mask AP'})
_PIXELS = _panel('pixels', {'miou': 'mIoU', 'accuracy': 'right pixels'})
_JUDGED = {'classes judged': 'judged:d'}
_BOXES = {'box AP': 'AP:.1%', 'AP50': 'AP50:.1%', 'AP75': 'AP75:.1%', **_JUDGED}
_MASKS = {'mask AP': 'mask_AP:.1%', 'mask AP50': 'mask_AP50:.1%'}
KINDS = (
  Kind(
    'psnr',
    lambda result: finite_or(result['psnr']),
    lambda result: f'PSNR {result["psnr"]:.2f} dB',
    {
      'PSNR before, dB': 'noisy_psnr:.2f',
      'PSNR after, dB': 'psnr:.2f',
      'mean squared error': 'loss:.3g',
    },
    ('loss', 'psnr', 'noisy_psnr'),
    _NOISE,
  ),
  Kind(
    'mask_AP',
    lambda result: finite_or(result['mask_AP']),
    _precision,
    {**_BOXES, **_MASKS},
    ('AP', 'AP50', 'AP75', 'mask_AP', 'mask_AP50', 'mask_AP75'),
    _PRECISION,
  ),
  Kind(
    'AP',
    lambda result: finite_or(result['AP']),
    _precision,
    _BOXES,
    ('AP', 'AP50', 'AP75'),
    _PRECISION,
  ),
  Kind(
    'miou',
    lambda result: finite_or(result['miou']),
    _pixels,
    {
      'mIoU': 'miou:.1%',
      'right pixels': 'accuracy:.1%',
      'mean over classes': 'mean_accuracy:.1%',
      **_JUDGED,
    },
    ('miou', 'accuracy', 'mean_accuracy'),
    _PIXELS,
  ),
  Kind(
    'top1',
    # Where accuracy under attack is measured it counts.
    lambda result: finite_or(result.get('robust_top1', result['top1'])),
    _accuracy,
    {'top-1': 'top1:.2%', 'top-5': 'top5:.2%', 'loss': 'loss:.4f'},
    ('loss', 'top1', 'top5', 'robust_top1'),
    _ACCURACIES,
  ),
)


def kind_of(result: Result) -> Kind:
  """The kind of a result, by its keys."""
  return next(kind for kind in KINDS if kind.key in result)


def curves_of(keys: Iterable[str]) -> Panel:
  """The curves of a run whose measured values have these keys, such as 'test/AP'."""
  names = {key.rpartition('/')[2] for key in keys}
  return next((kind.curves for kind in KINDS if kind.key in names), _ACCURACIES)


def merit(result: Result) -> float:
  """What the best evaluation is chosen by; what is no number is worse than every number."""
  if 'top5' in result and not math.isfinite(result['loss']):
    return -math.inf  # that accuracy was one of logits that are no numbers
  return kind_of(result).merit(result)


def rank(result: Result) -> tuple[float, float, float]:
  """What evaluations are ordered by: merit, of equal ones the accuracy without an attack, then the
  lower loss, for on few images many accuracies are the same.
  """
  loss = finite_or(-result.get('loss', 0.0))
  return merit(result), finite_or(result.get('top1', 0.0)), loss


def better(plain: Result | None, averaged: Result | None) -> Result:
  """The better of two measurements by their rank; of equal ones the average."""
  there = [result for result in (averaged, plain) if result is not None]
  return max(there, key=rank)


def lead(plain: Result | None, averaged: Result | None) -> str:
  """Why the better of two measurements is the better one, for the card."""
  if plain is None or averaged is None:
    return 'alone gives numbers'
  one, other = rank(plain), rank(averaged)
  if one[:2] != other[:2]:
    return 'measured better'
  return 'measured as well at a lower loss' if one != other else 'measured no worse'


def short(result: Result) -> str:
  """The main figures in a few words."""
  return kind_of(result).short(result)


def line(plain: Result | None, averaged: Result | None) -> str:
  """The main figures of the weights and of their average, where there are such."""
  one = plain or averaged or {}
  both = averaged if plain else None
  if 'psnr' in one:
    average = f' (average {both["psnr"]:.2f})' if both else '' if plain else ' (average)'
    return f'PSNR {one["noisy_psnr"]:.2f} -> {one["psnr"]:.2f} dB{average}'
  if 'top1' not in one:
    shown = short(one) + ('' if plain else ' (average)')
    return shown + (f' (average {short(both)})' if both else '')
  shown = (
    f'loss {one["loss"]:.4f}, top-1 {percent(one["top1"], 2, "%")}{"" if plain else " (average)"}'
  )
  shown += f' (average {percent(both["top1"], 2, "%")})' if both else ''
  if 'robust_top1' in one:
    shown += f', robust {percent(one["robust_top1"], 2, "%")}'
    shown += f' (average {percent(both["robust_top1"], 2, "%")})' if both else ''
  return shown


def columns(result: Result, classes: int) -> dict[str, str]:
  """Title -> 'key:format' of what the card tabulates; of up to five classes there is no top-5."""
  found = dict(kind_of(result).columns)
  if 0 < classes <= 5:
    found.pop('top-5', None)
  return found


def values(result: Result, classes: int) -> str:
  """All figures of the card in a line of text."""
  if 'psnr' in result:
    return f'PSNR {result["noisy_psnr"]:.2f} dB before, {result["psnr"]:.2f} dB after'
  if 'top1' not in result:
    return short(result)
  robust = f', robust {percent(result["robust_top1"], 2, "%")}' if 'robust_top1' in result else ''
  most = f'top-5 {percent(result["top5"], 2, "%")}, ' if classes > 5 else ''
  return f'top-1 {percent(result["top1"], 2, "%")}, {most}loss {result["loss"]:.4f}{robust}'
