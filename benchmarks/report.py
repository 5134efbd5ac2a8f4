"""The report of a run: one JSON file with every measured second, and a Markdown page of tables."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import Options, Suite
from benchmarks.measuring import spread
from rest_jax import files
from rest_jax.evaluation import document
from rest_jax.evaluation.environment import command_line
from rest_jax.text import markdown

FORMAT = 1  # of the JSON file
NAME = 'benchmarks'
_UNITS = ((1, 's'), (1e-3, 'ms'), (1e-6, 'µs'))


def seconds(value: float) -> str:
  """A time in a unit that suits it: '1.38 s', '12.4 ms'."""
  size, unit = next((pair for pair in _UNITS if value >= pair[0]), _UNITS[-1])
  return f'{value / size:.3g} {unit}'


def amount(value: float) -> str:
  """A number of three digits: '1.25 G', '830 M', '12'."""
  for size, unit in ((1e12, ' T'), (1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
    if value >= size:
      return f'{value / size:.3g}{unit}'
  return f'{value:.3g}'


def ratio(found: Mapping[str, float]) -> str:
  """'1.56 (1.49-1.60)'."""
  return f'{found["median"]:.2f} ({found["least"]:.2f}-{found["most"]:.2f})'


def time_of(side: Mapping[str, Any]) -> str:
  """The median of a side's seconds with their spread, or why there are none."""
  for reason in ('error', 'absent'):
    if reason in side:
      return 'failed' if reason == 'error' else 'not run'
  if not side['seconds']:
    return '-'
  found = spread(side['seconds'])
  if len(side['seconds']) == 1:
    return seconds(found['median'])
  return f'{seconds(found["median"])} ({seconds(found["least"])}-{seconds(found["most"])})'


def line(record: Mapping[str, Any]) -> str:
  """A record for the terminal."""
  about = ', '.join(f'{value}' for value in record['case'].values())
  sides = '; '.join(f'{name} {time_of(side)}' for name, side in record['sides'].items())
  found = '; '.join(f'{name} / first {ratio(r)}' for name, r in record['ratios'].items())
  errors = [f'{n}: {s["error"]}' for n, s in record['sides'].items() if 'error' in s]
  return ' | '.join(filter(None, [about, sides, found, *errors]))


def shares(record: Mapping[str, Any], able: Mapping[str, float]) -> tuple[str, str]:
  """What the first side reaches of the measured peak of products and of copying.

  Only of programs without a loop, of which XLA counts the operations; a dash otherwise.
  """
  first = next(iter(record['sides'].values()))
  if not first.get('seconds') or first.get('loops', True) or 'flops' not in first:
    return '-', '-'
  time = statistics.median(first['seconds'])
  dtype = 'bfloat16' if 'bfloat16' in record['case'].values() else 'float32'
  found = []
  for what, best in (('flops', f'matmul {dtype}'), ('bytes', 'copy')):
    known = first.get(what) and able.get(best)
    found.append(f'{first[what] / time / able[best]:.0%}' if known else '-')
  return found[0], found[1]


def _processor() -> str:
  """The CPU's name."""
  try:
    lines = Path('/proc/cpuinfo').read_text('utf-8').splitlines()
  except OSError:
    lines = []
  names = [text.partition(':')[2].strip() for text in lines if text.startswith('model name')]
  return names[0] if names else platform.processor() or platform.machine()


