"""Runs the quick part of the suite with other Pythons and the newest packages, and prints a table.

  python scripts/versions.py --python python3.11 python3.12 python3.13
  python scripts/versions.py --python python3.13 --newest

Each row gets an environment of its own (in --work, kept), by pip: with constraints.txt, and with
--newest without. Exit status 1 where a row failed.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Models, gradients, layers, attacks, explanations, commands, files, and bytecode, which each Python
# has another one of: what new releases break.
QUICK = (
  'tests/test_front_door.py',
  'tests/test_foreign_layers.py',
  'tests/test_commands.py',
  'tests/test_callables.py',
  'tests/export/test_export.py',
  'tests/ops/test_depthwise.py',
  'tests/models/test_rest_golden.py',
  'tests/attacks/test_projected_gradient.py',
  'tests/train/test_checkpoints.py',
)
SHOWN = ('jax', 'flax', 'orbax-checkpoint', 'numpy')
VERSIONS = (
  'import platform; from importlib.metadata import version; '
  f'print(platform.python_version(), *map(version, {SHOWN}))'
)


def installed(interpreter, newest, work):
  """The Python of an environment with this package and its test extra."""
  name = f'{Path(interpreter).name}-{"newest" if newest else "pinned"}'
  python = work / name / 'bin' / 'python'
  if not python.exists():
    subprocess.run([interpreter, '-m', 'venv', work / name], check=True)
  pins = ['--upgrade'] if newest else ['--constraint', ROOT / 'constraints.txt']
  pip = [python, '-m', 'pip', '--disable-pip-version-check', 'install', '--quiet', *pins]
  subprocess.run([*pip, '--editable', f'{ROOT}[test]'], check=True)
  return python


def row(interpreter, newest, work, tests):
  """(cells, whether the tests passed) of a line of the table."""
  python = installed(interpreter, newest, work)
  found = subprocess.run([python, '-c', VERSIONS], text=True, capture_output=True, check=True)
  run = subprocess.run(
    [python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *tests],
    cwd=ROOT,
    text=True,
    capture_output=True,
  )
  last = (run.stdout.strip().splitlines() or [run.stderr.strip()[-80:]])[-1].strip('= ')
  if run.returncode:
    print(run.stdout[-4000:], file=sys.stderr)
  return [*found.stdout.split(), 'newest' if newest else 'pinned', last], run.returncode == 0


def main():
  """Prints the table; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--python', nargs='+', default=[sys.executable])
  parser.add_argument('--newest', action='store_true', help='the newest packages too')
  parser.add_argument('--only_newest', action='store_true', help='the newest packages alone')
  parser.add_argument(
    '--work', type=Path, default=Path(tempfile.gettempdir()) / 'rest_jax_versions'
  )
  parser.add_argument('--tests', nargs='+', default=QUICK)
  args = parser.parse_args()
  print(f'| Python | {" | ".join(SHOWN)} | packages | quick suite |')
  print('|---' * (len(SHOWN) + 3) + '|', flush=True)
  kinds = [True] if args.only_newest else [False, True] if args.newest else [False]
  good = True
  for newest in kinds:
    for interpreter in args.python:
      cells, passed = row(interpreter, newest, args.work, args.tests)
      good = good and passed
      print(f'| {" | ".join(cells)} |', flush=True)
  return 0 if good else 1


if __name__ == '__main__':
  sys.exit(main())
