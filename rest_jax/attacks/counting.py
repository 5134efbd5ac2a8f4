"""How often an attack asked the model about each image, for who listens."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.core import Tracer


class Tally:
  """Evaluations of the model that an attack's steps took: forward passes, with gradients or not.

  What is asked beside the steps (is the image correct at all, which classes come next) is left out.

  Attributes:
    queries: int64 (B,) so far.
    heard: whether anything was counted; an attack that does not count leaves it False.
  """

  def __init__(self, count: int):
    """Starts at 0 for so many images."""
    self.queries = np.zeros(count, np.int64)
    self.heard = False


_listening: contextvars.ContextVar[Tally | None] = contextvars.ContextVar('tally', default=None)


@contextlib.contextmanager
def counting(count: int) -> Iterator[Tally]:
  """Listens to the attack that is called within, on so many images."""
  tally = Tally(count)
  token = _listening.set(tally)
  try:
    yield tally
  finally:
    _listening.reset(token)


def count_queries(queries: Any, which: Any = slice(None)) -> None:
  """Tells who listens how often the model was asked about each image.

  Nothing is moved off the device where nobody listens, nor while an attack is being traced.

  Args:
    queries: a number, or one an image (n,).
    which: the images, (n,); all by default.
  """
  tally = _listening.get()
  if tally is not None and not isinstance(queries, Tracer):
    tally.queries[which] += np.asarray(queries, np.int64)
    tally.heard = True
