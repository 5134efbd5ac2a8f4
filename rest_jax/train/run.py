"""A run in its work directory: resuming, evaluating, saving, the best model."""

from __future__ import annotations

import math
import textwrap
import time
from pathlib import Path
from typing import Any

from rest_jax import data
from rest_jax.errors import UserError
from rest_jax.evaluation.environment import command_line
from rest_jax.evaluation.progress import clock
from rest_jax.text import plural
from rest_jax.train import measured
from rest_jax.train.checkpoints import Checkpoints
from rest_jax.train.config import Config, out_of_reach, without_effect
from rest_jax.train.metrics import DIVERGED
from rest_jax.train.pipeline import Plan
from rest_jax.train.processes import any_process, is_main
from rest_jax.train.recorder import Recorder
from rest_jax.train.release import Results, write_model
from rest_jax.train.state import TrainState, not_finite
from rest_jax.train.task import Task
from rest_jax.train.totals import NotFiniteError


class Run:
  """Everything the loop needs beside the training step itself."""

  def __init__(
    self,
    config: Config,
    workdir: Path,
    plan: Plan,
    sources: data.DataSources,
    task: Task,
    batches: Any,
  ):
    """Opens the work directory, and resumes from its last checkpoint where there is one.

    Args:
      config: the resolved config.
      workdir: from `workdir.open_workdir`.
      plan: from `pipeline.make_plan`.
      sources: the data set.
      task: the compiled functions.
      batches: training iterator; set to where the checkpoint was taken.

    Raises:
      UserError: a checkpoint of another model or of other data, or none that can be read.
    """
    self._config, self._workdir, self._plan = config, workdir, plan
    self._sources, self._task, self._batches = sources, task, batches
    self._checkpoints = Checkpoints(workdir)
    self._meta: dict[str, Any] = {'step': 0, 'seconds': 0.0, 'evaluated': 0, 'last': None}
    found = self._checkpoints.restore_last(task.template, task.mesh)
    if found is None:
      self.state: TrainState = task.create()
    else:
      self.state, self._meta = found
      _check_data(self._meta.get('data'), sources, workdir)
      batches.set_state(self._meta['iterator'])
    self.step: int = self._meta['step']
    self._first = self.step
    self._best = self._checkpoints.best_meta()
    self._began = self._saved = time.monotonic()
    self.recorder = Recorder(config, workdir, plan, self.step)
    for name, needs in without_effect(config).items() if self.step < plan.total else ():
      self.recorder.say(f'Note: {name} of this config has no effect: it is for {needs}')
    for note in out_of_reach(config) if self.step < plan.total else ():
      self.recorder.say(f'Note: {note}')
    if not self.done:
      verb = f'Resuming at step {self.step} of' if self.step else 'Training for'
      self.recorder.say(f'{verb} {plural(plan.total, "step")} in {workdir} on {sources.line}')

  @property
  def done(self) -> bool:
    """Whether all steps are done, or patience is over."""
    return self.step >= self._plan.total or self._is_out_of_patience

  @property
  def _is_out_of_patience(self) -> bool:
    """Whether `train.patience` evaluations since the best one were no better."""
    patience = self._config.train.patience
    return bool(patience) and self._meta.get('since_best', 0) >= patience

  def needs_evaluation(self) -> bool:
    """Whether the plan has an evaluation here that is not done yet."""
    return self.step in self._plan.evaluations and self._meta['evaluated'] != self.step

  def check_weights(self) -> None:
    """Refuses a state that is not worth keeping, before it is measured or saved.

    Raises:
      UserError: the last update made weights, or a state of the optimizer, that are not finite.
    """
    broken = not_finite(self.state)
    if broken:
      raise UserError(
        f'the update of step {self.step} made {len(broken)} arrays that are not finite '
        f'({textwrap.shorten(", ".join(broken), 80, placeholder="...")}); the last good checkpoint '
        f'is kept. {DIVERGED}'
      )

  def evaluate(self) -> None:
    """Measures the model on the split that chooses, and keeps it where it is the best so far.

    With a moving average of the weights both are measured, and the better one is what counts. At
    the end of a run the best one is measured on the test split, where that is another one.

    Raises:
      UserError: the model's outputs are not finite, those of the average neither.
    """
    plain, averaged = self._measure_both()
    result = measured.better(plain, averaged)
    if self.state.ema is not None:
      result = result | {'lead': measured.lead(plain, averaged)}
    self._meta |= {'evaluated': self.step, 'last': result}
    self.recorder.evaluation(plain, averaged, self._chooser)
    self._meta['since_best'] = self._meta.get('since_best', 0) + 1
    before = None if self._best is None else measured.rank(self._best['result'])
    ahead = before is None or measured.rank(result) > before
    if ahead:
      self._meta['since_best'] = 0
    # Where no measure is a number the latest weights are kept: the first are the least trained.
    if ahead or (before is not None and before[0] == -math.inf):
      self._best = {'step': self.step, 'result': result}
      self._checkpoints.save_best(self.state, self._best)
      self._release(self.state)
    if self.done and self._sources.validation is not None:
      self._judge()
    self.recorder.restart_clock(self.step)

  @property
  def _chooser(self) -> str:
    """What the split is called that the best epoch is chosen on."""
    return 'test' if self._sources.validation is None else 'val'

  def _judge(self) -> None:
    """Measures the released weights on the test split, once."""
    kept = self._checkpoints.restore_best(self._task.template, self._task.mesh)
    if kept is None or self._best is None:
      return
    state, where = kept[0], {key: self._best['result'][key] for key in ('step', 'epoch')}
    found = self._measure(self._is_average(state), state=state, test=True)
    self._meta['test'] = where | found
    self.recorder.judged(self.step, self._meta['test'])

  def _measure_both(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What the weights and their average reach; None for what is not there or gives no numbers."""
    where = {'step': self.step, 'epoch': self._plan.epoch(self.step)}
    found: dict[bool, dict[str, Any]] = {}
    problems = []
    for averaged in (False, True)[: 1 if self.state.ema is None else 2]:
      try:
        found[averaged] = where | self._measure(averaged) | {'averaged': averaged}
      except NotFiniteError as error:
        problems.append(f'{"average of the weights" if averaged else "weights"}: {error}')
    if not found:
      raise UserError(f'step {self.step} cannot be evaluated: {problems[0]}; {DIVERGED}')
    for problem in problems:
      self.recorder.say(f'Warning: {problem}')
    return found.get(False), found.get(True)

  def _measure(
    self, averaged: bool, state: TrainState | None = None, test: bool = False
  ) -> dict[str, float]:
    source = self._sources.test if test else self._sources.val
    variables = (self.state if state is None else state).variables(averaged)
    return self._task.measure(variables, source)

  def checkpoint_is_due(self) -> bool:
    """Whether steps or time ask for a checkpoint; all processes get the same answer."""
    train = self._config.train
    if train.checkpoint_every_steps and self.step % train.checkpoint_every_steps == 0:
      return True
    if not train.checkpoint_every_seconds or not self._plan.may_agree(self.step):
      return False
    return any_process(time.monotonic() - self._saved > train.checkpoint_every_seconds)

  def save(self) -> None:
    """Saves what is needed to go on from here, to the bit."""
    self._meta |= {
      'step': self.step,
      'iterator': self._batches.get_state(),
      'data': {'classes': self._sources.class_names, 'files': self._sources.digests},
      'seconds': self._seconds(),
    }
    self._checkpoints.save_last(self.state, self._meta)
    self._saved = time.monotonic()
    self.recorder.draw()
    self.recorder.restart_clock(self.step)

  def finish(self) -> dict[str, Any]:
    """Says how the run ended, completes the model directory and returns the results."""
    if not self.done:
      self.recorder.say(
        f'Stopped at step {self.step} of {self._plan.total} and saved; '
        f'to go on, run the same command again: {command_line()}'
      )
    else:
      self._finish_model()
      last = self._meta['last']
      best = self._best['result'] if self._best else last
      ended = 'Finished' if self.step > self._first else 'This run is finished already:'
      if self._is_out_of_patience and self.step < self._plan.total:
        best_epoch = self._best['result']['epoch'] if self._best else 0.0
        self.recorder.say(
          f'No better since epoch {best_epoch:.1f}, in {self._config.train.patience} evaluations '
          f'(train.patience), so it ended at step {self.step} of {self._plan.total}'
        )
      test = self._meta.get('test')
      judged = '' if test is None else f', test {measured.short(test)}'
      self.recorder.say(
        f'{ended} {plural(self.step, "step")} in {clock(self._meta["seconds"])}, '
        f'{self._chooser} {measured.short(last)}, best {measured.short(best)} '
        f'at epoch {best["epoch"]:.1f}'
        f'{judged}; model in {self._workdir / "model"}'
      )
    self.recorder.draw(at_most_every=0.0)
    best = self._best['result'] if self._best else None
    return {
      'step': self.step,
      'finished': self.done,
      'best': best,
      'last': self._meta['last'],
      'test': self._meta.get('test'),
    }

  def close(self) -> None:
    """Ends bar, loggers, Orbax and the reading of images."""
    self.recorder.close()
    self._batches.close()
    self._checkpoints.close()

  def _seconds(self) -> float:
    now = time.monotonic()
    seconds, self._began = self._meta['seconds'] + now - self._began, now
    return seconds

  def _finish_model(self) -> None:
    """Writes the card again, now that the last results are known."""
    if self.step == self._first and (self._workdir / 'model').exists():
      return
    found = self._checkpoints.restore_best(self._task.template, self._task.mesh)
    if found is not None:
      self._release(found[0])

  def _is_average(self, state: TrainState) -> bool:
    """Whether the best was measured with the average of the weights."""
    # Runs from before there was a choice took the average.
    kept = state.ema is not None
    return kept and bool(self._best is None or self._best['result'].get('averaged', kept))

  def _release(self, state: TrainState) -> None:
    if not is_main() or self._best is None:
      return
    results = Results(
      best=self._best['result'],
      last=self._meta['last'],
      seconds=self._meta['seconds'] + time.monotonic() - self._began,
      finished=self.done,
      source=self._sources.name,
      chooser=self._chooser,
      test=self._meta.get('test'),
      classes=len(self._sources.class_names),
    )
    variables = state.variables(self._is_average(state))
    write_model(self._workdir, self._config, variables, self._sources.class_names, results)


def _check_data(saved: dict[str, Any] | None, sources: data.DataSources, workdir: Path) -> None:
  """Refuses to go on with other classes or files than those that the run began with.

  Raises:
    UserError: they differ.
  """
  if saved is None:  # of a run that is older than this check
    return
  before, now = saved['classes'], list(sources.class_names)
  splits = [name for name, digest in sources.digests.items() if saved['files'].get(name) != digest]
  if before == now and not splits:
    return
  gone = [name for name in before if name not in now]
  new = [name for name in now if name not in before]
  changes = [f'class {", ".join(gone[:3])} is gone'] if gone else []
  changes += [f'class {", ".join(new[:3])} is new'] if new else []
  if before != now and not changes:
    changes = ['its classes have other numbers']
  changes = changes or [f'the files of {", ".join(splits)} are others']
  raise UserError(
    f'{sources.name} is not what the run in {workdir} began with: {" and ".join(changes)}; '
    'restore it, or give another --output'
  )
