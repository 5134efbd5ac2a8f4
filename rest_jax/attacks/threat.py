"""The threat model: what an attacker may do to an image."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

from rest_jax.errors import UserError

Norm = Literal['linf', 'l2', 'l1']
NORMS: tuple[str, ...] = get_args(Norm)


@dataclasses.dataclass(frozen=True)
class Threat:
  """A ball around each image; it is always intersected with the pixel range [0, 1].

  Attributes:
    norm: 'linf', 'l2' or 'l1', over all pixels and channels of an image.
    eps: radius, at least 0, in pixel values of [0, 1]; infinity for attacks of minimum norm.
    targeted: whether the attacker wants a given class; any wrong one otherwise.

  Raises:
    UserError: an unknown norm, or a radius that is negative or not a number.
  """

  norm: Norm
  eps: float
  targeted: bool = False

  def __post_init__(self):
    check_norm(self.norm)
    try:
      good = math.isnan(self.eps) is False and self.eps >= 0
    except TypeError:
      good = False
    if not good:
      raise UserError(f'a radius eps is a number from 0, in units of [0, 1], not {self.eps!r}')


def check_norm(norm: object) -> None:
  """Raises `UserError` for a norm that is none of `NORMS`."""
  if norm not in NORMS:
    raise UserError(f'unknown norm {norm!r}; there are {", ".join(NORMS)}')
