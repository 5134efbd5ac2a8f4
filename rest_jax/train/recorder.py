"""What a run tells: the progress on the terminal, `metrics.jsonl`, `curves.png`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rest_jax.evaluation.environment import environment
from rest_jax.evaluation.progress import Progress
from rest_jax.train import measured
from rest_jax.train.config import Config
from rest_jax.train.metrics import MetricsWriter, draw_curves
from rest_jax.train.pipeline import Plan
from rest_jax.train.processes import is_main
from rest_jax.train.workdir import write_json

_CURVES_SECONDS = 60.0


class Recorder:
  """Shows and logs a run; silent in all processes but the first."""

  def __init__(self, config: Config, workdir: Path, plan: Plan, step: int):
    """Opens the logs of a run that stands at `step`.

    Raises:
      UserError: the directory cannot be written, or a logger is not installed.
    """
    self._workdir, self._plan = workdir, plan
    self._batch_size = config.train.batch_size
    self._main = is_main()
    self._writer = None
    if self._main:
      write_json(workdir / 'config.json', config.to_dict())
      write_json(workdir / 'environment.json', environment())
      self._writer = MetricsWriter(workdir, step, config.log, config.to_dict())
    self._progress = Progress(plan.total, step, self._batch_size, active=self._main)
    self._drawn = time.monotonic()
    self._mark: tuple[int, float] | None = None
    self._train: dict[str, float] = {}

  def say(self, text: str) -> None:
    """Prints a line."""
    self._progress.say(text)

  def step_done(self, step: int, means: dict[str, float] | None) -> None:
    """Takes note of a step.

    Args:
      step: number of steps dispatched so far.
      means: from `StepMetrics`, when a window of steps is done.
    """
    if self._mark is None:  # the first step compiled; the speed counts from its end
      self._progress.start_clock(step)
      self._mark = step, time.monotonic()
    self._progress.update(step)
    if means is None or self._writer is None:
      return
    at = int(means['step'])
    self._train = {f'train/{k}': v for k, v in means.items() if k != 'step'}
    values = dict(self._train)
    images = (step - self._mark[0]) * self._batch_size
    if images:
      values['train/images_per_second'] = images / (time.monotonic() - self._mark[1])
    self.restart_clock(step)
    self._writer.write(at, {'epoch': self._plan.epoch(at), **values})

  def restart_clock(self, step: int) -> None:
    """Leaves out of the speed what was done since the last step."""
    self._mark = step, time.monotonic()

  def evaluation(
    self, plain: dict[str, Any] | None, ema: dict[str, Any] | None, split: str = 'test'
  ) -> None:
    """Logs and shows an evaluation of the weights and of their average, where there are such."""
    first = plain or ema or {}
    step, epoch = first['step'], first['epoch']
    values: dict[str, Any] = {}
    for prefix, result in ((split, plain), ('ema', ema)):
      values |= _logged(prefix, result or {})
    shown = f'{split} {measured.line(plain, ema)}'
    if self._writer is not None:
      self._writer.write(step, {'epoch': epoch, **values})
    if self._train:
      shown = (
        f'train loss {self._train["train/loss"]:.4{"g" if "psnr" in first else "f"}}, ' + shown
      )
    self.say(f'epoch {epoch:5.1f}: {shown}; {self._progress.state()}')

  def judged(self, step: int, test: dict[str, Any]) -> None:
    """Logs and shows what the best weights do on the test split, which chose nothing."""
    if self._writer is not None:
      # A line is of the step that it is written at; the weights are those of another one.
      best = {'best/step': test['step'], 'best/epoch': test['epoch']}
      self._writer.write(step, {'epoch': self._plan.epoch(step), **best, **_logged('test', test)})
    self.say(f'epoch {test["epoch"]:5.1f}, the best: test {measured.line(test, None)}')

  def draw(self, at_most_every: float = _CURVES_SECONDS) -> None:
    """Draws the curves anew, unless that was done less than so many seconds ago."""
    if self._main and time.monotonic() - self._drawn >= at_most_every:
      draw_curves(self._workdir)
      self._drawn = time.monotonic()

  def close(self) -> None:
    """Ends bar and loggers."""
    self._progress.close()
    if self._writer is not None:
      self._writer.close()


def _logged(prefix: str, result: dict[str, Any]) -> dict[str, Any]:
  """What `metrics.jsonl` gets of a result."""
  names = measured.kind_of(result).logged if result else ()
  return {f'{prefix}/{name}': result[name] for name in names if name in result}
