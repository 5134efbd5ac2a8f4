"""Docstrings put together: what a function says of itself, and what it shares with others."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

_WIDTH = 96  # of a line, four spaces less than the code's


def composed(
  function: Callable[..., Any],
  signature: inspect.Signature,
  shared: Mapping[str, str],
  returns: str,
  raises: str,
) -> str:
  """What a function does, then Args in the order of a signature, Returns and Raises.

  Args:
    function: a line on an argument in its docstring goes before the shared one, and so do its own
      Returns and Raises.
    signature: of its public side.
    shared: by name of an argument what is said of it.
    returns: of what it gives.
    raises: of when it raises `UserError`.

  Returns:
    The docstring, without indentation.
  """
  sections = _sections(inspect.getdoc(function) or '')
  lines = _lines_of_arguments(sections.get('Args', ''))
  names = list(signature.parameters)
  for name in names:
    if name not in lines and name in shared:
      lines[name] = _wrapped(f'{name}: {shared[name]}')
  arguments = '\n'.join(lines[name] for name in names if name in lines)
  returned = sections.get('Returns') or _wrapped(returns, hanging='  ')
  raised = sections.get('Raises') or _wrapped(f'UserError: {raises}')
  parts = [sections[''], f'Args:\n{arguments}', f'Returns:\n{returned}', f'Raises:\n{raised}']
  return '\n\n'.join(parts) + '\n'


def _sections(text: str) -> dict[str, str]:
  """A docstring's parts by their headings; '' is the text before them."""
  head, *rest = re.split(r'^(Args|Returns|Raises):\n', text, flags=re.MULTILINE)
  found = {'': head.rstrip()}
  return found | {a: b.rstrip() for a, b in zip(rest[::2], rest[1::2], strict=True)}


def _lines_of_arguments(section: str) -> dict[str, str]:
  """The lines on each argument."""
  blocks = re.split(r'^(?=  \w+: )', section, flags=re.MULTILINE)
  return {block.split(':')[0].strip(): block.rstrip() for block in blocks if block.strip()}


def _wrapped(text: str, hanging: str = '    ') -> str:
  """The lines of an entry of a docstring's section."""
  return textwrap.fill(text, _WIDTH, initial_indent='  ', subsequent_indent=hanging)
