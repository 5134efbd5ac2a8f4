"""The part of defend.py's report on the noise-only study."""

from __future__ import annotations

from pathlib import Path

from rest_jax.defend.evaluation_table import radius_text, title_of
from rest_jax.defend.found import Found
from rest_jax.defend.study_results import DenoiserResult, ModelResult
from rest_jax.evaluation.document import Block, Cell, Figure, Heading, Table, Text
from rest_jax.text import markdown, plural


def study_blocks(found: Found, folder: Path) -> list[Block]:
  """Words, table and figures of the study; nothing where there is none.

  Args:
    found: what was evaluated and studied.
    folder: of the figures, which are drawn.
  """
  if found.study is None:
    return []
  noise = found.study.noise
  eps = radius_text(max(found.command.eps))
  at = f'{title_of(found.attacks[0].label)} within {eps}'
  words = (
    f'Suppose a defender could see the perturbation by itself and denoise that alone, so that the '
    f'image keeps every detail. How much of the perturbation ({at}, made on the undefended model) '
    'is then gone, and how much harm does the rest still do? This is the test of arXiv 2012.09384; '
    'that it is the share of energy that counts, and how a denoiser that is not linear is applied '
    'to noise (on mid grey), is our reading. `weaker` is no denoiser but the same perturbation '
    'made smaller, for comparison.'
  )
  return [
    Heading('Noise alone'),
    Text(words),
    Text(noise.conclusion(), strong=True),
    *(
      _table(model, [row for row in noise.denoisers if row.model == model.model])
      for model in noise.models
    ),
    Figure(
      folder / 'study.png',
      'Accuracy against the share of the energy of the perturbation that was removed: were removal '
      'of energy enough, the lines would reach the clean accuracy on the right.',
    ),
    Figure(
      folder / 'bands.png',
      'The perturbation cut into bands of frequency: the energy of each, the accuracy where a band '
      'alone is left, and where all but that band is left.',
    ),
    Figure(
      folder / 'spectra.png',
      'Where the perturbation lies, at the input and after each stage of the model: the share of '
      'its energy by frequency, and its size relative to the features that it disturbs.',
    ),
  ]


def _table(model: ModelResult, rows: list[DenoiserResult]) -> Table:
  caption = (
    f'Noise alone, {plural(model.images, "image")}: {model.clean.value:.1%} are right without a '
    f'perturbation, {model.attacked.value:.1%} with all of it.'
  )
  head = ['denoiser', 'strength', 'energy removed %', 'accuracy %', '95% interval']
  return Table(caption, head, [_row(row) for row in rows])


def _row(row: DenoiserResult) -> list[Cell]:
  accuracy = row.alone.accuracy
  return [
    Cell(markdown(row.denoiser)),
    Cell(f'{row.strength:g}'),
    Cell(f'{100 * row.alone.removed:.1f}'),
    Cell(f'{100 * accuracy.value:.1f}'),
    Cell(f'{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}', 'quiet'),
  ]
