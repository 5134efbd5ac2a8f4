"""`curves.png`: loss, accuracy and learning rate of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rest_jax.evaluation.figures import new_figure
from rest_jax.train.metrics import read_metrics
from rest_jax.train.workdir import save_figure

_Panel = tuple[str, tuple[tuple[str, str], ...]]  # title, and name and label of each curve
_PANELS: tuple[_Panel, ...] = (
  (
    'loss',
    (('train/loss', 'train'), ('val/loss', 'val'), ('test/loss', 'test'), ('ema/loss', 'average')),
  ),
  (
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
  ),
  ('learning rate', (('train/lr', 'learning rate'),)),
)
_DENOISING: _Panel = (
  'PSNR, dB',
  (
    ('train/psnr', 'train'),
    ('val/psnr', 'val'),
    ('val/noisy_psnr', 'val, before'),
    ('test/psnr', 'test'),
    ('test/noisy_psnr', 'test, before'),
  ),
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
  panels = list(_PANELS)
  if any('train/psnr' in line for line in lines):
    panels[1] = _DENOISING
  for axes, (title, names) in zip(figure.subplots(1, 3), panels, strict=True):
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
