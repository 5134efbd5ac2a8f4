"""The page of the defence experiment: means over seeds, intervals, flags."""

import numpy as np
from defense_arms import ARM_EPOCHS, ARMS, BASE_EPOCHS, DENOISERS, SIDE
from scipy import stats

COLUMNS = (
  ('clean', 'clean'),
  ('not_adaptive linf', 'PGD-20, not adaptive'),
  ('pgd linf', 'PGD-20, adaptive'),
  ('auto_attack linf', 'AutoAttack'),
  ('not_adaptive l2', 'L2: PGD-20, not adaptive'),
  ('pgd l2', 'L2: PGD-20, adaptive'),
  ('auto_attack l2', 'L2: AutoAttack'),
)


def page(values: dict) -> str:
  """Markdown with the tables of an experiment."""
  rows, training = values['rows'], values['training']
  seeds = 1 + max(row['seed'] for row in rows)
  lines = [
    '# Band compression and denoisers on adversarially trained models',
    '',
    'Made by `python benchmarks/defense.py`. digit_scenes at '
    f'{SIDE} x {SIDE} pixels, {seeds} seeds of training. Attacks: Linf 8/255 and L2 0.5; PGD on '
    f'the first {values["images"]} test images, AutoAttack on the first '
    f"{values['auto_attack_images']}. Training: from the zoo's model, PGD-3 at Linf 8/255, "
    f'{BASE_EPOCHS:g} epochs for the base of each seed and {ARM_EPOCHS:g} more for each arm. '
    'Numbers are right answers in %, mean over the seeds ± half a 95 % t-interval of it.',
    '',
  ]
  lines += ['## After adversarial training with a layer behind stage 1', '']
  lines += _table(rows, ARMS, COLUMNS)
  lines += ['', '## Denoisers in front of the plain arm', '']
  lines += _table(rows, DENOISERS, COLUMNS[:6])
  lines += ['', '## AutoAttack, Linf: difference from the plain arm', '']
  lines += _differences(rows)
  lines += ['', '## Flags', '', *_flags(rows), '', '## Time', '', *_times(rows, training)]
  return '\n'.join(lines) + '\n'


def value(row: dict, column: str) -> float | None:
  return row['clean']['pgd'] if column == 'clean' else row.get(column)


def _of(rows: list[dict], name: str, column: str) -> np.ndarray:
  found = sorted((row for row in rows if row['name'] == name), key=lambda row: row['seed'])
  values = [value(row, column) for row in found]
  return 100 * np.asarray([v for v in values if v is not None], float)


def _interval(values: np.ndarray) -> str:
  if not len(values):
    return ''
  if len(values) < 2:
    return f'{values[0]:.1f}'
  half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
  return f'{np.mean(values):.1f} ± {half:.1f}'


def _table(rows: list[dict], names, columns) -> list[str]:
  lines = ['| | ' + ' | '.join(title for _, title in columns) + ' |']
  lines += ['|---' * (len(columns) + 1) + '|']
  for name in names:
    cells = [_interval(_of(rows, name, column)) for column, _ in columns]
    if any(cells):
      lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return lines


def _differences(rows: list[dict]) -> list[str]:
  plain = _of(rows, 'none', 'auto_attack linf')
  lines = ['| | points | each seed |', '|---|---|---|']
  for name in [*ARMS[1:], *DENOISERS]:
    found = _of(rows, name, 'auto_attack linf')
    if len(found) == len(plain) and len(plain):
      each = ', '.join(f'{d:+.1f}' for d in found - plain)
      lines.append(f'| {name} | {_interval(found - plain)} | {each} |')
  return lines


def _flags(rows: list[dict]) -> list[str]:
  """Rows in which an adaptive attack found less than the one that is not, or a check was raised."""
  lines = []
  for row in rows:
    for norm in ('linf', 'l2'):
      adaptive, other = row.get(f'pgd {norm}'), row.get(f'not_adaptive {norm}')
      if adaptive is not None and other is not None and adaptive > other:
        lines.append(
          f'- {row["name"]}, seed {row["seed"]}, {norm}: the adaptive attack leaves '
          f'{100 * adaptive:.1f} %, the other {100 * other:.1f} %: masked gradients'
        )
    if row.get('raised'):
      lines.append(f'- {row["name"]}, seed {row["seed"]}: raised {", ".join(row["raised"])}')
  return lines or ['None: no adaptive attack was weaker, and no health check was raised.']


def _times(rows: list[dict], training: dict) -> list[str]:
  lines = ['| | training, s | its updates | PGD, s | AutoAttack, s |', '|---|---|---|---|---|']
  for name in ('base', *ARMS, *DENOISERS):
    trained = [t for run, t in training.items() if run.rsplit('_', 1)[0] == name]
    own = [row for row in rows if row['name'] == name]
    cells = [
      ', '.join(f'{t["seconds"]:.0f}' for t in trained),
      ', '.join(str(t['updates']) for t in trained[:1]),
      *(', '.join(f'{row["seconds"][a]:.0f}' for row in own) for a in ('pgd', 'auto_attack')),
    ]
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return lines
