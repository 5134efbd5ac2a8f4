"""The page of the defence experiment: means over seeds, intervals, flags."""

import numpy as np
from defense_arms import ARM_EPOCHS, ARMS, BASE_EPOCHS, DENOISERS, SIDE
from defense_energies import energies_table
from scipy import stats

# Attack, norm, kind of share, head of the column.
COLUMNS = (
  ('pgd', 'linf', 'clean', 'clean'),
  ('pgd', 'linf', 'non_adaptive', 'PGD-20, not adaptive'),
  ('pgd', 'linf', 'adaptive', 'PGD-20, adaptive'),
  ('pgd_same', 'linf', 'adaptive', "PGD-20, AutoAttack's images"),
  ('auto_attack', 'linf', 'adaptive', 'AutoAttack'),
  ('pgd', 'l2', 'non_adaptive', 'L2: PGD-20, not adaptive'),
  ('pgd', 'l2', 'adaptive', 'L2: PGD-20, adaptive'),
  ('auto_attack', 'l2', 'adaptive', 'L2: AutoAttack'),
)
COMPARED = (COLUMNS[0], COLUMNS[2], COLUMNS[4], COLUMNS[6], COLUMNS[7])


def page(values: dict) -> str:
  """Markdown with the tables of an experiment."""
  rows, training = values['rows'], values['training']
  seeds = 1 + max(row['seed'] for row in rows)
  lines = [
    '# Band compression and denoisers on adversarially trained models',
    '',
    f'Made by `python benchmarks/defense.py --seeds {seeds} --images {values["images"]} '
    f'--auto_attack_images {values["auto_attack_images"]}`. digit_scenes at {SIDE} x {SIDE} '
    f'pixels, seeds 0 to {seeds - 1} of training and attack. Attacks: Linf 8/255 and L2 0.5; PGD '
    f'on the first {values["images"]} test images, AutoAttack on the first '
    f"{values['auto_attack_images']}. Training: from the zoo's model, PGD-3 at Linf 8/255, "
    f'{BASE_EPOCHS:g} epochs for the base of each seed and {ARM_EPOCHS:g} more for each arm. '
    'Numbers are right answers in %, mean over the seeds ± half a 95 % t-interval of that mean.',
    '',
  ]
  lines += [
    '## After adversarial training with layers behind stage 1 or, all, every stage',
    '',
  ]
  lines += _table(rows, ARMS, COLUMNS)
  lines += ['', '## Denoisers in front of the plain arm', '']
  lines += _table(rows, DENOISERS, COLUMNS[:-1])
  lines += ['', '## Difference from the plain arm, in points', '']
  lines += ['The same images, seed by seed; * where the 95 % t-interval leaves out 0.', '']
  lines += _differences(rows)
  lines += ['', '## Where the perturbation is', '']
  lines += [
    'PGD-20 within 8/255 in Linf on 256 training images, and the Wiener gains S / (S + N) of eight '
    'DCT bands, from energies that are summed over the channels.',
    '',
  ]
  lines += energies_table(values['energies'])
  lines += ['', '## Flags', '', *_flags(rows), '', '## Time', '']
  lines += _times(training, values['seconds'])
  return '\n'.join(lines) + '\n'


def _of(rows: list[dict], name: str, column: tuple[str, ...]) -> np.ndarray:
  """Shares of a row in %, one a seed; empty where they were not measured."""
  attack, norm, kind, _ = column
  found = {
    row['seed']: row[kind]['value']
    for row in rows
    if (row['defence'], row['attack'], row['norm']) == (name, attack, norm)
  }
  return 100 * np.asarray([found[seed] for seed in sorted(found)], float)


def _half(values: np.ndarray) -> float:
  """Half the 95 % t-interval of a mean."""
  spread = np.std(values, ddof=1) / np.sqrt(len(values))
  return float(stats.t.ppf(0.975, len(values) - 1) * spread)


