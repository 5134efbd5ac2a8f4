"""The command `explain`."""

from __future__ import annotations

from collections.abc import Sequence

from rest_jax.commands import usage

USAGE = """\
Shows where in a picture a classifier finds its decision, and measures methods that do so.

  python explain.py --image cat.jpg --model MODEL_DIRECTORY
  python explain.py --image photos --method group_cam grad_cam rise --curves --target top3
  python explain.py --image cat.jpg --method all --layer stage3 --animate --output work/cat
  python explain.py --evaluate --data digit_scenes --method all --limit 500

Each picture gets a folder with an overlay (.png) and the raw map (.npy) of every method and with
explanation.json; several methods give comparison.png, --curves curves.png, --sanity sanity.png,
--animate a GIF. --evaluate writes table.md, table.csv, table.json and examples.png, and goes on
where it stopped when run again. Exit status: 0, or 2 where something failed.
"""


def main(words: Sequence[str], program: str = 'explain.py') -> int:
  """Explains pictures, or measures methods; arguments, result and errors as in `train`."""
  from rest_jax.explain import command

  parsed = command.parse([program, *words], usage(USAGE, 'explain', program))
  if parsed is None:
    return 0
  try:
    if parsed.evaluate:
      from rest_jax.explain.evaluate import evaluate

      return evaluate(parsed)
    from rest_jax.explain.run import explain_pictures

    return explain_pictures(parsed)
  except KeyboardInterrupt:
    return 130
