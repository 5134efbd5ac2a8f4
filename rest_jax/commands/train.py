"""The command `train`."""

from __future__ import annotations

from collections.abc import Sequence

from rest_jax.commands import usage

USAGE = """\
Trains an image classifier, and goes on where it stopped when run again.

  python train.py --config configs/digit_scenes.py
  python train.py --config configs/rest_small.py --data_dir DIR --output work/small
  python train.py --config configs/digit_scenes.py:full --config.optim.lr=5e-4 --seed 1

  python train.py --mode evaluate --model work/digit_scenes/model

The work directory gets config.json, environment.json, metrics.jsonl, curves.png, checkpoints/ and
the trained model with its card in model/. Several hosts: the same command on each, with
--coordinator HOST:PORT --num_processes N --process_id I.
"""


def main(words: Sequence[str], program: str = 'train.py') -> int:
  """Trains or evaluates.

  Args:
    words: of the command line, without the program's name.
    program: what the user typed to get here.

  Returns:
    The exit status.

  Raises:
    UserError: bad flags, config, data or model.
  """
  from rest_jax.train import command, processes

  argv = [program, *words]
  if command.mode(argv) == 'evaluate':
    from rest_jax.train import validation_command

    return validation_command.main(argv)
  parsed = command.parse(argv, usage(USAGE, 'train', program))
  if parsed is None:
    return 0
  processes.initialize(parsed.coordinator, parsed.num_processes, parsed.process_id)

  from rest_jax.train.loop import train

  try:
    train(parsed.config, parsed.output)
  except KeyboardInterrupt:  # before the first step, when there is nothing to save yet
    return 130
  return 0
