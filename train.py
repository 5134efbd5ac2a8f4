"""Trains an image classifier, and goes on where it stopped when run again.

  python train.py --config configs/digit_scenes.py
  python train.py --config configs/rest_small.py --data_dir DIR --output work/small
  python train.py --config configs/digit_scenes.py:full --config.optim.lr=5e-4 --seed 1

  python train.py --mode evaluate --model work/digit_scenes/model

The work directory gets config.json, environment.json, metrics.jsonl, curves.png, checkpoints/ and
the trained model with its card in model/. Several hosts: the same command on each, with
--coordinator HOST:PORT --num_processes N --process_id I.
"""

import sys

from rest_jax.errors import run_script


def main() -> int:
  """Parses the command line and trains or evaluates; returns the exit status."""
  from rest_jax.train import command, processes

  if command.mode(sys.argv) == 'evaluate':
    from rest_jax.train import validation_command

    return validation_command.main(sys.argv)
  parsed = command.parse(sys.argv, __doc__ or '')
  if parsed is None:
    return 0
  processes.initialize(parsed.coordinator, parsed.num_processes, parsed.process_id)

  from rest_jax.train.loop import train

  try:
    train(parsed.config, parsed.output)
  except KeyboardInterrupt:  # before the first step, when there is nothing to save yet
    return 130
  return 0


# Workers of the data pipeline import this file again; only the script itself trains.
if __name__ == '__main__':
  run_script(main)
