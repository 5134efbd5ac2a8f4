"""The threat model: what an attacker may do to an image."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from rest_jax.errors import UserError
from rest_jax.inputs import radius

Norm = Literal['linf', 'l2', 'l1']
NORMS: tuple[str, ...] = get_args(Norm)


@dataclasses.dataclass(frozen=True)
class Threat:
  """A ball around each image; it is always intersected with the pixel range [0, 1].

  Attributes:
    norm: 'linf', 'l2' or 'l1', over all pixels and channels of an image.
    eps: radius, at least 0, in pixel values of [0, 1], a number or a text such as '8/255', which
      becomes one; infinity for attacks of minimum norm.
    targeted: whether the attacker wants a given class; any wrong one otherwise.

  Raises:
    UserError: an unknown norm, or a radius that is negative, no number, or beyond 1 in Linf.
  """

  norm: Norm
  eps: float
  targeted: bool = False

  def __post_init__(self):
    check_norm(self.norm)
    object.__setattr__(self, 'eps', radius(self.eps, self.norm, infinite=True))


def check_norm(norm: object) -> None:
  """Raises `UserError` for a norm that is none of `NORMS`."""
  if norm not in NORMS:
    raise UserError(f'unknown norm {norm!r}; there are {", ".join(NORMS)}')