def _interval(values: np.ndarray, sign: str = '') -> str:
  if len(values) < 2:
    return format(values[0], f'{sign}.1f') if len(values) else ''
  return f'{np.mean(values):{sign}.1f} ± {_half(values):.1f}'


def _table(rows: list[dict], names, columns) -> list[str]:
  lines = ['| | ' + ' | '.join(title for *_, title in columns) + ' |']
  lines += ['|---' * (len(columns) + 1) + '|']
  for name in names:
    cells = [_interval(_of(rows, name, column)) for column in columns]
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return lines


def _differences(rows: list[dict]) -> list[str]:
  lines = ['| | ' + ' | '.join(title for *_, title in COMPARED) + ' |']
  lines += ['|---' * (len(COMPARED) + 1) + '|']
  for name in [*list(ARMS)[1:], *DENOISERS]:
    cells = []
    for column in COMPARED:
      found, plain = _of(rows, name, column), _of(rows, 'none', column)
      cells.append(_difference(found - plain) if len(found) else '')
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return lines


def _difference(values: np.ndarray) -> str:
  beyond = len(values) > 1 and abs(np.mean(values)) > _half(values)
  return _interval(values, '+') + ('*' if beyond else '')


def _flags(rows: list[dict]) -> list[str]:
  """Where gradients may be masked: an attack that knows more, or needs no gradients, finds less."""
  lines = _surpassed(rows)
  for row in (row for row in rows if row['attack'] == 'pgd'):
    place = f'- {row["defence"]}, seed {row["seed"]}, {row["norm"]}: '
    known, other = row['adaptive']['value'], row['non_adaptive']['value']
    if row['masked_gradients']:
      lines.append(place + f'**masked gradients**: {"; ".join(row["reasons"])}')
    elif known > other:
      lines.append(
        place + f'the adaptive attack leaves {100 * known:.1f} %, the other {100 * other:.1f} %: '
        'not more than chance'
      )
    if row['raised'] and row['norm'] == 'linf':
      lines.append(place + f'raised {", ".join(row["raised"])}')
  return lines or ['None: no adaptive attack was weaker, and no health check was raised.']


def _gap(rows: list[dict], name: str) -> np.ndarray:
  """Points that PGD leaves and AutoAttack does not, of the same images."""
  known, whole = COLUMNS[3], COLUMNS[4]
  return _of(rows, name, known) - _of(rows, name, whole)


def _surpassed(rows: list[dict]) -> list[str]:
  """Defences of which AutoAttack takes more beyond PGD than it takes of the plain model."""
  lines = []
  for name in [*list(ARMS)[1:], *DENOISERS]:
    more = _gap(rows, name) - _gap(rows, 'none')
    if np.mean(more) > _half(more):
      lines.append(
        f'- {name}, linf: **signs of masked gradients**: AutoAttack leaves '
        f'{np.mean(_gap(rows, name)):.1f} points less than PGD-20 through the defence, on the same '
        f'images; of the plain model '
        f'{np.mean(_gap(rows, "none")):.1f}. Its PGD figures are too high'
      )
  return lines


def _times(training: dict, seconds: dict) -> list[str]:
  pgd = [value for what, value in seconds.items() if what.startswith('pgd')]
  lines = [
    'By the clock on two CPU cores, which other work shared for a part of it; the first seed '
    'compiles, the others find its programs. PGD on all rows, with the '
    f'health checks of the first seed: {", ".join(f"{s:.0f} s" for s in pgd)}.',
    '',
    '| | training, s | its updates | AutoAttack, s |',
    '|---|---|---|---|',
  ]
  for name in ('base', *ARMS, *DENOISERS):
    trained = [t for run, t in training.items() if run.rsplit('_', 1)[0] == name]
    attacked = [value for what, value in seconds.items() if what.endswith('/' + name)]
    cells = [
      ', '.join(f'{t["seconds"]:.0f}' for t in trained),
      ', '.join(str(t['updates']) for t in trained[:1]),
      ', '.join(f'{value:.0f}' for value in attacked),
    ]
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return lines
