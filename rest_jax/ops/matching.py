"""Which ground truth an anchor or a proposal answers for, and which of them a loss looks at.

All shapes are fixed: ground truth is padded, and says by `valid` what of it is there.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


class Matches(NamedTuple):
  """What `match` found.

  Attributes:
    index: (N,) int32, ground truth of each anchor; means something where `status` is 1.
    status: (N,) int32: 1 positive, 0 background, -1 neither.
  """

  index: Int[Array, ' N']
  status: Int[Array, ' N']


def match(
  overlaps: Float[Array, 'N G'],
  valid: Bool[Array, ' G'],
  *,
  high: float,
  low: float,
  low_quality: bool,
) -> Matches:
  """Gives each anchor the ground truth that it overlaps most.

  Args:
    overlaps: IoU of every anchor with every ground truth.
    valid: which ground truth is there; the rest is padding, which nothing is matched to.
    high: least IoU of a positive.
    low: IoU under which an anchor is background; in between it is ignored.
    low_quality: each ground truth's best anchors are positive whatever their IoU, if it is above 0
      (Ren et al. 2015, section 3.1.2, rule i). They keep the ground truth that they themselves
      overlap most, which may be another one, as in detectron2 and torchvision.

  Returns:
    The matches; without any ground truth everything is background.
  """
  overlaps = jnp.where(valid[None], overlaps, -1.0)  # before the maximum: padding never wins
  best = jnp.max(overlaps, axis=1)
  status = jnp.where(best >= high, POSITIVE, jnp.where(best < low, NEGATIVE, IGNORED))
  if low_quality:
    most = jnp.max(overlaps, axis=0)
    winners = (overlaps == most[None]) & (valid & (most > 0))[None]
    status = jnp.where(jnp.any(winners, axis=1), POSITIVE, status)
  return Matches(jnp.argmax(overlaps, axis=1).astype(jnp.int32), status.astype(jnp.int32))


def sample(
  key: jax.Array, status: Int[Array, ' N'], count: int, positives: int
) -> tuple[Int[Array, ' count'], Bool[Array, ' count']]:
  """Draws a fixed number of anchors or proposals for a loss.

  Args:
    key: of the draw.
    status: as in `Matches`.
    count: how many; where N is less the rest is not valid.
    positives: how many of them may be positive. Fewer positives are made up for by background.

  Returns:
    (indices, valid): the positives come first, then the background, then what is not valid.
  """
  uniform = jax.random.uniform(key, status.shape)
  keys = jnp.where(status == POSITIVE, uniform, -1.0)
  drawn, chosen = lax.top_k(keys, min(positives, status.size))
  # Above every background, whose numbers are under 1; positives beyond the limit are out.
  rank = jnp.where(status == NEGATIVE, uniform, -1.0)
  rank = rank.at[chosen].set(jnp.where(drawn >= 0, 2.0, rank[chosen]))
  value, index = lax.top_k(rank, min(count, status.size))
  short = max(count - status.size, 0)
  return jnp.pad(index, (0, short)), jnp.pad(value >= 0, (0, short))
