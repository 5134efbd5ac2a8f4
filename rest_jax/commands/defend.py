"""The command `defend`."""

from __future__ import annotations

from collections.abc import Sequence

from rest_jax.commands import usage

USAGE = """\
Attacks a classifier and measures what defences are worth: denoisers and compressed features.

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


def main(words: Sequence[str], program: str = 'defend.py') -> int:
  """Attacks and measures defences; arguments, result and errors as in `train`."""
  from rest_jax.defend import command

  try:
    parsed = command.parse([program, *words], usage(USAGE, 'defend', program))
    if parsed is None:
      return 0
    from rest_jax.defend.run import run

    return run(parsed)
  except KeyboardInterrupt:
    return 130
