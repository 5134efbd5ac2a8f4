"""`python -m rest_jax predict photos/ --csv out.csv`: what pictures show, in words.

A classifier names what a picture shows; of a detector or a segmenter the pictures are drawn too.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rest_jax.command_line import Parser
from rest_jax.data.picture_files import identity, transparency_note
from rest_jax.errors import UserError, as_line
from rest_jax.files import make_folder, replacing
from rest_jax.models import predictions
from rest_jax.paths import check_folder, local, model_name
from rest_jax.text import legible

_ADVICE = 'give another --csv'
_OUTPUT = 'work/predict'
# Flags that one kind of model alone has, with their defaults there.
_OF_CLASSIFIERS = {'architecture': None, 'ema': False, 'top': 5, 'batch_size': 32}
_OF_DENSE = {'output': None, 'score': 0.3}


def _parser(program: str) -> argparse.ArgumentParser:
  parser = Parser(
    prog=program,
    description='Names what pictures show; a detector draws boxes and masks onto them, a segmenter '
    'the class of every pixel.',
  )
  parser.add_argument('pictures', nargs='+', help='files, folders, glob patterns; "**" goes down')
  parser.add_argument(
    '--model',
    default='efficientnet_lite0',
    help='work or model directory, name of the zoo, or a checkpoint (default: efficientnet_lite0)',
  )
  parser.add_argument('--csv', help='table to write, a row a picture, an object, or a class of it')
  _add_of_classifiers(parser.add_argument_group('classifiers'))
  dense = parser.add_argument_group('detectors and segmenters')
  dense.add_argument(
    '--output',
    help=f'folder of the drawn pictures (default: {_OUTPUT}; none are drawn with --csv alone)',
  )
  dense.add_argument(
    '--score', type=float, help='detectors: least score of an object, 0 to 1 (default: 0.3)'
  )
  return parser


def _add_of_classifiers(group: Any) -> None:
  group.add_argument(
    '--architecture', '--model_name', help='model name of a checkpoint not called after it'
  )
  group.add_argument('--ema', action='store_true', help='averaged weights of a checkpoint')
  group.add_argument('--top', type=int, help='classes a picture (default: 5)')
  group.add_argument('--batch_size', type=int, help='pictures at once (default: 32)')


def main(argv: Sequence[str], program: str = 'python -m rest_jax predict') -> int:
  """Prints what pictures show, writes it as a table and draws it, where asked.

  A picture that cannot be read is reported on stderr, and the others go on.

  Args:
    argv: the words behind the command's name.
    program: what the user typed to get here.

  Returns:
    The exit status: 0, or 2 where a picture failed.

  Raises:
    UserError: no such model or picture, wrong numbers, flags of another kind of model, or nowhere
      to write.
  """
  args = _checked(_parser(program).parse_args(argv))
  pictures = predictions.expand(args.pictures)
  if note := transparency_note(pictures):
    print(note, file=sys.stderr)
  kind = _kind(args)
  with _table(args.csv, pictures) as table:
    answer = _classify if kind == '' else _detect
    text, failed = answer(args, pictures, kind)
    if table is not None:
      table.write_text(text, encoding='utf-8')
  return 2 if failed else 0


def _checked(args: argparse.Namespace) -> argparse.Namespace:
  """Refuses numbers out of their range."""
  for name in ('top', 'batch_size'):
    value = getattr(args, name)
    if value is not None and value < 1:
      raise UserError(f'--{name} is a whole number from 1, not {value}')
  if args.score is not None and not 0 <= args.score <= 1:
    raise UserError(f'--score is a number from 0 to 1, not {args.score:g}')
  return args


def _kind(args: argparse.Namespace) -> str:
  """What the model is: '' for a classifier; flags of another kind are refused, the rest filled."""
  from rest_jax.models.dense_model import kind_at

  kind = kind_at(model_name(args.model, '--model'))
  own, other = (_OF_DENSE, _OF_CLASSIFIERS) if kind else (_OF_CLASSIFIERS, _OF_DENSE)
  said = {name: getattr(args, name) for name in other}
  given = [f'--{name}' for name, v in said.items() if v is not None and v is not False]
  if given and kind:
    raise UserError(f'{" and ".join(given)}: for classifiers, and {args.model} is a {kind}')
  if given:
    raise UserError(
      f'{" and ".join(given)}: for detectors and segmenters, and {args.model} is a classifier'
    )
  if kind == 'segmenter' and args.score is not None:
    raise UserError(f'--score: for detectors, and {args.model} is a segmenter')
  for name, default in own.items():
    if getattr(args, name) is None:
      setattr(args, name, default)
  return kind


@contextlib.contextmanager
def _table(csv: str | None, pictures: Sequence[Path]) -> Iterator[Path | None]:
  """Where the table is written to, looked at before any work; None where none is asked for."""
  if csv is None:
    yield None
    return
  path = local(csv, '--csv')
  if path.is_dir():
    raise UserError(f'--csv {csv} is a folder: name a file in it')
  if identity(path) in map(identity, pictures):
    raise UserError(f'--csv {csv} would write over that picture: {_ADVICE}')
  with replacing(path, advice=_ADVICE) as temporary:
    temporary.touch()
    yield temporary


def _classify(args: argparse.Namespace, pictures: Sequence[Any], kind: str) -> tuple[str, int]:
  """The table of what a classifier says, and how many pictures failed."""
  from rest_jax.opening import open_classifier

  del kind
  classifier = open_classifier(args.model, args.architecture, args.ema)
  pairs = predictions.iterate(classifier, pictures, top=args.top, batch_size=args.batch_size)
  found, failed = _told(pairs, len(pictures))
  return predictions.to_csv(found), failed


def _detect(args: argparse.Namespace, pictures: Sequence[Any], kind: str) -> tuple[str, int]:
  """The table of what a detector or a segmenter finds, and how many pictures failed."""
  from rest_jax.models import dense_predictions
  from rest_jax.models.dense_model import load_dense_model

  output = _folder(args)
  dense_predictions.drawn_files(pictures, output)
  model = load_dense_model(args.model)
  if output is not None:
    make_folder(output)
  pairs = dense_predictions.iterate(model, pictures, output=output, least_score=args.score)
  found, failed = _told(pairs, len(pictures))
  if output is not None and found:
    tqdm.write(f'drawn in {legible(output)}', file=sys.stderr)
  return dense_predictions.to_csv(found, boxes=kind == 'detector'), failed


def _folder(args: argparse.Namespace) -> Path | None:
  """Where pictures are drawn; a table alone needs none."""
  if args.output is None and args.csv is not None:
    return None
  return check_folder(local(args.output or _OUTPUT, '--output'))


def _told(pairs: Iterator[tuple[Any, UserError | None]], count: int) -> tuple[list[Any], int]:
  """What was found, each printed when it is there, and how many pictures failed."""
  found, failed = [], 0
  for one, error in tqdm(pairs, total=count, disable=not sys.stderr.isatty()):
    if one is None:
      tqdm.write(f'error: {as_line(error)}', file=sys.stderr)
      failed += 1
    else:
      tqdm.write(legible(one), file=sys.stdout)
      found.append(one)
  return found, failed
