"""AutoAttack beside the authors' code: the same weights and images, robust accuracy and time.

  git clone https://github.com/fra31/auto-attack
  python benchmarks/autoattack.py --official auto-attack --official_python PYTHON_WITH_TORCH \
      --data_dir TFDS_DATA_DIR

Trains two small CNNs on CIFAR-10 (`autoattack_models.py`), then runs each attack of the standard
version alone and the whole of it, with both libraries, in Linf and L2 at two radii. Whole runs
have a process each, so that compilation counts, and the libraries take turns. Results are kept
after every run: a second call does what is missing, `--only time` does the whole runs again. With
other weights all is done anew.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from autoattack_models import load_split, trained

from rest_jax import allocator

HERE = Path(__file__).parent
RESULTS = HERE / 'results'
ATTACKS = ('apgd_ce', 'apgd_t', 'fab_t', 'square')
# Random search: another seed changes it by some 0.3 points on 500 images, so three are averaged.
REPEATS = ('square:1', 'square:2')
THREATS = (('linf', '4/255'), ('linf', '8/255'), ('l2', '0.25'), ('l2', '0.5'))
MODELS = ('standard', 'adversarial')
RESNET20 = 'resnet20'
RESNET20_THREATS = (('linf', '0.5/255'), ('l2', '0.1'))
LIBRARIES = ('official', 'ours')


class Results:
  """What was measured, in a JSON file that is written through a temporary name."""

  def __init__(self, path: Path):
    self.path = path
    self.values = json.loads(path.read_text()) if path.exists() else {'runs': {}, 'versions': {}}

  def put(self, library: str, run: str, value: dict) -> None:
    self.values['runs'].setdefault(run, {})[library] = value
    self.write()

  def of_weights(self, model: str, digest: str) -> None:
    """Forgets what was measured with other weights of a model: one table is of one training."""
    weights = self.values.setdefault('weights', {})
    if weights.get(model) != digest:
      runs = self.values['runs']
      self.values['runs'] = {k: v for k, v in runs.items() if not k.startswith(f'{model} ')}
      self.values.get('clean', {}).pop(model, None)
      weights[model] = digest
      self.write()

  def get(self, library: str, run: str) -> dict | None:
    return self.values['runs'].get(run, {}).get(library)

  def write(self) -> None:
    temporary = self.path.with_suffix('.tmp')
    temporary.write_text(json.dumps(self.values, indent=1) + '\n')
    temporary.rename(self.path)


class Worker:
  """A library in a process of its own that answers tasks."""

  def __init__(self, library: str, args, images: Path, threads: int):
    python = args.official_python if library == 'official' else sys.executable
    command = [python, str(HERE / f'autoattack_{library}.py'), '--images', str(images)]
    command += ['--threads', str(threads)]
    command += ['--official', str(args.official)] if library == 'official' else []
    # Both keep the pages that they free, as our commands do.
    env = {**os.environ, **allocator.variables(), 'OMP_NUM_THREADS': str(threads)}
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    self.version = self._read()['version']

  def _read(self) -> dict:
    line = self.process.stdout.readline()  # type: ignore[union-attr]
    if not line:
      sys.exit('a worker ended early; see the lines above')
    return json.loads(line)

  def __call__(self, task: dict) -> dict:
    self.process.stdin.write(json.dumps(task) + '\n')  # type: ignore[union-attr]
    self.process.stdin.flush()  # type: ignore[union-attr]
    return self._read()

  def close(self) -> None:
    self.process.stdin.close()  # type: ignore[union-attr]
    self.process.wait()


def name_of(model: str, threat: tuple[str, str], attack: str) -> str:
  return f'{model} {threat[0]} {threat[1]} {attack}'


def measure(args, results: Results, images: Path, attacks: tuple[str, ...]) -> None:
  """Runs what is missing; 'all' stands for the whole cascade, in a new process each time."""
  workers: dict[str, Worker] = {}
  for model, threat, attack, library in _order(args, attacks):
    run = name_of(model, threat, attack)
    if results.get(library, run) is not None:
      continue
    fresh = attack == 'all'
    threads = args.threads if fresh else args.accuracy_threads
    worker = workers.get(library) or Worker(library, args, images, threads)
    value = worker(_task(args, model, threat, attack))
    print(f'{library:8} {run:36} {value}', flush=True)
    results.values['versions'][library] = worker.version
    results.values.setdefault('clean', {})[model] = round(value['clean'], 6)
    results.put(library, run, value)
    if fresh:
      worker.close()
    else:
      workers[library] = worker
  for worker in workers.values():
    worker.close()


def threats_of(model: str) -> tuple[tuple[str, str], ...]:
  """Radii at which a part of the images withstands everything."""
  return RESNET20_THREATS if model == RESNET20 else THREATS


def asked(args, model: str) -> list[tuple[str, str]]:
  """Those that the command line asks for, all where it names none."""
  return [t for t in threats_of(model) if not args.threats or ':'.join(t) in args.threats]


def eps_of(text: str) -> float:
  """A radius: a number, or one over another."""
  above, _, below = text.partition('/')
  return float(above) / float(below or 1)


def _order(args, attacks: tuple[str, ...]):
  for model in args.models:
    for threat in asked(args, model):
      for attack in attacks:
        for library in LIBRARIES:
          yield model, threat, attack, library


def _task(args, model: str, threat: tuple[str, str], attack: str) -> dict:
  name, _, seed = attack.partition(':')
  return {
    'weights': str(args.work_dir / f'{model}.npz'),
    'norm': threat[0],
    'eps': eps_of(threat[1]),
    'attacks': ATTACKS if name == 'all' else [name],
    'seed': int(seed or 0),
  }


def measured(results: Results) -> list[str]:
  """The models that there are runs of."""
  names = {name.partition(' ')[0] for name in results.values['runs']}
  return [model for model in (*MODELS, RESNET20) if model in names]


def table(args, results: Results) -> str:
  """The Markdown page."""
  count, versions, shown = results.values['images'], results.values['versions'], _alone(results)
  whole = _whole(results)
  lines = [
    "# AutoAttack beside the authors' code",
    '',
    f'{count} CIFAR-10 test images, the same float32 weights in both; {platform.machine()}, '
    f'{args.threads} threads. ours: {versions.get("ours")}; authors: github.com/fra31/auto-attack, '
    f'{versions.get("official")}. Made by',
    '',
    '    python benchmarks/autoattack.py --official auto-attack \\',
    f'      --official_python PYTHON_WITH_TORCH --data_dir TFDS_DATA_DIR{_named(args, results)}',
    '',
    '## Robust accuracy, %',
    '',
    f'Square alone: mean of {_seeds(results)} seeds, the others of one.'
    if shown
    else 'Whole runs.',
    '',
    '| model (clean) | threat | | ' + ' | '.join(shown + ['AutoAttack'] * len(whole)) + ' |',
    '|---|---|---|' + '---|' * len(shown + whole),
  ]
  lines += [
    row
    for model in measured(results)
    for threat in _run_threats(results, model)
    for row in _accuracies(results, model, threat)
  ]
  if whole:
    lines += ['', '## Time of the whole, seconds, compilation included', '']
    lines += ["| model | threat | authors | ours | authors' / ours |", '|---|---|---|---|---|']
    lines += [
      _times(results, model, threat)
      for model in measured(results)
      for threat in _run_threats(results, model)
    ]
  return '\n'.join([*lines, '', _summary(results), ''])


def _run_threats(results: Results, model: str) -> list[tuple[str, str]]:
  runs = results.values['runs']
  return [t for t in threats_of(model) if any(n.startswith(name_of(model, t, '')) for n in runs)]


def _alone(results: Results) -> list[str]:
  """The attacks that were run by themselves."""
  runs = results.values['runs']
  return [attack for attack in ATTACKS if any(name.endswith(f' {attack}') for name in runs)]


def _whole(results: Results) -> list[str]:
  """'all' where the whole was run, which `--only accuracy` leaves out."""
  return ['all'] if any(name.endswith(' all') for name in results.values['runs']) else []


def _named(args, results: Results) -> str:
  """The flags of a table of its own."""
  if args.results == 'autoattack':
    return '' if _whole(results) else ' \\\n      --only accuracy'
  models = ' --resnet20 NPZ --models' if measured(results) == [RESNET20] else ''
  return (
    f' \\\n      --only time{models} --images {results.values["images"]} --results {args.results}'
  )


def _seeds(results: Results) -> str:
  """With how many seeds both have run Square: '3', or '1 to 3' where it differs."""
  runs = results.values['runs']
  alone = [name for name, run in runs.items() if name.endswith('square') and len(run) == 2]
  counts = [1 + sum(len(runs.get(name + r[6:], {})) == 2 for r in REPEATS) for name in alone]
  least, most = min(counts, default=0), max(counts, default=0)
  return str(most) if least == most else f'{least} to {most}'


def _robust(results: Results, library: str, model: str, threat, attack: str) -> float | None:
  """Robust accuracy, the mean over an attack's seeds; None before its first run."""
  names = [attack, *(name for name in REPEATS if name.startswith(attack + ':'))]
  runs = [results.get(library, name_of(model, threat, name)) for name in names]
  found = [run['robust'] for run in runs if run]
  return float(np.mean(found)) if found else None


