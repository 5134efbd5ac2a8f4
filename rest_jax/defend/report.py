"""The report of defend.py: what was asked and found, examples, and what every number means."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.figures import enlarge
from rest_jax.attacks.queries import logits_once
from rest_jax.callables import as_function
from rest_jax.defend.command import has_random
from rest_jax.defend.denoise.denoisers import DENOISERS, Denoiser
from rest_jax.defend.evaluate import images_at_a_time
from rest_jax.defend.figures import draw_bars, draw_radii
from rest_jax.defend.found import Found
from rest_jax.defend.protection import protect
from rest_jax.defend.study_results import DenoiserResult, ModelResult
from rest_jax.defend.table import (
  FLAG,
  GRADIENT_CHECKS,
  UNDEFENDED,
  DefenceRow,
  best_rows,
  blocks,
  findings,
  gain,
  interval,
  percent,
  radius_text,
  title_of,
  verdict,
)
from rest_jax.evaluation.batches import batch_rows, keys_of
from rest_jax.evaluation.document import (
  Block,
  Bullets,
  Cell,
  Figure,
  Heading,
  Table,
  Text,
  to_html,
  to_markdown,
)
from rest_jax.evaluation.environment import devices_used, versions_of
from rest_jax.evaluation.figures import Strip, draw_strips
from rest_jax.evaluation.files import write_json, write_text
from rest_jax.evaluation.progress import clock
from rest_jax.text import markdown, markdown_code, plural
from rest_jax.text import percent as in_percent

_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy')
COLUMNS = 6
DEFENCES = 6  # rows below the adversarial images
_NAME_LENGTH = 14


def write_report(found: Found) -> str:
  """Writes report.html, report.md, results.json, results.csv and the figures.

  Args:
    found: what was evaluated.

  Returns:
    A line for the terminal.

  Raises:
    UserError: the folder cannot be written.
  """
  folder = found.command.output
  parts = [
    *_lead(found),
    *_threat(found),
    *_tables(found),
    *_figures(found, folder / 'figures'),
    *_examples(found, folder / 'figures'),
    *study_blocks(found, folder / 'figures'),
    *_meaning(found),
    *_how(found),
  ]
  title = f'Defences of {found.model_name} under attack'
  write_text(folder / 'report.html', to_html(title, parts))
  write_text(folder / 'report.md', to_markdown(title, parts, folder))
  write_json(folder / 'results.json', _results(found))
  write_text(folder / 'results.csv', found.evaluation.to_csv())
  return (
    f'{verdict(found.evaluation.rows)}\n{folder / "report.html"}, report.md, results.json and '
    f'results.csv hold the rest; this run took {clock(found.seconds)}'
  )


# ---- What it says -------------------------------------------------------------------------------


def _lead(found: Found) -> list[Block]:
  rows = found.evaluation.rows
  classes = plural(len(found.classifier.class_names), 'class')
  asked = (
    f'Can a defence in front of a classifier keep an attacker from changing its answer? The '
    f'classifier is {markdown_code(found.model_name)} ({found.classifier.config.model}, {classes}, '
    f'{found.classifier.input_size} pixels a side), the images are '
    f'{markdown(found.data_line or str(len(found.labels)))}.'
  )
  return [Text(asked), Text(verdict(rows), strong=True), Bullets(findings(rows))]


def _threat(found: Found) -> list[Block]:
  command = found.command
  largest = radius_text(max(command.eps))
  radii = ', '.join(radius_text(eps) for eps in command.eps)
  bounds = {
    'linf': 'every value of every pixel may change by at most the radius',
    'l2': 'the Euclidean length of the change, over all pixels and channels, is at most the radius',
    'l1': 'the absolute changes of all pixels and channels sum to at most the radius',
  }
  text = (
    f'The attacker may change an image slightly: {bounds[command.norm]} ({radii}, where pixels go '
    f'from 0 to 1), and pixels stay valid. Any wrong answer is a success. The attacker knows the '
    f'model with all its weights. An attack that does not know of the defence (non-adaptive) is '
    f'aimed at the model by itself; one that does (adaptive) is aimed at the model behind the '
    f'defence, whatever the defence does: a defence whose gradients are useless is attacked with '
    f'the gradient of a stand-in, a random one with the mean over {command.draws} draws.'
  )
  if command.norm == 'linf':
    text += f' At {largest} a value changes by {percent(max(command.eps))} of its range at most.'
  return [Heading('The attacker'), Text(text)]


def _tables(found: Found) -> list[Block]:
  parts: list[Block] = [Heading('Results')]
  for block in blocks(found.evaluation.rows):
    parts.append(_table(block, found.evaluation.confidence))
  reasons = {
    f'{markdown(r.defence)}: {"; ".join(r.reasons)}.': None
    for r in found.evaluation.rows
    if r.reasons
  }
  if reasons:
    parts += [Text(f'{FLAG} marks signs of masked gradients:'), Bullets(list(reasons))]
  return parts


def _table(block: Sequence[DefenceRow], confidence: float) -> Table:
  first = block[0]
  caption = (
    f'Images classified correctly, in %: {title_of(first.attack)} within '
    f'{radius_text(first.eps)} ({first.norm}), {plural(first.images, "image")}. '
    'Green: best defence of the column; red: its worst.'
  )
  head = ['defence', 'no attack', 'non-adaptive attack', 'adaptive attack', 'worst of both']
  head += [f'{100 * confidence:g}% interval', 'gain in points']
  return Table(caption, head, [_row(row, block) for row in block])


def _row(row: DefenceRow, block: Sequence[DefenceRow]) -> list[Cell]:
  name = markdown(row.defence)
  cells = [Cell(f'{name} {FLAG}' if row.masked_gradients else name)]
  for kind in ('clean', 'non_adaptive', 'adaptive', 'worst'):
    share = getattr(row, kind)
    text = '–' if share is None else in_percent(share.value, 1)
    cells.append(Cell(text, _mark(row, block, kind)))
  return [*cells, Cell(interval(row), 'quiet'), Cell(gain(row))]


def _mark(row: DefenceRow, block: Sequence[DefenceRow], kind: str) -> str:
  """Best and worst among the defences, where they differ."""
  defended = [r for r in block if r.defence != UNDEFENDED and getattr(r, kind) is not None]
  values = {round(100 * getattr(r, kind).value, 1) for r in defended}
  if row not in defended or len(values) < 2:
    return ''
  if row in best_rows(block, kind):
    return 'best'
  return 'worst' if round(100 * getattr(row, kind).value, 1) == min(values) else ''


def _figures(found: Found, folder: Path) -> list[Block]:
  parts: list[Block] = []
  for attack in found.attacks:
    rows = [row for row in found.evaluation.rows if row.attack == attack.label]
    for norm in dict.fromkeys(row.norm for row in rows):
      own = [row for row in rows if row.norm == norm]
      parts += _pair(own, folder, f'{attack.label}_{norm}')
  return parts


def _pair(rows: Sequence[DefenceRow], folder: Path, name: str) -> list[Block]:
  """Bars at the radius where defences differ most, and lines over the radii."""
  several = blocks(rows)
  telling = max(several, key=_spread)
  draw_bars(folder / f'bars_{name}.png', telling)
  at = f'{title_of(telling[0].attack)} within {radius_text(telling[0].eps)}'
  caption = f'Images classified correctly, {at}. Whiskers are confidence intervals.'
  parts: list[Block] = [Figure(folder / f'bars_{name}.png', caption)]
  if len(several) > 1:
    draw_radii(folder / f'radii_{name}.png', rows)
    caption = f'The same over the radius of {title_of(telling[0].attack)}; radius 0 is no attack.'
    parts.append(Figure(folder / f'radii_{name}.png', caption))
  return parts


def _spread(block: Sequence[DefenceRow]) -> float:
  """How far apart knowing the defence or not, and the defences, are."""
  values = [row.non_adaptive.value for row in block]
  values += [row.adaptive.value for row in block if row.adaptive is not None]
  return max(values) - min(values)


def _examples(found: Found, folder: Path) -> list[Block]:
  strips = example_strips(found)
  if not strips:
    return []
  draw_strips(folder / 'examples.png', strips)
  attack, eps = title_of(found.attacks[0].label), max(found.command.eps)
  caption = (
    f'Images, {attack} within {radius_text(eps)} on the undefended model, and what '
    'each defence makes of the adversarial image; below each the answer of the model, ✓ where it '
    'is right. This attack does not know of the defences.'
  )
  return [Heading('What it looks like'), Figure(folder / 'examples.png', caption)]


def _meaning(found: Found) -> list[Block]:
  items = [
    'No attack: accuracy behind the defence on the images as they are; what the defence costs.',
    'Non-adaptive attack: adversarial images of the undefended model, judged behind the defence. '
    'This is how many papers measured defences, and it flatters them.',
    'Adaptive attack: the same attack through the defence; what a defence has to withstand.',
    'Worst of both: images that withstand both attacks. An upper bound, as with any attack: a '
    'stronger one may find more.',
    'Interval: exact (Clopper-Pearson), of the worst of both, over '
    f'{plural(len(found.labels), "image")}.',
    'Gain: points of the worst of both beyond the undefended model; * where an exact McNemar test '
    'on the same images finds p < 0.05 (each by itself, not corrected for their number).',
    f'{FLAG}: the adaptive attack is significantly weaker than the other one, or one of the '
    f"attacks' health checks ({', '.join(GRADIENT_CHECKS)}) is raised. The figure then says more "
    'about the attack than about the defence.',
  ]
  parts: list[Block] = [Heading('What the columns mean'), Bullets(items)]
  if found.defences:
    parts += [
      Heading('The defences'),
      Bullets([_describe(*one) for one in found.by_name().items()]),
    ]
  return parts


def _describe(name: str, defence: Any) -> str:
  shown = markdown_code(name)
  if isinstance(defence, Denoiser) and name in DENOISERS:
    info = DENOISERS[name]
    extras = ['random'] * info.random + ['not differentiable'] * (not info.differentiable)
    kind = ', '.join([f'{info.family} domain', *extras])
    return f'{shown} ({kind}). Strength from 0 to 1: {info.strength}. After {info.source}.'
  return f'{shown} (features of the model). Strength from 0 to 1: share of the filtered map.'


def _how(found: Found) -> list[Block]:
  versions = ', '.join(f'{name} {version}' for name, version in versions_of(_PACKAGES).items())
  text = (
    f'{markdown_code(_command_line(found))}, seed {found.command.seed}, '
    f'{devices_used()} ({jax.default_backend()}), {versions}. This run '
    f'took {clock(found.seconds)}; what earlier runs left in the folder was not done again.'
  )
  return [Heading('How it was made'), Text(text)]


def _command_line(found: Found) -> str:
  """The command with all that the figures depend on."""
  command = found.command
  args = ['python', 'defend.py', '--attack', *command.attack, '--norm', command.norm]
  args += ['--eps', *(_exact(radius_text(eps), eps) for eps in command.eps)]
  args += ['--model', command.model, '--data', command.data, '--limit', str(command.limit)]
  args += ['--defense', *(command.defense or ('none',))]
  if command.defense:
    args += ['--strength', *(_exact(f'{value:g}', value) for value in command.strength)]
  draws = command.draws if has_random(command.defense) else None
  optional = {'architecture': command.architecture, 'data_dir': command.data_dir}
  optional |= {'split': command.split, 'steps': command.steps, 'study': command.study}
  for name, value in (optional | {'draws': draws}).items():
    args += [] if value is None else [f'--{name}', str(value)]
  args += [*(['--ema'] * command.ema), '--seed', str(command.seed)]
  return shlex.join(args if command.adaptive else [*args, '--no-adaptive'])


def _exact(short: str, value: float) -> str:
  """A number as people write it, where that is this number."""
  above, _, below = short.partition('/')
  return short if float(above) / float(below or 1) == value else repr(value)


def _results(found: Found) -> dict[str, Any]:
  study = found.study
  return {
    'command': _command_line(found),
    'model': found.command.model,
    'data': found.command.data,
    'images': len(found.labels),
    'attacks': {attack.label: attack.describe() for attack in found.attacks},
    'versions': versions_of(_PACKAGES),
    'device': devices_used(),
    'seconds': round(found.seconds, 1),
    'conclusion': [verdict(found.evaluation.rows), *findings(found.evaluation.rows)],
    **found.evaluation.to_json(),
    'study': None if study is None else study.noise.rows(),
    'bands': None if study is None else study.noise.band_rows(),
    'spectra': None if study is None else [row for s in study.spectra for row in s.rows()],
  }


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
      _study_table(model, [row for row in noise.denoisers if row.model == model.model])
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


def _study_table(model: ModelResult, rows: list[DenoiserResult]) -> Table:
  caption = (
    f'Noise alone, {plural(model.images, "image")}: {in_percent(model.clean.value, 1, "%")} are '
    f'right without a perturbation, {in_percent(model.attacked.value, 1, "%")} with all of it.'
  )
  head = ['denoiser', 'strength', 'energy removed %', 'accuracy %', '95% interval']
  return Table(caption, head, [_study_row(row) for row in rows])


def _study_row(row: DenoiserResult) -> list[Cell]:
  accuracy = row.alone.accuracy
  return [
    Cell(markdown(row.denoiser)),
    Cell(f'{row.strength:g}'),
    Cell(in_percent(row.alone.removed, 1)),
    Cell(in_percent(accuracy.value, 1)),
    Cell(f'{in_percent(accuracy.low, 1)} to {in_percent(accuracy.high, 1)}', 'quiet'),
  ]


def example_strips(found: Found) -> list[Strip]:
  """Rows of pictures of the first images that the attack turned on the undefended model.

  Args:
    found: what was evaluated.

  Returns:
    Clean images, perturbations, adversarial images, and what defences make of the latter; each
    with what the model says. Empty where there are no images, or none that is a picture.
  """
  if found.images.shape[-1] not in (1, 3):
    return []
  model = as_function(found.classifier)
  clean, wrong = (_predict(found, model, x) for x in (found.images, found.adversarial))
  turned = np.flatnonzero((clean == found.labels) & (wrong != found.labels))
  others = np.setdiff1d(np.arange(len(found.images)), turned)
  rows = np.concatenate([turned, others])[:COLUMNS]
  images, adv, labels = found.images[rows], found.adversarial[rows], found.labels[rows]
  shown, factor = enlarge(adv - images)
  strips = [
    _strip(found, 'clean', images, clean[rows], labels),
    Strip('perturbation,\nenlarged', shown, [f'× {f:.3g}' for f in factor], [None] * len(rows)),
    _strip(found, 'adversarial,\nundefended', adv, wrong[rows], labels),
  ]
  for label in _chosen(found):
    strips.append(_defended(found, model, label, rows))
  return strips


def _chosen(found: Found) -> list[str]:
  """The first strength of each defence that gives pictures."""
  first = {}
  for label, defence in found.defences.items():
    if isinstance(defence, Denoiser):
      first.setdefault(label.rsplit(' ', 1)[0], label)
  return list(first.values())[:DEFENCES]


def _defended(found: Found, model: Partial, label: str, rows: np.ndarray) -> Strip:
  defence, adv = found.defences[label], found.adversarial[rows]
  key = jax.random.key(found.command.seed)
  pictures = np.asarray(defence(adv, keys_of(key, rows)))
  # Filled up to the batch that the evaluation has compiled the defended model for.
  size = images_at_a_time(found.command.batch_size, len(found.images))
  at = np.resize(rows, max(size, len(rows)))
  judged = protect(model, defence, key=key, draws=found.command.draws)
  logits = logits_once(judged, found.adversarial[at], keys_of(key, at))
  predicted = np.asarray(logits).argmax(axis=1)[: len(rows)]
  title = label.replace(' ', ',\nstrength ')
  return _strip(found, title, np.clip(pictures, 0, 1), predicted, found.labels[rows])


def _predict(found: Found, model: Partial, images: np.ndarray) -> np.ndarray:
  count = len(images)
  size = images_at_a_time(found.command.batch_size, count)
  key = jax.random.key(found.command.seed)
  logits = (logits_once(model, images[at], keys_of(key, at)) for at in batch_rows(count, size))
  return np.concatenate([np.asarray(part).argmax(axis=1) for part in logits])[:count]


def _strip(
  found: Found, title: str, pictures: np.ndarray, predicted: np.ndarray, labels: np.ndarray
) -> Strip:
  names: Sequence[str] = found.classifier.class_names
  captions = [_short(names[int(number)]) for number in predicted]
  return Strip(title, pictures, captions, [bool(r) for r in predicted == labels])


def _short(name: str) -> str:
  return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + '…'
