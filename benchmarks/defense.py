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
from defense_arms import ARMS, DENOISERS, EPS, arms_of, load_images, train_all
from defense_table import page

RESULTS = Path(__file__).parent / 'results'
THREATS = (('linf', EPS), ('l2', 0.5))
STEPS = 20


def attack_all(args) -> list[dict]:
  """Attacks every row of every seed; what has records already is read."""
  images, labels = load_images(args)
  rows = []
  for name in [*ARMS, *DENOISERS]:
    for seed in range(args.seeds):
      rows.append(attack_one(args, name, seed, images, labels))
      print(json.dumps(rows[-1]), flush=True)
  return rows


def attack_one(args, name: str, seed: int, images, labels) -> dict:
  """One row: shares of images that are right, for each threat and attack."""
  import jax

  from rest_jax import attacks

  defended, plain = arms_of(args, name, seed)
  pgd = attacks.named_attack('pgd', label='pgd', steps=STEPS)
  # An attack that goes on after its first success does not stop where only its own model fails.
  onward = attacks.named_attack('pgd', label='onward', steps=STEPS, stop_early=False)
  transfer = attacks.transfer_attack(plain, onward, label='not_adaptive')
  whole = attacks.named_attack('auto_attack', query_batch=32)
  row: dict = {'name': name, 'seed': seed, 'seconds': {}}
  plans = (
    ('pgd', [pgd, transfer], args.images, THREATS),
    ('auto_attack', [whole], args.auto_attack_images, THREATS[: 2 if name in ARMS else 1]),
  )
  for label, chosen, count, threats in plans:
    began = time.perf_counter()
    found = attacks.evaluate(
      defended,
      images[:count],
      labels[:count],
      attacks=chosen,
      threats=[attacks.Threat(norm, eps) for norm, eps in threats],
      key=jax.random.key(seed),
      output_dir=args.work_dir / 'attacks' / label / f'{name}_{seed}',
      batch_size=64,
      pictures=0,
      check_health=label == 'pgd' and seed == 0,
      progress=False,
    )
    row['seconds'][label] = round(time.perf_counter() - began, 1)
    for one in found.rows:
      row.setdefault('clean', {})[label] = one.clean_accuracy.value
      row[f'{one.attack} {one.norm}'] = one.robust_accuracy.value
    if found.health:
      row['raised'] = [check.name for check in found.raised]
  return row


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
  parser.add_argument('--auto_attack_images', type=int, default=64, help='under AutoAttack')
  parser.add_argument('--only', choices=('train', 'attack', 'table'), help='one part of it')
  args = parser.parse_args()
  args.work_dir.mkdir(parents=True, exist_ok=True)
  keep_programs(args.work_dir / 'compiled')
  kept = RESULTS / 'defense.json'
  if args.only in (None, 'train'):
    train_all(args)
  if args.only in (None, 'attack'):
    values = {'images': args.images, 'auto_attack_images': args.auto_attack_images}
    values |= {'training': json.loads((args.work_dir / 'training.json').read_text())}
    values |= {'rows': attack_all(args)}
    kept.write_text(json.dumps(values, indent=1) + '\n')
  if args.only != 'train':
    text = page(json.loads(kept.read_text()))
    (RESULTS / 'defense.md').write_text(text)
    print(text)


if __name__ == '__main__':
  np.set_printoptions(precision=4)
  main()
