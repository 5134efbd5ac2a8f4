"""Attacks a classifier and measures what defences are worth: denoisers and compressed features.

  python defend.py --attack pgd
  python defend.py --attack pgd auto_attack --defense jpeg median --eps 4/255 8/255
  python defend.py --attack apgd_ce --norm l2 --eps 0.5 --defense all --strength 0.25 0.5 1
  python defend.py --attack pgd --model MODEL_DIRECTORY --data cifar10 --study noise

Every defence is attacked twice: with adversarial images of the undefended model (non-adaptive), and
through the defence (adaptive; gradients by BPDA and EOT where needed), which is the figure that
counts. The output folder gets report.html, which opens in any browser, report.md, results.json and
results.csv; the same command goes on where it was stopped. Exit status: 0, or 2 where something
failed.
"""

import sys

from rest_jax.errors import run_script


def main() -> int:
  """Parses the command line and evaluates; returns the exit status."""
  from rest_jax.defend import command

  try:
    parsed = command.parse(sys.argv, __doc__ or '')
    if parsed is None:
      return 0
    from rest_jax.defend.run import run

    return run(parsed)
  except KeyboardInterrupt:
    return 130


if __name__ == '__main__':
  run_script(main)
