"""The names of a pickle, and why a file was not read."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rest_jax.errors import UserError

# What wrong bytes can lead to beside a `PthError`: numbers out of range, missing entries, bad text.
_DAMAGE = (
  ArithmeticError, AttributeError, LookupError, MemoryError, OSError, TypeError, ValueError,
  struct.error,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Name:
  """A name of a pickle, such as torch.float32; nothing is imported for it."""

  module: str
  name: str

  def __str__(self) -> str:
    return f'{self.module}.{self.name}'


class PthError(Exception):
  """Ends the reading; `reading.read` puts the file's name before the message."""


def damaged(what: str) -> PthError:
  """The fault of a file whose bytes contradict each other."""
  return PthError(f'is no complete PyTorch checkpoint: {what}')


def refused(what: str) -> PthError:
  """The fault of a file that asks for more than data."""
  return PthError(
    f'was not read: it {what}; nothing of it was executed. A file with tensors alone is read: '
    'torch.save(model.state_dict(), ...)'
  )


def shown(value: object, most: int = 80) -> str:
  """A value of the file, short and without control characters, for a message.

  What could be long or nested without end is called by its type.
  """
  if isinstance(value, tuple) and len(value) <= 32 and all(_is_short(n) for n in value):
    return f'({", ".join(map(str, value))})'
  if not isinstance(value, str | Name) and not _is_short(value):
    return f'a {type(value).__name__}'
  word = str(value)
  word = word if len(word) <= most else f'{word[:most]}...'
  return ''.join(c if c.isprintable() else '?' for c in word)


def _is_short(value: object) -> bool:
  return value is None or (isinstance(value, int) and value.bit_length() < 64)


@contextmanager
def reading(path: Path) -> Iterator[None]:
  """Turns whatever a file makes of the reading into a `UserError`, one line about the file."""
  try:
    yield
  except PthError as error:
    raise UserError(f'{path} {error}') from error
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror or error}') from error
  except _DAMAGE as error:
    raise UserError(f'{path} is no complete PyTorch checkpoint: its bytes are damaged') from error
