"""Measures a case: its sides take turns, call by call, in one run.

A machine that slows down slows both sides then, and the figure to quote is the median of the ratios
round by round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.cases import Case, Ours, Theirs
from benchmarks.processes import Pool, Side, SideError

# What a turn takes at least: shorter calls are made several times.
SHORTEST_TURN = 0.05
# Threads of the side before may still be looking for work for some milliseconds.
PAUSE = 0.02


@dataclasses.dataclass(frozen=True)
class Budget:
  """How long a case may take.

  Attributes:
    repeats: rounds, at most.
    least: rounds, at least.
    seconds: after which no further round than the `least` begins.
  """

  repeats: int = 15
  least: int = 5
  seconds: float = 60.0


QUICK = Budget(3, 2, 2.0)


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median, least and most of some values."""
  return {'median': statistics.median(values), 'least': min(values), 'most': max(values)}


def ratios(first: Sequence[float], other: Sequence[float]) -> dict[str, float]:
  """Spread of other / first, round by round: over 1 where the first is the quicker one."""
  return spread([b / a for a, b in zip(first, other, strict=True)])


def measure(
  case: Case,
  pool: Pool,
  budget: Budget,
  checkouts: Mapping[str, str],
  note: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
  """Measures the sides of a case that can be.

  Args:
    case: what is compared.
    pool: the processes.
    budget: how often.
    checkouts: peers that are there, by name.
    note: called with what there is after each side that runs by itself, for what may be ended.

  Returns:
    JSON: 'case' (columns), 'items', 'sides' (name to what was found, or an 'error', or 'absent'),
    'ratios' (name of a side but the first, to the spread of its time over the first's).
  """
  record: dict[str, Any] = {'case': dict(case.about), 'items': case.items, 'sides': {}}
  if case.repeats is not None:
    budget = dataclasses.replace(
      budget, repeats=case.repeats, least=min(budget.least, case.repeats)
    )
  groups = [[name] for name in case.sides] if case.alone or case.once else [list(case.sides)]
  for names in groups:
    _measure_group(case, names, record, pool, budget, checkouts)
    clock = 'processor' if case.processor else 'seconds'
    record['ratios'] = _all_ratios(record['sides'], clock)
    note(record)
  return record


def _measure_group(case: Case, names, record, pool: Pool, budget: Budget, checkouts) -> None:
  """Sides that take turns with one another."""
  with contextlib.ExitStack() as stack:
    ready: dict[str, Side] = {}
    for name in names:
      side = case.sides[name]
      try:
        if side.peer is not None and side.peer not in checkouts:
          raise _AbsentError(side.peer)
        process = stack.enter_context(_process(case, side, pool))
        record['sides'][name] = _prepare(case, name, side, process, record, checkouts)
        ready[name] = process
      except _AbsentError as absent:
        record['sides'][name] = {'absent': str(absent)}
      except SideError as error:
        record['sides'][name] = {'error': str(error)}
    if not case.once:
      _rounds(case, ready, record, budget)
    for process in {id(process): process for process in ready.values()}.values():
      with contextlib.suppress(SideError):
        process.ask('drop')


class _AbsentError(Exception):
  """A peer that the user did not name."""


@contextlib.contextmanager
def _process(case: Case, side: Ours | Theirs, pool: Pool) -> Iterator[Side]:
  """The process of a side, which ends with the case where it is the case's own."""
  if not (case.fresh or case.alone or case.once or case.processor):
    yield pool.get(side.who)
    return
  process = pool.start(side.who)
  try:
    yield process
  finally:
    process.close()


def _prepare(case: Case, name: str, side, process: Side, record, checkouts) -> dict[str, Any]:
  """Sets a side up; 'batch' of 0 becomes what the first side has found to fit."""
  params = dict(side.params)
  if side.peer not in (None, 'python'):
    params['checkout'] = checkouts[side.peer]
  if params.get('batch') == 0 and record['sides']:
    params['batch'] = next(iter(record['sides'].values())).get('batch', 0)
  peak = not (case.once or case.processor)
  found = process.ask('prepare', slot=name, task=side.task, params=params, peak=peak)
  record['items'] = found.get('batch', record['items'])
  found.update(seconds=[], processor=[])
  if case.once:
    found['seconds'].append(found['first'])
  if case.processor:
    if not process.tree():
      raise SideError('processor time of all processes of a side needs psutil')
    found['start_processor'] = process.processor_seconds()
    process.turn(awake=False)
  return found


def _rounds(case: Case, ready: Mapping[str, Side], record, budget: Budget) -> None:
  """Lets the sides take turns; one that fails is left out from then on."""
  working = dict(ready)
  calls = dict.fromkeys(working, case.calls)
  start = time.perf_counter()
  for done in range(budget.repeats + 1):
    if done > budget.least and time.perf_counter() - start > budget.seconds:
      break
    for name, process in list(working.items()):
      try:
        found = _turn(case, name, process, calls[name])
      except SideError as error:
        record['sides'][name] = {'error': str(error)}
        del working[name]
        continue
      if not done:  # warms up, and says how many calls make a turn
        least = math.ceil(SHORTEST_TURN / max(found['seconds'], 1e-6))
        calls[name] = max(case.calls, least)
        continue
      for clock in ('seconds', 'processor'):
        record['sides'][name][clock].append(found[clock])
  for name, process in working.items():
    if case.processor:
      process.turn(awake=True)
      record['sides'][name]['peak'] = process.largest_child()


def _turn(case: Case, name: str, process: Side, calls: int) -> dict[str, float]:
  """One turn of a side: seconds of a call, and of processor time."""
  time.sleep(PAUSE)
  if not case.processor:
    return process.ask('run', slot=name, calls=calls)
  process.turn(awake=True)
  before = process.processor_seconds()
  found = process.ask('run', slot=name, calls=calls)
  found['processor'] = (process.processor_seconds() - before) / calls
  process.turn(awake=False)
  return found


def _all_ratios(sides: Mapping[str, dict[str, Any]], clock: str) -> dict[str, dict[str, float]]:
  """The other sides' time over the first's."""
  names = list(sides)
  first = sides[names[0]].get(clock) or []
  found = {}
  for name in names[1:]:
    other = sides[name].get(clock) or []
    count = min(len(first), len(other))
    if count:
      found[name] = ratios(first[:count], other[:count])
  return found
