"""Evaluations killed with SIGKILL at random moments and run again: are the results the same?

  python benchmarks/kills.py --kills 10 --devices 4 --output work/kills

Each evaluation of `EVALUATIONS` runs once undisturbed and once in another folder, where it is
killed again and again: some kills come while it starts, the others after a random number of new
records. Then the results have to be the same, to the bit, but for times; and no image may have been
recorded twice in a case: nothing but the batch at hand is done again. A minute or so an
evaluation, most of it starting and compiling, which JAX_COMPILATION_CACHE_DIR saves in part.
"""

import argparse
import collections
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TIMES = ('milliseconds', 'seconds', 'images_per_second', 'environment', 'command', 'device')
_SPEED = 'speed'  # the case that holds one


class Evaluation(NamedTuple):
  """A command with '{0}' for its subjects, without its place for results; the JSON file there that
  holds the results."""

  command: str
  results: str


# What they evaluate is small: most of the time goes into starting and compiling.
_ON = '--model {0}/tiny --data {0}/colours --batch_size 4'
EVALUATIONS = {
  'explain.py --evaluate': Evaluation(
    f'explain.py --evaluate --method grad_cam hires_cam {_ON}', 'table.json'
  ),
  'train.py --mode evaluate': Evaluation(f'train.py --mode evaluate {_ON}', 'results.json'),
  'attacks.evaluate': Evaluation('benchmarks/kills_subjects.py {0}', 'summary.json'),
  'defend.py': Evaluation(
    f'defend.py --attack fgsm --defense bit_depth --study noise --limit 24 {_ON}', 'results.json'
  ),
}


def main() -> int:
  """Runs what was asked for and prints a table; returns 1 where results differ."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--only', nargs='+', choices=list(EVALUATIONS), default=list(EVALUATIONS))
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--devices', type=int, default=4, help='virtual ones, on a CPU')
  parser.add_argument('--seed', type=int, default=0, help='of the moments')
  parser.add_argument('--output', type=Path, default=Path('work/kills'), help='has to be new')
  args = parser.parse_args()
  args.output.mkdir(parents=True)
  subjects = args.output.resolve() / 'subjects'
  subprocess.run([sys.executable, 'benchmarks/kills_subjects.py', subjects], cwd=ROOT, check=True)
  print('| evaluation | kills | records at each | records | twice | results |')
  print('|---|---:|---|---:|---:|---|')
  same = [row(name, args, random.Random(f'{args.seed} {name}')) for name in args.only]
  return 0 if all(same) else 1


def row(name: str, args: argparse.Namespace, chance: random.Random) -> bool:
  """Tries one evaluation, prints its line of the table, and says whether all is well."""
  evaluation, place = EVALUATIONS[name], args.output / name.split('.')[0]
  subjects = args.output.resolve() / 'subjects'
  evaluation = evaluation._replace(command=evaluation.command.format(subjects))
  began = time.monotonic()
  with start(evaluation, place / 'undisturbed', args.devices) as process:
    while process.poll() is None and not amount(place / 'undisturbed'):
      time.sleep(0.05)
    first = time.monotonic() - began
    finished(process)
  total = amount(place / 'undisturbed')
  killed = place / 'killed'
  seen = [
    kill(evaluation, killed, args.devices, first, total, chance, last=args.kills - number)
    for number in range(args.kills)
  ]
  with start(evaluation, killed, args.devices) as process:
    finished(process)
  lines = records(killed)
  twice = sum(count - 1 for count in collections.Counter(lines).values())
  folders = (place / 'undisturbed', killed)
  alike = results(folders[0] / evaluation.results) == results(folders[1] / evaluation.results)
  alike = alike and set(lines) == set(records(folders[0]))
  shown = [str(count) for count in seen if count is not None]
  words = 'the same' if alike else 'OTHERS'
  print(
    f'| `{name}` | {len(shown)} | {", ".join(shown)} | {len(lines)} | {twice} | {words} |',
    flush=True,
  )
  return alike and not twice


def start(evaluation: Evaluation, folder: Path, devices: int) -> subprocess.Popen:
  """Starts an evaluation; what it says goes into a file beside its results."""
  folder.mkdir(parents=True, exist_ok=True)
  flag = f'--xla_force_host_platform_device_count={devices}'
  env = os.environ | {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()}
  with (folder / 'said.txt').open('a') as said:
    return subprocess.Popen(
      [sys.executable, *shlex.split(evaluation.command), '--output', str(folder.resolve())],
      cwd=ROOT,
      env=env,
      stdout=said,
      stderr=said,
    )


def finished(process: subprocess.Popen) -> None:
  """Waits for the end of an evaluation, which has to be a good one."""
  if process.wait():
    sys.exit(f'{process.args} ended with status {process.returncode}; see said.txt beside results')


def kill(
  evaluation: Evaluation,
  folder: Path,
  devices: int,
  first: float,
  total: int,
  chance: random.Random,
  last: int,
) -> int | None:
  """Starts an evaluation and kills it.

  Args:
    evaluation: which.
    folder: where its results go.
    devices: virtual ones.
    first: seconds that it takes to its first record.
    total: records that it makes.
    chance: decides on the moment.
    last: how many kills are left, this one among them; so many times there has to be work.

  Returns:
    How many records there were; None where it had ended before.
  """
  before = amount(folder)
  with start(evaluation, folder, devices) as process:
    if chance.random() < 0.3:
      time.sleep(chance.uniform(0.0, first))
    else:
      wanted = before + chance.randint(1, max(1, 2 * (total - before) // (last + 1)))
      while process.poll() is None and amount(folder) < wanted:
        time.sleep(0.005)
      time.sleep(chance.uniform(0.0, 0.05))
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
  return amount(folder) if killed else None


def amount(folder: Path) -> int:
  """Whole lines of all records below a folder, headers left out."""
  return sum(max(path.read_bytes().count(b'\n') - 1, 0) for path in _files(folder))


def _files(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob('*.jsonl') if b'"format"' in path.read_bytes()[:100])


def records(folder: Path) -> list[tuple[str, str, int]]:
  """File, case and image of each whole line of all records below a folder."""
  found = []
  for path in _files(folder):
    content = path.read_bytes()
    for line in content[: content.rfind(b'\n') + 1].splitlines()[1:]:
      value = json.loads(line)
      if value['case'] == _SPEED:
        continue
      found.append((str(path.relative_to(folder)), value['case'], value['image']))
  return found


def results(path: Path) -> Any:
  """What a JSON file holds, without the times."""
  return without_times(json.loads(path.read_text()))


def without_times(value: Any) -> Any:
  """JSON values without what differs from run to run."""
  if isinstance(value, dict):
    return {name: without_times(one) for name, one in value.items() if name not in TIMES}
  return [without_times(one) for one in value] if isinstance(value, list) else value


if __name__ == '__main__':
  sys.exit(main())
