"""The training loop: `train(config, workdir)` is the main path of the library."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from rest_jax.models.classifier import check_text
from rest_jax.train import pipeline
from rest_jax.train.config import Config, check_config
from rest_jax.train.metrics import StepMetrics
from rest_jax.train.parallel import make_mesh, memory_advice, to_global
from rest_jax.train.processes import StopRequest, any_process, end_with_the_others
from rest_jax.train.run import Run
from rest_jax.train.task import build_task
from rest_jax.train.workdir import open_workdir, unmade_on_failure


def train(config: Config, workdir: str | Path) -> dict[str, Any]:
  """Trains a classifier, or goes on with a run that was interrupted.

  Args:
    config: as from `default_config()`, changed by a config file.
    workdir: everything is written there: `config.json`, `environment.json`, `metrics.jsonl`,
      `curves.png`, `checkpoints/` and, for the best evaluation, the model directory `model/`.

  Returns:
    step, finished (False after SIGTERM or Ctrl-C), best and last: the measured values of the
    best and the last evaluation (top1 and top5 as fractions, loss, count, step, epoch); test: those
    of the best on the test split where another split chose it, else None.

  Raises:
    UserError: bad config, data or work directory, or a loss that is not finite.
  """
  # ---- Checks, work directory ----------------------------------------------------------------
  check_config(config)
  mesh = make_mesh()
  pipeline.check_start(config, mesh)
  with unmade_on_failure(workdir):
    workdir = open_workdir(workdir, config.to_dict())

    # ---- Data ----------------------------------------------------------------------------------
    sources = pipeline.load_sources(config)
    check_text(sources.class_names)
    plan = pipeline.make_plan(config, len(sources.train), mesh)
    batches = pipeline.train_batches(config, sources.train)

    # ---- Model, optimizer, steps; from the start or from the last checkpoint -------------------
    weights = pipeline.class_weights(config, sources)
    task = build_task(config, plan, mesh, sources.class_names, weights)
    run = Run(config, workdir, plan, sources, task, batches)
  window = StepMetrics(config.log.every)

  # ---- Train ---------------------------------------------------------------------------------
  with (
    StopRequest() as stop,
    memory_advice(),
    contextlib.closing(run),
    end_with_the_others(batches.close),
  ):
    if run.needs_evaluation():  # it was stopped just before
      run.evaluate()
    stream = stop.shielding(batches)
    while not run.done:
      batch = next(stream)
      run.state, metrics = task.train_step(run.state, to_global(batch, mesh))
      run.step += 1
      means = window.add(run.step, metrics, batch.get('label', ()))
      run.recorder.step_done(run.step, means)

      stopping = plan.may_agree(run.step) and any_process(stop.requested)
      if stopping or run.checkpoint_is_due() or run.needs_evaluation():
        # Nothing is saved before losses and weights up to here are known to be finite.
        run.recorder.step_done(run.step, window.flush())
        run.check_weights()
        if run.needs_evaluation() and not stopping:
          run.evaluate()
        run.save()
      if stopping:
        break
    # ---- Results -------------------------------------------------------------------------
    return run.finish()