class Report:
  """What a run has found so far, and the files that hold it."""

  def __init__(self, options: Options, able: Mapping[str, float], checkouts: Mapping[str, str]):
    """Begins.

    Args:
      options: of the run; the files go to its `output`.
      able: operations and bytes a second of the device, as `run.machine` finds them.
      checkouts: peers that take part.
    """
    files.make_folder(options.output)
    self.path = options.output / NAME
    self.options = options
    self.about: dict[str, Any] = {}
    self.suites: list[tuple[Suite, list[dict[str, Any]]]] = []
    self.head = {
      'format': FORMAT,
      'command': command_line().replace('python run.py', 'python -m benchmarks.run'),
      'began': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      'quick': options.quick,
      'device': options.device,
      'processor': _processor(),
      'system': platform.platform(),
      'cores': len(os.sched_getaffinity(0)),
      'load': [round(os.getloadavg()[0], 2)],
      'able': dict(able),
      'peers': sorted(checkouts),
      'compilation_cache': bool(os.environ.get('JAX_COMPILATION_CACHE_DIR')),
    }

  def add(self, suite: Suite) -> list[dict[str, Any]]:
    """The list that a suite's records go to."""
    records: list[dict[str, Any]] = []
    self.suites.append((suite, records))
    return records

  def noting(
    self, records: list[dict[str, Any]], about: Mapping[str, Any]
  ) -> Callable[[dict[str, Any]], None]:
    """What takes in a record that grows, and writes the report each time.

    Args:
      records: of its suite, from `add`.
      about: what the sides' processes say of themselves.
    """
    place = len(records)

    def note(record: dict[str, Any]) -> None:
      records[place:] = [record]
      self.about = dict(about)
      self.write()

    return note

  def content(self) -> dict[str, Any]:
    """All of it, as JSON."""
    found = [{'name': s.name, 'title': s.title, 'records': records} for s, records in self.suites]
    return {**self.head, 'sides': self.about, 'suites': found}

  def write(self, last: bool = False) -> None:
    """Writes both files; `last` adds what a suite concludes from all its records."""
    if last:
      self.head['load'].append(round(os.getloadavg()[0], 2))
    blocks: list[Any] = [*self._begin()]
    for suite, records in self.suites:
      blocks += _of_suite(suite, records, self.head['able'])
      if last and suite.conclude is not None and records:
        blocks += suite.conclude(records, self.options.output)
    files.write_json(self.path.with_suffix('.json'), self.content())
    text = document.to_markdown('Speed', blocks, self.options.output)
    files.write_text(self.path.with_suffix('.md'), text)

  def _begin(self) -> list[Any]:
    head, about = self.head, self.about
    able = ', '.join(
      f'{name} {amount(value)}{"B/s" if name == "copy" else "FLOP/s"}'
      for name, value in head['able'].items()
    )
    versions = '; '.join(
      f'{side}: ' + ', '.join(f'{name} {v}' for name, v in found['versions'].items())
      for side, found in about.items()
    )
    device = about.get('ours', {}).get('device', head['device'])
    load = ' and '.join(f'{value:.1f}' for value in head['load'])
    cached = ', or finds what is compiled in a cache' if head['compilation_cache'] else ''
    quick = ' **A quick run: small shapes and few rounds; its figures say little.**'
    peers = 'Peers: ' + (', '.join(head['peers']) or 'none, so ours alone was measured') + '.'
    return [
      document.Text(f'`{head["command"]}`, {head["began"]}.{quick if head["quick"] else ""}'),
      document.Text(
        f'{markdown(device)}, {head["cores"]} cores, {markdown(head["processor"])}, '
        f'{markdown(head["system"])}; load average {load}. Measured at most: {able}. '
        f'{markdown(versions)}. {peers}'
      ),
      document.Text(
        'Times are medians of a call (least-most). A ratio is the time of the other over that of '
        'the first, the median round by round (least-most): above 1 the first is the quicker. The '
        f'first call compiles{cached}. Memory is the peak of a call over what the process had '
        'before: weights and inputs count. Shares are of the measured peak of products and of '
        "copying, by XLA's count of the first side's program."
      ),
    ]


def _of_suite(suite: Suite, records: Sequence[Mapping[str, Any]], able) -> list[Any]:
  """Heading, meaning, table and failures."""
  blocks: list[Any] = [document.Heading(f'{suite.name}: {suite.title}')]
  if suite.about:
    blocks.append(document.Text(suite.about))
  for names in dict.fromkeys(tuple(record['case']) for record in records):
    same = [record for record in records if tuple(record['case']) == names]
    blocks.append(_table(names, same, able))
  missing = {
    f'{name}: {why} {text}'
    for record in records
    for name, side in record['sides'].items()
    for why, text in (('failed,', side.get('error')), ('not run, no --peers', side.get('absent')))
    if text
  }
  if missing:
    blocks.append(document.Bullets([markdown(text) for text in sorted(missing)]))
  return blocks


def _table(columns: Sequence[str], records: Sequence[Mapping[str, Any]], able) -> document.Table:
  sides = list(dict.fromkeys(name for record in records for name in record['sides']))
  head = [*columns, *sides, *(f'{name} / {sides[0]}' for name in sides[1:])]
  head += ['items/s', 'first call', 'memory', 'of products', 'of copying']
  rows = []
  for record in records:
    found = record['sides']
    cells = [markdown(str(value)) for value in record['case'].values()]
    cells += [time_of(found[name]) if name in found else '' for name in sides]
    pairs = record['ratios']
    cells += [ratio(pairs[name]) if name in pairs else '' for name in sides[1:]]
    cells += [_rate(record), _each(found, 'first', seconds), _each(found, 'peak', _bytes)]
    rows.append([document.Cell(cell) for cell in (*cells, *shares(record, able))])
  return document.Table('', [markdown(cell) for cell in head], rows)


def _rate(record: Mapping[str, Any]) -> str:
  """Items a second of the sides, by their medians."""
  return ' / '.join(
    f'{record["items"] / statistics.median(side["seconds"]):.3g}'
    for side in record['sides'].values()
    if side.get('seconds')
  )


def _each(sides: Mapping[str, Mapping[str, Any]], what: str, show) -> str:
  return ' / '.join(show(side[what]) for side in sides.values() if side.get(what) is not None)


def _bytes(value: float) -> str:
  return f'{amount(value)}B' if value >= 1e3 else f'{value:.0f} B'
