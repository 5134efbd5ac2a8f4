"""A piece of work that a side of a comparison can do again and again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


def _no_facts() -> dict[str, Any]:
  return {}


def _nothing() -> None:
  return None


@dataclasses.dataclass
class Work:
  """What a task of `benchmarks.ours` or `benchmarks.theirs` gives.

  Attributes:
    call: does it once and returns when it is done; the first call compiles.
    facts: what is known of it after the first call. Of programs: 'flops' and 'bytes' of a call,
      'declared' bytes that it allocates; 'batch' where the task has chosen one.
    close: gives back what outlives the object.
  """

  call: Callable[[], Any]
  facts: Callable[[], dict[str, Any]] = _no_facts
  close: Callable[[], None] = _nothing