def _accuracies(results: Results, model: str, threat: tuple[str, str]) -> list[str]:
  clean = results.values.get('clean', {}).get(model, float('nan'))
  rows = []
  for library, label in (('official', 'authors'), ('ours', 'ours')):
    columns = (*_alone(results), *_whole(results))
    values = [_robust(results, library, model, threat, attack) for attack in columns]
    cells = ' | '.join('' if value is None else f'{100 * value:.1f}' for value in values)
    name = f'{model} ({100 * clean:.1f}) | {threat[0]} {threat[1]}'
    rows.append(f'| {name} | {label} | {cells} |')
  return rows


def _times(results: Results, model: str, threat: tuple[str, str]) -> str:
  run = name_of(model, threat, 'all')
  theirs, ours = (results.get(library, run) for library in LIBRARIES)
  if not theirs or not ours:
    return f'| {model} | {threat[0]} {threat[1]} | | | |'
  a, b = theirs['seconds'], ours['seconds']
  return f'| {model} | {threat[0]} {threat[1]} | {a:.1f} | {b:.1f} | {a / b:.2f} |'


def _summary(results: Results) -> str:
  gaps, times = [], []
  for model in measured(results):
    for threat in threats_of(model):
      for attack in (*ATTACKS, 'all'):
        pair = [_robust(results, library, model, threat, attack) for library in LIBRARIES]
        if pair[0] is not None and pair[1] is not None:
          gaps.append(abs(pair[0] - pair[1]))
      run = name_of(model, threat, 'all')
      whole = [value for library in LIBRARIES if (value := results.get(library, run))]
      if len(whole) == 2:
        times.append([value['seconds'] for value in whole])
  text = f'Largest difference of {len(gaps)} pairs: {100 * max(gaps, default=0):.2f} points.'
  if times:
    theirs, ours = np.sum(times, axis=0)
    text += f' {len(times)} whole runs: {theirs:.0f} s against {ours:.0f} s, '
    text += f'{theirs / ours:.2f} times as fast.'
  return text


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--official', required=True, help='checkout of github.com/fra31/auto-attack')
  parser.add_argument('--official_python', default=sys.executable, help='interpreter with torch')
  parser.add_argument('--data_dir', help='of TFDS, with cifar10 prepared')
  parser.add_argument(
    '--work_dir', type=Path, default=Path('work/autoattack'), help='weights, images'
  )
  parser.add_argument('--images', type=int, default=500, help='how many test images')
  parser.add_argument('--models', nargs='*', default=MODELS, choices=MODELS)
  parser.add_argument('--resnet20', type=Path, help=".npz of the public ResNet-20's state_dict")
  parser.add_argument('--threats', nargs='+', default=[], help='some alone, such as l2:0.1')
  parser.add_argument(
    '--results', default='autoattack', help='name of the files in results/, one a set of images'
  )
  parser.add_argument('--threads', type=int, default=2, help='of each library in the whole runs')
  parser.add_argument('--accuracy_threads', type=int, default=2, help='in the single attacks')
  parser.add_argument(
    '--only', choices=('accuracy', 'time', 'table'), help='single attacks; whole runs anew; neither'
  )
  args = parser.parse_args()
  args.work_dir.mkdir(parents=True, exist_ok=True)
  RESULTS.mkdir(exist_ok=True)
  results = Results(RESULTS / f'{args.results}.json')
  if args.only != 'table':
    run(args, results)
  (RESULTS / f'{args.results}.md').write_text(table(args, results))
  print(table(args, results))


def run(args, results: Results) -> None:
  """Trains what is not trained, and runs what `--only` says."""
  if args.resnet20:
    args.models = [*args.models, RESNET20]
  for name in args.models:
    if name == RESNET20:
      shutil.copy(args.resnet20, args.work_dir / f'{RESNET20}.npz')
      continue
    trained(name, args.work_dir, args.data_dir)
  for name in args.models:
    weights = (args.work_dir / f'{name}.npz').read_bytes()
    results.of_weights(name, hashlib.sha256(weights).hexdigest())
  path = args.work_dir / f'images_{args.images}.npz'
  if not path.exists():
    images, labels = load_split(args.data_dir, 'test')
    np.savez(path, images=images[: args.images], labels=labels[: args.images])
  results.values['images'] = args.images
  if args.only == 'time':
    for model in args.models:
      for threat in asked(args, model):
        results.values['runs'].pop(name_of(model, threat, 'all'), None)
  if args.only != 'time':
    measure(args, results, path, ATTACKS)
  if args.only != 'accuracy':
    measure(args, results, path, ('all',))
  if args.only != 'time':
    measure(args, results, path, REPEATS)


if __name__ == '__main__':
  main()
