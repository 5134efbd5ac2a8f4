"""`python -m rest_jax predict photos/ --csv out.csv`: what pictures show, in words."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rest_jax.command_line import Parser
from rest_jax.errors import UserError, as_line
from rest_jax.files import replacing
from rest_jax.models import predictions
from rest_jax.paths import local
from rest_jax.text import legible

_ADVICE = 'give another --csv'


def _parser(program: str) -> argparse.ArgumentParser:
  parser = Parser(prog=program, description='Names what pictures show.')
  parser.add_argument('pictures', nargs='+', help='files, folders, glob patterns; "**" goes down')
  parser.add_argument(
    '--model',
    default='efficientnet_lite0',
    help='work or model directory, name of the zoo, or a checkpoint (default: efficientnet_lite0)',
  )
  parser.add_argument(
    '--architecture', '--model_name', help='model name of a checkpoint not called after it'
  )
  parser.add_argument('--ema', action='store_true', help='averaged weights of a checkpoint')
  parser.add_argument('--top', type=int, default=5, help='classes a picture (default: 5)')
  parser.add_argument('--batch_size', type=int, default=32, help='pictures at once (default: 32)')
  parser.add_argument('--csv', help='table to write: file, class1, number1, probability1, ...')
  return parser


def main(argv: Sequence[str], program: str = 'python -m rest_jax predict') -> int:
  """Prints the most probable classes of pictures, and writes them as a table where asked.

  A picture that cannot be read is reported on stderr, and the others go on.

  Args:
    argv: the words behind the command's name.
    program: what the user typed to get here.

  Returns:
    The exit status: 0, or 2 where a picture failed.

  Raises:
    UserError: no such model or picture, wrong numbers, or a table that cannot be written.
  """
  from rest_jax.opening import open_classifier

  args = _parser(program).parse_args(argv)
  for name, value in (('--top', args.top), ('--batch_size', args.batch_size)):
    if value < 1:
      raise UserError(f'{name} is a whole number from 1, not {value}')
  pictures = predictions.expand(args.pictures)
  with _table(args.csv) as table:
    classifier = open_classifier(args.model, args.architecture, args.ema)
    found, failed = _predict(classifier, pictures, args)
    if table is not None:
      table.write_text(predictions.to_csv(found), encoding='utf-8')
  return 2 if failed else 0


@contextlib.contextmanager
def _table(csv: str | None) -> Iterator[Path | None]:
  """Where the table is written to, looked at before any work; None where none is asked for."""
  if csv is None:
    yield None
    return
  path = local(csv, '--csv')
  if path.is_dir():
    raise UserError(f'--csv {csv} is a folder: name a file in it')
  with replacing(path, advice=_ADVICE) as temporary:
    temporary.touch()
    yield temporary


def _predict(
  classifier: Any, pictures: Sequence[Any], args: argparse.Namespace
) -> tuple[list[predictions.Prediction], int]:
  """The predictions, each printed when it is there, and how many pictures failed."""
  found, failed = [], 0
  pairs = predictions.iterate(classifier, pictures, top=args.top, batch_size=args.batch_size)
  for prediction, error in tqdm(pairs, total=len(pictures), disable=not sys.stderr.isatty()):
    if prediction is None:
      tqdm.write(f'error: {as_line(error)}', file=sys.stderr)
      failed += 1
    else:
      tqdm.write(legible(prediction), file=sys.stdout)
      found.append(prediction)
  return found, failed
