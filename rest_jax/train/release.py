"""The model directory that a run leaves behind, and its card of measured results."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from rest_jax.evaluation.environment import command_line, describe_devices
from rest_jax.evaluation.progress import clock
from rest_jax.text import markdown, markdown_code, plural, radius_text
from rest_jax.train import measured
from rest_jax.train.config import Config
from rest_jax.train.purpose import purpose_of
from rest_jax.train.workdir import writing


@dataclasses.dataclass(frozen=True)
class Results:
  """What the card says.

  Attributes:
    best: values measured with the released weights: step, epoch, top1, top5, loss, count; of a
      denoising model psnr and noisy_psnr instead of accuracies; averaged: whether they are the
      moving average, and 'lead' why they are the released ones.
    last: the same at the last evaluation.
    seconds: time of training so far, evaluations included.
    finished: False while the training still goes on.
    source: name of the data set.
    chooser: the split that the best was chosen on, 'test' or 'val'.
    test: the best one's values on the test split, where another split chose it and it is over.
    classes: how many there are; of up to five there is no top-5.
  """

  best: dict[str, Any]
  last: dict[str, Any]
  seconds: float
  finished: bool
  source: str
  chooser: str = 'test'
  test: dict[str, Any] | None = None
  classes: int = 0


def write_model(
  workdir: Path,
  config: Config,
  variables: Any,
  class_names: tuple[str, ...],
  results: Results,
) -> Path:
  """Writes `<workdir>/model`, replacing an older one.

  Args:
    workdir: of the run.
    config: the resolved config.
    variables: {'params', 'batch_stats'} that `results.best` was measured with.
    class_names: one a class; a denoising model is saved with none.
    results: for the card.

  Returns:
    The model directory, which `Classifier.load` reads.
  """
  directory, text = workdir / 'model', card(config, results, workdir.name)
  with writing(workdir):
    purpose_of(config).release(config, variables, class_names, directory, text)
  return directory


def card(config: Config, results: Results, name: str) -> str:
  """Returns the model card in Markdown: what was trained, how, and what was measured."""
  state = 'finished' if results.finished else 'still going on when this was written'
  weights = 'weights'
  if config.train.ema:
    chosen = 'the average' if results.best.get('averaged', True) else 'the weights themselves'
    lead = results.best.get('lead', 'measured better')  # of runs from before it was kept
    weights = f'weights and their moving average, of which {chosen} {lead}'
  sizes = purpose_of(config).sizes(config)
  model = f'{config.model.name} {config.model.overrides.to_dict() or ""}'.rstrip()
  begun = f', starting from {markdown_code(config.model.init)},' if config.model.init else ''
  return '\n'.join(
    [
      f'# {markdown(name)}',
      '',
      f'{markdown(model)} trained{begun} on {markdown_code(results.source)} at {sizes} px.',
      '',
      *_table(results),
      '',
      *_perturbed(config, results),
      _chosen(results),
      '',
      f'- Command: {markdown_code(command_line())}',
      f'- Training: {config.train.epochs:g} epoch{"s" * (config.train.epochs != 1)}, '
      f'batch {config.train.batch_size}, '
      f'seed {config.seed}, {weights}; {state}',
      f'- Time: {clock(results.seconds)} on {describe_devices()}',
      '',
      '```json',
      json.dumps(config.to_dict(), indent=2),
      '```',
      '',
    ]
  )


def _chosen(results: Results) -> str:
  if results.chooser == 'test':
    return (
      'The best evaluation was chosen on the same test split, so it is slightly optimistic; '
      'the last one is not chosen.'
    )
  judged = 'is judged once, at the end of the training'
  if results.test is not None:
    count = results.test['count']
    judged = f'was judged once, with these weights: {plural(count, "image")}, '
    judged += measured.values(results.test, results.classes)
  return f'The best evaluation was chosen on the validation split; the test split {judged}.'


def _table(results: Results) -> list[str]:
  """The measured values of the best and of the last evaluation."""
  columns = measured.columns(results.best, results.classes)
  of = 'test' if results.chooser == 'test' else 'validation'
  head = [plural(results.best['count'], f'{of} image'), *columns, 'epoch']
  lines = [head, ['---'] * len(head)]
  for title, result in (('best (these weights)', results.best), ('last', results.last)):
    pairs = (column.split(':') for column in columns.values())
    values = [measured.figure(result.get(name, math.nan), style) for name, style in pairs]
    lines.append([title, *values, f'{result["epoch"]:.1f}'])
  return [f'| {" | ".join(line)} |' for line in lines]


def _perturbed(config: Config, results: Results) -> list[str]:
  """Lines on the attack or the noise of the evaluation; none where there was neither."""
  if config.denoise.noise:
    return [
      f'Noise of deviation {config.denoise.eval_noise:.4g} (images in [0, 1]), white or smooth, '
      'Gaussian or its sign; means over the images. It takes images in [0, 1] and gives images.',
      '',
    ]
  if 'robust_top1' not in results.best:
    return []
  adversarial = config.adversarial
  training = f'trained with `{adversarial.kind}`' if adversarial.kind else 'trained on clean images'
  best, last = (measured.figure(one['robust_top1'], '.2%') for one in (results.best, results.last))
  return [
    f'Right before and after {plural(adversarial.eval_steps, "step")} of PGD within '
    f'{adversarial.norm} {radius_text(adversarial.eps)}: {best} '
    f'(best, chosen by it), {last} (last); {training}. PGD alone gives an upper bound; '
    'AutoAttack is the stronger judge.',
    '',
  ]
