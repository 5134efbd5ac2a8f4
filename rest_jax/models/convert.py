"""The command that makes a model directory of a PyTorch checkpoint.

`python -m rest_jax.models.convert rest_small.pth --architecture rest_small --output DIRECTORY`
writes a model directory that `Classifier.load` and every script takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rest_jax.command_line import Parser
from rest_jax.errors import UserError, run_script
from rest_jax.models import registry
from rest_jax.models.classifier import Classifier
from rest_jax.models.pytorch import HeadAdvice, from_pytorch, load_state_dict, to_pytorch
from rest_jax.paths import check_folder, local
from rest_jax.text import markdown_code, plural

# Users have had the functions from here, too.
__all__ = ['from_pytorch', 'load_state_dict', 'main', 'to_pytorch']


_PROGRAM = 'python -m rest_jax.models.convert'
_COMMAND_ADVICE = HeadAdvice(
  'leave --num_classes out to take it, or give --drop_head to start a new one',
  '--num_classes 0 makes a model without one, --drop_head starts a new one',
)


def _parser(program: str = _PROGRAM) -> argparse.ArgumentParser:
  parser = Parser(
    prog=program,
    description='Turns a PyTorch checkpoint into a model directory.',
  )
  parser.add_argument('checkpoint', help='.safetensors, or .pth/.pt/.bin')
  parser.add_argument(
    *('--architecture', '--model_name', '--model'),
    required=True,
    help='name of the model, such as rest_small',
  )
  parser.add_argument('--output', '--out', required=True, help='model directory to write')
  parser.add_argument('--num_classes', type=int, help="classes (default: the checkpoint's)")
  parser.add_argument(
    '--drop_head', action='store_true', help="leave the file's classifier out, start a new one"
  )
  parser.add_argument('--ema', action='store_true', help='take the averaged weights (model_ema)')
  parser.add_argument('--labels', help='text file with a class name a line')
  return parser


def main(argv: list[str] | None = None, program: str = _PROGRAM) -> None:
  """The command: reads a checkpoint, writes a model directory.

  Args:
    argv: the command line's words; `sys.argv` by default.
    program: what the user typed to get here.

  Raises:
    UserError: a bad file, model or label list.
  """
  args = _parser(program).parse_args(argv)
  if args.num_classes is not None and args.num_classes < 0:
    raise UserError(f'--num_classes is 0 or more, not {args.num_classes}')
  registry.create_model(args.architecture)
  output = check_folder(local(args.output, '--output'))
  names = _labels(args.labels) if args.labels else None
  if args.drop_head and args.num_classes is None and names is None:
    raise UserError('--drop_head starts a new head: say for how many classes with --num_classes')
  if names is not None and args.num_classes not in (None, len(names)):
    raise UserError(f'{args.labels} has {len(names)} lines, --num_classes says {args.num_classes}')
  classifier = Classifier.from_pytorch(
    local(args.checkpoint, 'the checkpoint'),
    model=args.architecture,
    num_classes=args.num_classes,
    drop_head=args.drop_head,
    ema=args.ema,
    class_names=names,
    head_advice=_COMMAND_ADVICE,
  )
  classifier.save(output, card=_card(args))
  print(f'wrote {output}: {args.architecture}, {plural(classifier.num_classes, "class")}')


def _labels(path: str) -> tuple[str, ...]:
  try:
    return tuple(local(path, '--labels').read_text(encoding='utf-8-sig').splitlines())
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'the label file {path} cannot be read: {error}') from error


def _card(args: argparse.Namespace) -> str:
  head = 'The head is newly initialised.' if args.drop_head else "The head is the checkpoint's."
  name = markdown_code(Path(args.checkpoint).name)
  start = f'# {args.architecture}\n\nConverted from {name}, every tensor exactly.'
  return f'{start} {head} Not measured here.\n'


if __name__ == '__main__':
  run_script(main)
