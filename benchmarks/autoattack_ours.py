"""Runs this project's AutoAttack on tasks from stdin, one JSON line each, and answers so.

Started by `benchmarks/autoattack.py`, in a process of its own so that compilation counts.
"""

import argparse
import json
import os
import sys
import time


def run(task: dict, images, labels) -> dict:
  """Robust accuracy under the task's attacks, and the seconds they took, compilation included."""
  import jax
  import numpy as np
  from autoattack_models import model

  from rest_jax.attacks.ensemble import auto_attack_report

  with np.load(task['weights']) as file:
    network = model(dict(file))
  start = time.perf_counter()
  report = auto_attack_report(
    network,
    images,
    labels,
    key=jax.random.key(task['seed']),
    norm=task['norm'],
    eps=task['eps'],
    attacks=task['attacks'],
  )
  seconds = time.perf_counter() - start
  parts = {record.attack: round(record.seconds, 2) for record in report.records}
  rows = sum(record.rows for record in report.records)
  useful = sum(record.steps for record in report.records) / max(rows, 1)
  found = {'clean': report.clean_accuracy, 'robust': report.robust_accuracy}
  return {**found, 'seconds': seconds, 'parts': parts, 'rows': rows, 'useful': round(useful, 3)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--images', required=True, help='.npz of images (N, H, W, C) and labels')
  parser.add_argument('--threads', type=int, default=2)
  args = parser.parse_args()
  # XLA takes a thread for each core that it may use.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  import jax
  import numpy as np

  with np.load(args.images) as file:
    images, labels = file['images'], file['labels']
  print(json.dumps({'version': f'jax {jax.__version__}'}), flush=True)
  for line in sys.stdin:
    print(json.dumps(run(json.loads(line), images, labels)), flush=True)


if __name__ == '__main__':
  main()
