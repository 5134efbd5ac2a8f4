"""Whether Group-CAM as augmentation helps: the digit_scenes model fine-tuned with and without.

  python benchmarks/group_cam_finetuning.py [--seeds 3] [--steps 156] [--output FILE]

Both fine-tunings of a seed are configs/digit_scenes_groupcam.py and its variant `plain`: the same
weights to start from, images, order, number of updates and schedule (1e-3, then 1e-4 for the last
quarter). Measured on the whole test split after the last step, not the best one. The table goes to
benchmarks/results/group_cam_finetuning.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rest_jax.evaluation.environment import describe_devices  # noqa: E402
from rest_jax.train import pipeline  # noqa: E402
from rest_jax.train.command import load_config  # noqa: E402
from rest_jax.train.evaluate import evaluate  # noqa: E402
from rest_jax.train.parallel import make_mesh, to_global  # noqa: E402
from rest_jax.train.task import Task, build_task  # noqa: E402


class Tuning:
  """One kind of fine-tuning, compiled once for all seeds.

  A seed stands for the order and the crops of the images; stochastic depth is the same in all.
  """

  def __init__(self, variant: str, steps: int):
    """Builds the config's steps; the learning rate falls to a tenth for the last quarter."""
    self.config = load_config(ROOT / 'configs' / 'digit_scenes_groupcam.py', variant).unlock()
    self.sources = pipeline.load_sources(self.config)
    self.steps = steps
    epochs = steps * self.config.train.batch_size / len(self.sources.train)
    self.config.train.epochs = self.config.train.eval_every = epochs
    self.config.optim.step_epochs = (0.75 * epochs,)
    mesh = make_mesh()
    plan = pipeline.make_plan(self.config, len(self.sources.train), mesh)
    self.task: Task = build_task(self.config, plan, mesh, self.sources.class_names)

  def measure(self, variables: Any) -> dict[str, float]:
    """Values on the whole test split."""
    batches = pipeline.test_batches(self.config, self.sources.test)
    return evaluate(self.task.eval_step, variables, batches, self.task.mesh)

  def run(self, seed: int) -> tuple[dict[str, float], float]:
    """Values after the last step, and seconds a step without the first one, which compiles."""
    self.config.seed = seed
    state = self.task.create()
    batches = pipeline.train_batches(self.config, self.sources.train)
    began = 0.0
    for number in range(self.steps):
      state, metrics = self.task.train_step(state, to_global(next(batches), self.task.mesh))
      jax.block_until_ready(metrics)
      began = began if number else time.monotonic()
    seconds = (time.monotonic() - began) / (self.steps - 1)
    batches.close()
    return self.measure(state.variables()), seconds


def interval(differences: np.ndarray) -> tuple[float, float]:
  """Student's 95 % interval of the mean."""
  half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
  return differences.mean() - half, differences.mean() + half


def conclusion(low: float, high: float) -> str:
  """What the interval of the gain says."""
  if low > 0:
    return 'Group-CAM helps here: the interval of the gain lies above 0.'
  if high < 0:
    return 'Group-CAM harms here: the interval of the gain lies below 0.'
  return 'No gain shows here: the interval contains 0.'


def report(rows: list[Any], before: dict[str, float], command: str, steps: int) -> str:
  """The table in Markdown; rows of (seed, with, without, seconds a step with and without)."""
  gains = np.array([100 * (on['top1'] - off['top1']) for _, on, off, _, _ in rows])
  losses = np.array([on['loss'] - off['loss'] for _, on, off, _, _ in rows])
  low, high = interval(gains)
  lines = [
    f'| {seed} | {off["top1"]:.2%} | {on["top1"]:.2%} | {gain:+.2f} | {off["loss"]:.4f} | '
    f'{on["loss"]:.4f} | {slow / quick:.2f} |'
    for (seed, on, off, slow, quick), gain in zip(rows, gains, strict=True)
  ]
  return '\n'.join(
    [
      '# Fine-tuning with Group-CAM as augmentation',
      '',
      f'`{command}`, {describe_devices()}; {before["count"]} test scenes, {steps} steps of 64.',
      '',
      '| seed | top-1 without | with | gain (points) | loss without | with | time of a step |',
      '| --- | --- | --- | --- | --- | --- | --- |',
      *lines,
      '',
      f'Before: top-1 {before["top1"]:.2%}, loss {before["loss"]:.4f}. '
      f'Mean gain of Group-CAM {gains.mean():+.2f} points (95 % interval {low:+.2f} to '
      f'{high:+.2f}, Student, {len(rows)} seeds); mean change of the loss {losses.mean():+.4f}. '
      f'{conclusion(low, high)}',
      '',
      'The time is that with Group-CAM over that without. Half of each batch is augmented, with 8 '
      'groups of the map at stage 2. A model that starts near 98.5 % leaves little to gain; the '
      "authors' log starts at 75.9 % on ImageNet and ends at 76.7 % after 20 epochs, without a "
      'run that leaves Group-CAM out.',
      '',
    ]
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, default=3, help='runs of each kind, 2 or more')
  parser.add_argument('--steps', type=int, default=156, help='updates of 64 images each')
  default = ROOT / 'benchmarks' / 'results' / 'group_cam_finetuning.md'
  parser.add_argument('--output', type=Path, default=default, help='Markdown file to write')
  args = parser.parse_args()
  without, with_ = Tuning('plain', args.steps), Tuning('default', args.steps)
  before = without.measure(without.task.create().variables())
  rows = []
  for seed in range(args.seeds):
    off, quick = without.run(seed)
    on, slow = with_.run(seed)
    rows.append((seed, on, off, slow, quick))
    print(rows[-1], flush=True)
  command = f'python benchmarks/group_cam_finetuning.py --seeds {args.seeds} --steps {args.steps}'
  args.output.parent.mkdir(exist_ok=True)
  args.output.write_text(report(rows, before, command, args.steps), encoding='utf-8')
  print(args.output.read_text(encoding='utf-8'))


if __name__ == '__main__':
  main()
