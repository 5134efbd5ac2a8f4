"""The one place where an operation's form is chosen.

XLA's backends disagree on which of two equal formulas is fast: its CPU backend runs a depthwise
convolution 30-60 times slower than the same sum written as shifted multiply-adds, while cuDNN and
the TPU's convolution unit prefer the convolution. `form()` is read while a function is traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import jax

Form = Literal['fast', 'plain']
_override: ContextVar[Form | None] = ContextVar('rest_jax_form', default=None)
_portable: ContextVar[bool] = ContextVar('rest_jax_portable', default=False)


def form() -> Form:
  """'fast' for the hand-written forms (CPU), 'plain' for XLA's own operations (GPU, TPU)."""
  return _override.get() or ('fast' if jax.default_backend() == 'cpu' else 'plain')


@contextlib.contextmanager
def use_form(name: Form) -> Iterator[None]:
  """Fixes the form for all functions traced inside the context.

  Both forms are the same functions. 'plain' has no hand-written gradient, so it can also be
  differentiated in forward mode (`jax.jvp`, `jax.hessian`); 'fast' cannot.

  Args:
    name: 'fast' or 'plain'.

  Raises:
    ValueError: for another name.
  """
  if name not in ('fast', 'plain'):
    raise ValueError(f"form must be 'fast' or 'plain', got {name!r}")
  token = _override.set(name)
  try:
    yield
  finally:
    _override.reset(token)


def is_portable() -> bool:
  """Whether only operations are wanted that converters to other formats know."""
  return _portable.get()


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """The form 'plain' without what converters lack: the same function, for `rest_jax.export`."""
  token = _portable.set(True)
  try:
    with use_form('plain'):
      yield
  finally:
    _portable.reset(token)
