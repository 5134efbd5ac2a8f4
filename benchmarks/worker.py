"""One side of a comparison in a process of its own: does work when it is told, and says how long.

Started as `python -m benchmarks.worker ours|theirs`, by `benchmarks/processes.py`. A question is a
line of JSON on stdin; an answer is a line of JSON behind an '@' on stdout, so that what libraries
print does no harm. It needs nothing but Python; a task brings in JAX or PyTorch.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.work import Work

MARK = '@'
_STATUS, _CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')
_MOST_OF_ERROR = 300


def resident(peak: bool = False) -> int | None:
  """Bytes of this process in memory now, or at most since `settle`; None where /proc is missing."""
  try:
    found = re.search(rf'^{"VmHWM" if peak else "VmRSS"}:\s+(\d+)', _STATUS.read_text(), re.M)
  except OSError:
    return None
  return int(found[1]) * 1024 if found else None


def settle() -> bool:
  """Hands freed memory back to the system and forgets the peak; whether the system took part."""
  gc.collect()
  try:
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text('5')
  except (AttributeError, OSError):
    return False
  return True


class Worker:
  """The pieces of work of a side, by slot, and the questions about them."""

  def __init__(self, side: str, device: str):
    self.side = side
    self.hooks = importlib.import_module(f'benchmarks.{side}')
    self.hooks.begin(device)
    self.work: dict[str, Work] = {}

  def answer(self, question: dict[str, Any]) -> dict[str, Any]:
    """Does what a question asks for."""
    known: dict[str, Callable[..., dict[str, Any]]] = {
      'about': self.hooks.about,
      'prepare': self.prepare,
      'run': self.run,
      'drop': self.drop,
    }
    return known[question.pop('do')](**question)

  def prepare(self, slot: str, task: str, params: dict[str, Any], peak: bool) -> dict[str, Any]:
    """Sets a piece of work up, and calls it for the first time.

    Args:
      slot: what it is called from then on.
      task: 'module.function' of this side.
      params: the function's arguments.
      peak: call once more to see how much memory a call takes.

    Returns:
      'setup' and 'first' seconds, 'peak' bytes (inputs and weights count, compilation does not),
      and the facts of the work.
    """
    module, _, function = task.rpartition('.')
    make = getattr(importlib.import_module(f'benchmarks.{self.side}.{module}'), function)
    before = resident() if settle() else None
    start = time.perf_counter()
    work = make(**params)
    built = time.perf_counter()
    work.call()
    first = time.perf_counter() - built
    self.work[slot] = work
    found = {'setup': built - start, 'first': first, 'peak': None}
    if peak:
      found['peak'] = self._peak(work, before)
    return {**found, **work.facts()}

  def _peak(self, work: Work, before: int | None) -> int | None:
    """Most bytes during a call: of the device, or of the process over what it had `before`.

    What a compiler leaves behind does not count where the side knows what its arrays hold.
    """
    settle()
    now, held = resident(), self.hooks.held()
    work.call()
    most = resident(peak=True)
    if self.hooks.device_peak() is not None or most is None or now is None or before is None:
      return self.hooks.device_peak()
    return max(most - before if held is None else most - now + held, 0)

  def run(self, slot: str, calls: int) -> dict[str, float]:
    """Seconds and seconds of processor time of a call, the mean of some."""
    call = self.work[slot].call
    start, processor = time.perf_counter(), time.process_time()
    for _ in range(calls):
      call()
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return {'seconds': seconds / calls, 'processor': processor / calls}

  def drop(self) -> dict[str, Any]:
    """Lets go of all work."""
    for work in self.work.values():
      work.close()
    self.work.clear()
    self.hooks.forget()
    settle()
    return {}


def _error(error: BaseException) -> dict[str, str]:
  text = ' '.join(str(error).split())
  return {'error': f'{type(error).__name__}: {text[:_MOST_OF_ERROR]}'}


def main() -> None:
  """Answers until stdin ends."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('side', choices=('ours', 'theirs'))
  parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
  args = parser.parse_args()
  worker: Worker | None = None
  for line in sys.stdin:
    try:
      worker = worker or Worker(args.side, args.device)
      found = worker.answer(json.loads(line))
    except Exception as error:  # of any library: the other side and the next case go on
      found = _error(error)
    print(f'\n{MARK}{json.dumps(found)}', flush=True)
  if worker is not None:
    worker.drop()


if __name__ == '__main__':
  main()
