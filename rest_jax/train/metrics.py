"""Measured values: JSON lines always, TensorBoard and Weights & Biases where asked, curves."""

from __future__ import annotations

import collections
import importlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rest_jax.errors import UserError
from rest_jax.evaluation.figures import new_figure
from rest_jax.train.measured import Panel, curves_of
from rest_jax.train.workdir import save_figure, write_text, writing

IN_FLIGHT = 4  # steps that the host may be ahead of the device
_SHOWN_LABELS = 8
DIVERGED = (  # what to do about a training that has
  'Lower optim.lr, lengthen optim.warmup_epochs, set optim.clip_norm=1.0, or use '
  'model.dtype=float32, with another --output'
)
_LOSS: Panel = (
  'loss',
  (('train/loss', 'train'), ('val/loss', 'val'), ('test/loss', 'test'), ('ema/loss', 'average')),
)
_RATE: Panel = ('learning rate', (('train/lr', 'learning rate'),))
# Parts of the loss of detectors and segmenters, beside their sum.
_PART = '_loss'


class MetricsWriter:
  """Appends measured values to `metrics.jsonl` and hands them to the other loggers."""

  def __init__(self, workdir: Path, step: int, log: Any, config: dict[str, Any]):
    """Opens the log of a run that stands at `step`.

    Args:
      workdir: where `metrics.jsonl` is; lines after `step` are dropped, they come again.
      step: number of steps done.
      log: the config's `log` group.
      config: the resolved config, for Weights & Biases.

    Raises:
      UserError: a logger was asked for that is not installed.
    """
    self.path = workdir / 'metrics.jsonl'
    if self.path.exists():
      kept = [_without_nan(line) for line in read_metrics(self.path) if line['step'] <= step]
      write_text(self.path, ''.join(json.dumps(line, allow_nan=False) + '\n' for line in kept))
    self._board = self._wandb = None
    if log.tensorboard:
      board = _optional('tensorboardX', 'log.tensorboard')
      self._board = board.SummaryWriter(str(workdir / 'tensorboard'))
    if log.wandb:
      wandb = _optional('wandb', 'log.wandb')
      self._wandb = wandb.init(
        project=log.wandb, name=workdir.name, dir=str(workdir), config=config
      )

  def write(self, step: int, values: dict[str, float]) -> None:
    """Logs values of one step; `None` and NaN are written as null."""
    clean = _without_nan(values)
    with writing(self.path.parent), self.path.open('a', encoding='utf-8') as file:
      file.write(json.dumps({'step': step, **clean}, allow_nan=False) + '\n')
    if self._board is not None:
      for name, value in clean.items():
        if value is not None:
          self._board.add_scalar(name, value, step)
    if self._wandb is not None:
      self._wandb.log(clean, step=step)

  def close(self) -> None:
    """Ends the other loggers."""
    if self._board is not None:
      self._board.close()
    if self._wandb is not None:
      self._wandb.finish()


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
  """JSON has no NaN and no infinity: null stands for them."""
  return {
    name: None if isinstance(value, float) and not math.isfinite(value) else value
    for name, value in values.items()
  }


def _optional(module: str, key: str) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise UserError(
      f'{key} needs {module}, which is not installed: pip install {module}'
    ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """Returns the lines of a `metrics.jsonl`; what a kill cut off is left out."""
  lines = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      values = json.loads(line)
      if not isinstance(values, dict) or not isinstance(values.get('step'), int):
        break
      lines.append(values)
    except json.JSONDecodeError:
      break
  return lines


class StepMetrics:
  """Metrics of the steps under way, read some steps late so that the device never waits.

  Two windows of `every` steps may be under way; the older one is fetched at once when the
  younger is full.
  """

  def __init__(self, every: int):
    """Reads after every `every` steps."""
    self._every = every
    self._pending: collections.deque[tuple[int, Any, np.ndarray]] = collections.deque()

  def add(self, step: int, metrics: Any, labels: np.ndarray) -> dict[str, float] | None:
    """Takes the metrics of a step; returns means over an older window when one is done.

    Raises:
      UserError: the loss or the gradient of a step was not finite.
    """
    self._pending.append((step, metrics, np.array(labels[:_SHOWN_LABELS])))
    if len(self._pending) > IN_FLIGHT:
      # Only so far may the host run ahead, or batches would pile up in the device's memory.
      jax.block_until_ready(self._pending[-1 - IN_FLIGHT][1])
    return self._read(self._every) if len(self._pending) >= 2 * self._every else None

  def flush(self) -> dict[str, float] | None:
    """Waits for all steps under way; means over them, None where there are none.

    Raises:
      UserError: the loss or the gradient of a step was not finite.
    """
    return self._read(len(self._pending)) if self._pending else None

  def _read(self, count: int) -> dict[str, float]:
    window = [self._pending.popleft() for _ in range(count)]
    values = jax.device_get([metrics for _, metrics, _ in window])
    for (step, _, labels), metrics in zip(window, values, strict=True):
      _check_finite(step, metrics, labels)
    means = {name: float(np.mean([v[name] for v in values], dtype=float)) for name in values[0]}
    return {'step': window[-1][0], **means, 'lr': float(values[-1]['lr'])}


def _check_finite(step: int, metrics: dict[str, Any], labels: np.ndarray) -> None:
  for name in ('loss', 'grad_norm'):
    if not np.isfinite(metrics[name]):
      what = 'loss' if name == 'loss' else 'gradient'
      raise UserError(
        f'the {what} is not finite ({float(metrics[name])}) at step {step}, whose batch '
        f'starts with the labels {labels.tolist()}; the last good checkpoint is kept. {DIVERGED}'
      )


def _series(lines: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
  points = [(line['epoch'], line[name]) for line in lines if line.get(name) is not None]
  return [x for x, _ in points], [y for _, y in points]


def draw_curves(workdir: Path) -> None:
  """Draws `metrics.jsonl` of a work directory into `curves.png` beside it.

  Raises:
    UserError: the directory cannot be written.
  """
  source = workdir / 'metrics.jsonl'
  lines = read_metrics(source) if source.exists() else []
  figure = new_figure(12, 3.4)
  for axes, (title, names) in zip(figure.subplots(1, 3), _panels(lines), strict=True):
    for name, label in names:
      x, y = _series(lines, name)
      if x:
        axes.plot(x, y, label=label, marker='.' if len(x) < 60 else None)
    axes.set_title(title)
    axes.set_xlabel('epoch')
    axes.grid(alpha=0.3)
    if len(names) > 1 and axes.lines:
      axes.legend()
  save_figure(workdir / 'curves.png', figure)


def _panels(lines: list[dict[str, Any]]) -> list[Panel]:
  """The panels of a run, by what it measured."""
  keys = sorted({key for line in lines for key in line})
  loss = _LOSS
  parts = [key for key in keys if key.startswith('train/') and key.endswith(_PART)]
  if len(parts) > 1:
    named = tuple((key, key[len('train/') : -len(_PART)].replace('_', ' ')) for key in parts)
    loss = loss[0], (*loss[1], *named)
  return [loss, curves_of(keys), _RATE]
