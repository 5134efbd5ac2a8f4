"""Speed of this project on this machine, beside its peers in the same run.

  python -m benchmarks.run --quick                  # everything, small: what make bench runs
  python -m benchmarks.run --suite forward training \\
      --peers rest=ResT groupcam=Group-CAM autoattack=auto-attack python=PYTHON_WITH_TORCH

The two sides of a comparison are processes of their own that take turns, call by call; the figure
to quote is the median of the ratios round by round. Without a peer's path ours alone is measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cases import PEERS, SUITES, Case, Options, Ours, Suite, chosen
from benchmarks.measuring import QUICK, Budget, measure
from benchmarks.processes import Pool, SideError
from rest_jax.errors import UserError, did_you_mean, run_script


class _Parser(argparse.ArgumentParser):
  """Errors are one line."""

  def error(self, message: str):
    raise UserError(f'{message}; see --help')


def parser() -> argparse.ArgumentParser:
  """The flags."""
  named = '; '.join(f'{name}: {what}' for name, (what, _) in PEERS.items())
  made = _Parser(
    prog='python -m benchmarks.run',
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
  )
  made.add_argument('--suite', nargs='+', metavar='NAME', help='all by default; --list names them')
  made.add_argument('--cases', nargs='+', metavar='WORD', help='only cases with all these columns')
  made.add_argument('--models', nargs='+', metavar='NAME', default=(), help='of suites of models')
  made.add_argument('--peers', nargs='+', metavar='NAME=PATH', default=[], help=named)
  made.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
  made.add_argument('--quick', action='store_true', help='small shapes, few rounds')
  made.add_argument('--repeats', type=int, help='rounds of a case, at most')
  made.add_argument('--seconds', type=float, help='of a case, after which no round begins')
  made.add_argument('--data_dir', help='of TFDS, with cifar10; without it images are noise')
  made.add_argument('--output', type=Path, default=Path('work/benchmarks'), help='folder')
  made.add_argument('--list', action='store_true', help='names the suites and their cases')
  return made


def peers_of(given: list[str]) -> dict[str, str]:
  """Name to path of the peers that --peers names.

  Raises:
    UserError: no NAME=PATH, an unknown name, nothing there, or no interpreter with torch.
  """
  found: dict[str, str] = {}
  for text in given:
    name, sign, path = text.partition('=')
    if not sign or not path:
      raise UserError(f'--peers takes NAME=PATH, not {text!r}')
    if name not in PEERS:
      raise UserError(f'there is no peer {name!r}; {did_you_mean(name, PEERS)}')
    what, inside = PEERS[name]
    # Not resolved: the link of a virtual environment says which it is.
    place = Path(os.path.abspath(os.path.expanduser(path)))
    if not (place / inside).is_file():
      raise UserError(f'--peers {name}: {place} is not {what}')
    found[name] = str(place)
  if found and 'python' not in found:
    raise UserError('the peers need an interpreter with torch: add python=PATH to --peers')
  if found:
    _check_torch(found['python'])
  return found


def _check_torch(python: str) -> None:
  command = [python, '-c', 'import importlib.util as u; raise SystemExit(not u.find_spec("torch"))']
  try:
    status = subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode
  except OSError:
    status = 1
  if status:
    raise UserError(f'--peers python: {python} has no torch; name an interpreter that has it')


def budget_of(args: argparse.Namespace) -> Budget:
  """How often a case is measured.

  Raises:
    UserError: numbers that are not positive.
  """
  base = QUICK if args.quick else Budget()
  repeats = base.repeats if args.repeats is None else args.repeats
  seconds = base.seconds if args.seconds is None else args.seconds
  if repeats < 1 or not seconds > 0:
    raise UserError(f'--repeats and --seconds are above 0, got {repeats} and {seconds:g}')
  return Budget(repeats, min(base.least, repeats), seconds)


def cases_of(
  suites: list[Suite], options: Options, words: list[str] | None
) -> dict[str, list[Case]]:
  """The cases of each suite that have all the words among their columns.

  Raises:
    UserError: no case has.
  """
  wanted = set(words or ())
  found = {
    suite.name: [
      case
      for case in suite.cases(options)
      if wanted <= {str(value) for value in case.about.values()}
    ]
    for suite in suites
  }
  if not any(found.values()):
    raise UserError(f'no case of {", ".join(found)} has the columns {", ".join(sorted(wanted))}')
  return found


def machine(pool: Pool, options: Options) -> dict[str, Any]:
  """What the device can do at most: operations and copied bytes a second."""
  process = pool.get('ours')
  found: dict[str, Any] = {}
  for name, about in (('matmul', 'flops'), ('copy', 'bytes')):
    for dtype in ('float32', 'bfloat16') if name == 'matmul' else ('float32',):
      params = {'quick': options.quick, 'dtype': dtype}
      task = {'slot': name, 'task': f'machine.{name}', 'params': params, 'peak': False}
      facts = process.ask('prepare', **task)
      best = min(process.ask('run', slot=name, calls=1)['seconds'] for _ in range(5))
      found[f'{name} {dtype}' if name == 'matmul' else name] = facts[about] / best
      process.ask('drop')
  return found


def show(suites: list[Suite], cases: dict[str, list[Case]]) -> None:
  """Names suites and cases."""
  for suite in suites:
    print(f'{suite.name}: {suite.title}')
    for case in cases[suite.name]:
      absent = {side.peer for side in case.sides.values() if not isinstance(side, Ours)}
      needs = f' ({", ".join(sorted(map(str, absent)))})' if absent else ''
      print(f'  {case.name}{needs}')


def main() -> int:
  """Measures, and writes the report as it grows."""
  args = parser().parse_args()
  suites = chosen(args.suite)
  checkouts = peers_of(args.peers)
  output = args.output.expanduser()
  options = Options(args.quick, args.device, output.resolve(), args.data_dir, tuple(args.models))
  cases, budget = cases_of(suites, options, args.cases), budget_of(args)
  if args.list:
    show(suites, cases)
    return 0
  pool = Pool(args.device, checkouts.get('python'))
  try:
    return run(suites, cases, pool, budget, options, checkouts)
  finally:
    pool.close()


def run(suites, cases, pool: Pool, budget: Budget, options: Options, checkouts) -> int:
  """Measures all cases; 1 where one of ours could not be."""
  try:
    able = machine(pool, options)
  except SideError as error:
    raise UserError(f'no work can be done on the device {options.device!r}: {error}') from error
  written = report.Report(options, able, checkouts)
  failed = 0
  for suite in suites:
    records = written.add(suite)
    for case in cases[suite.name]:
      record = measure(case, pool, budget, checkouts, written.noting(records, pool.about))
      print(f'{suite.name}: {report.line(record)}', flush=True)
      failed += any(
        'error' in record['sides'][name]
        for name, side in case.sides.items()
        if isinstance(side, Ours)
      )
  written.write(last=True)
  print(f'{written.path}.md')
  return int(failed > 0)


if __name__ == '__main__':
  run_script(main)


__all__ = ['SUITES', 'main']
