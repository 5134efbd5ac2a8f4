"""The defence experiment: adversarial training, with compressed feature bands and denoisers.

  python benchmarks/defense.py                 # trains, attacks and writes the tables; resumable
  python benchmarks/defense.py --only table

Every seed has its own adversarially trained model, and each arm goes on from it for the same number
of updates: the plain arm without, the others with a compression layer. The denoisers stand in front
of the plain arm's model. Each row is attacked by PGD-20 made on the plain arm's model alone (not
adaptive), by PGD-20 through the defence (adaptive), and by AutoAttack through the defence. Results
go to `benchmarks/results/defense.md` and `.json`; models and records to `--work_dir`.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from defense_arms import (
  ARMS,
  DENOISERS,
  EPS,
  defended,
  load_images,
  plain_model,
  target,
  train_all,
)
from defense_energies import all_energies
from defense_table import page

from rest_jax.inputs import Norm

RESULTS = Path(__file__).parent / 'results'
THREATS: tuple[tuple[Norm, float], ...] = (('linf', EPS), ('l2', 0.5))
STEPS = 20


def attack_all(args) -> list[dict]:
  """Attacks every model of every seed; what has records already is read."""
  images, labels = load_images(args)
  rows = []
  for seed in () if args.rows else range(args.seeds):
    many, few = (
      under_pgd(args, seed, images[:count], labels[:count], check_health=count == args.images)
      for count in (args.images, args.auto_attack_images)
    )
    rows += [{'seed': seed, **row} for row in many]
    rows += [{'seed': seed, **row, 'attack': 'pgd_same'} for row in few]
  for name in args.rows or [*ARMS, *DENOISERS]:
    for seed in range(args.seeds):
      rows += [{'seed': seed, **row} for row in under_auto_attack(args, name, seed, images, labels)]
      print(json.dumps(rows[-1]), flush=True)
  return rows


def under_pgd(args, seed: int, images, labels, check_health: bool) -> list[dict]:
  """PGD-20 made on the plain arm's model alone, and through each defence, on the images given.

  The health checks of a defence are made for the first seed: they are compilation above all.
  """
  import jax

  from rest_jax import attacks, defend

  began = time.perf_counter()
  directory = args.work_dir / 'attacks' / f'pgd_{seed}'
  models = {name: defended(args, name, seed) for name in (*ARMS, *DENOISERS) if name != 'none'}
  found = defend.evaluate_defences(
    plain_model(args, seed),
    images,
    labels,
    models,
    threats=[attacks.Threat(norm, eps) for norm, eps in THREATS],
    attack=attacks.named_attack('pgd', steps=STEPS),
    key=jax.random.key(seed),
    output_dir=directory,
    batch_size=64,
    check_health=check_health and seed == 0,
  )
  print(found.report(), flush=True)
  keep_time(directory, began)
  return [
    {**row.to_json(), 'defence': 'none' if row.defence == defend.UNDEFENDED else row.defence}
    for row in found.rows
  ]


def under_auto_attack(args, name: str, seed: int, images, labels) -> list[dict]:
  """AutoAttack through one defence, in Linf and, for what was trained, in L2."""
  import jax

  from rest_jax import attacks

  began = time.perf_counter()
  directory = args.work_dir / 'attacks' / f'auto_attack_{seed}' / name
  found = attacks.evaluate(
    target(args, name, seed),
    images[: args.auto_attack_images],
    labels[: args.auto_attack_images],
    attacks=[attacks.named_attack('auto_attack', query_batch=32)],
    threats=[attacks.Threat(norm, eps) for norm, eps in THREATS[: 2 if name in ARMS else 1]],
    key=jax.random.key(seed),
    output_dir=directory,
    batch_size=64,
    pictures=0,
    check_health=False,
  )
  keep_time(directory, began)
  rows = [row for row in found.rows if row.attack == 'auto_attack']
  return [
    {
      'defence': name,
      'attack': 'auto_attack',
      'norm': row.norm,
      'clean': row.clean_accuracy._asdict(),
      'adaptive': row.robust_accuracy._asdict(),
    }
    for row in rows
  ]


def keep_time(directory: Path, began: float) -> None:
  """Seconds that an attack took; one that is read from its records again keeps its time."""
  path = directory / 'seconds.json'
  if not path.exists():
    path.write_text(f'{time.perf_counter() - began:.1f}\n')


def kept_times(args) -> dict[str, float]:
  """Seconds by 'pgd_SEED' and 'auto_attack_SEED/ROW'."""
  root = args.work_dir / 'attacks'
  return {
    str(path.parent.relative_to(root)): float(path.read_text())
    for path in sorted(root.rglob('seconds.json'))
  }


def keep_programs(directory: Path) -> None:
  """Compiled programs go to a folder: seeds differ in their weights alone."""
  import jax

  jax.config.update('jax_compilation_cache_dir', str(directory.absolute()))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--work_dir', type=Path, default=Path('work/defense'), help='models, records')
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--images', type=int, default=256, help='test images under PGD')
  parser.add_argument('--auto_attack_images', type=int, default=48, help='under AutoAttack')
  parser.add_argument('--only', choices=('train', 'attack', 'table'), help='one part of it')
  parser.add_argument(
    '--rows',
    nargs='+',
    choices=(*ARMS, *DENOISERS),
    help='put these alone under AutoAttack, no table: shares the work out to several processes',
  )
  args = parser.parse_args()
  args.work_dir.mkdir(parents=True, exist_ok=True)
  keep_programs(args.work_dir / 'compiled')
  kept = RESULTS / 'defense.json'
  if args.only in (None, 'train'):
    train_all(args)
  if args.rows:
    attack_all(args)
    return
  if args.only in (None, 'attack'):
    values = {'images': args.images, 'auto_attack_images': args.auto_attack_images}
    values |= {'training': json.loads((args.work_dir / 'training.json').read_text())}
    values |= {'energies': all_energies(args), 'rows': attack_all(args)}
    values |= {'seconds': kept_times(args)}
    kept.write_text(json.dumps(values, indent=1) + '\n')
  if args.only != 'train':
    text = page(json.loads(kept.read_text()))
    (RESULTS / 'defense.md').write_text(text)
    print(text)


if __name__ == '__main__':
  np.set_printoptions(precision=4)
  main()
