"""Sums over a whole split, and which outputs are not numbers.

Sums of floats are kept in two parts, the sum and what rounding took from it: a plain float32 sum of
a million losses of 2.3 is off by up to a thousandth once a batch's share is a few of its last bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rest_jax.errors import UserError

SHOWN = 5  # images that an error names
_NOWHERE = np.iinfo(np.int32).max
Sums = dict[str, Any]


class NotFiniteError(UserError):
  """Outputs of a model that are not numbers: how many, of which images."""


def zeros(counts: Iterable[str], floats: Iterable[str]) -> dict[str, np.ndarray]:
  """Totals of an evaluation at its begin.

  Args:
    counts: names of whole numbers.
    floats: names of sums of floats.

  Returns:
    int32 scalars and float32 (2,), and what `note_outputs` keeps: 'seen', 'outputs', 'bad',
    'bad_at'.
  """
  return {
    **{name: np.zeros((), np.int32) for name in counts},
    **{name: np.zeros(2, np.float32) for name in floats},
    'seen': np.zeros((), np.int32),
    'bad': np.zeros(2, np.int32),
    'bad_at': np.full(SHOWN, _NOWHERE, np.int32),
  }


def add(total: jax.Array, value: jax.Array) -> jax.Array:
  """Adds to a total: to a sum of floats what it lost before too, to a count plainly.

  Args:
    total: of the kind that `zeros` gives, float32 (2,) or int32; float32 (2, ...) for several.
    value: float32 (...) or int32.

  Returns:
    The new total: (sum, what rounding took from it).

  References:
    Kahan, Further remarks on reducing truncation errors, 1965; the error of a sum as in Knuth, The
    Art of Computer Programming 2, section 4.2.2, theorem B.
  """
  if not jnp.issubdtype(total.dtype, jnp.floating):
    return total + value
  value = value + total[1]
  new = total[0] + value
  theirs = new - total[0]
  return jnp.stack([new, (total[0] - (new - theirs)) + (value - theirs)])


def value_of(total: Any) -> np.ndarray:
  """A total on the host as float64, or as the whole number that it is."""
  total = np.asarray(total)
  if not np.issubdtype(total.dtype, np.floating):
    return total
  high, low = total.astype(np.float64)
  return high + np.where(np.isfinite(low), low, 0.0)


def note_outputs(
  totals: Sums, outputs: Iterable[jax.Array], mask: jax.Array, axis: str
) -> dict[str, jax.Array]:
  """Counts the outputs of a batch that are not finite; runs inside the mapped axis.

  Args:
    totals: so far.
    outputs: each (B, ...), rows of this device.
    mask: bool (B,), False for padding.
    axis: name of the mapped axis.

  Returns:
    The new 'seen' (rows, padding too), 'bad' (values that are not finite, images with such) and
    'bad_at' (places of the first of these images in the split, in order).
  """
  rows = mask.shape[0]
  each = sum(jnp.sum(~jnp.isfinite(x).reshape(rows, -1), axis=1, dtype=jnp.int32) for x in outputs)
  each = jnp.where(mask, jnp.asarray(each, jnp.int32), 0)
  wrong = each > 0
  place = totals['seen'] + jax.lax.axis_index(axis) * rows + jnp.arange(rows, dtype=jnp.int32)
  places = jax.lax.all_gather(jnp.where(wrong, place, _NOWHERE), axis).reshape(-1)
  bad = jnp.stack([jnp.sum(each), jnp.sum(wrong.astype(jnp.int32))])
  return {
    'seen': totals['seen'] + rows * jax.lax.axis_size(axis),
    'bad': totals['bad'] + jax.lax.psum(bad, axis),
    'bad_at': jnp.sort(jnp.concatenate([totals['bad_at'], places]))[:SHOWN],
  }


def check_finite(sums: Sums, what: str) -> None:
  """Refuses an evaluation whose model gave what is no number.

  Args:
    sums: on the host.
    what: whose outputs these are, and what they are: 'logits of ...'.

  Raises:
    NotFiniteError: one line with their number and the images.
  """
  values, images = (int(n) for n in sums['bad'])
  if not images:
    return
  places = [str(int(place)) for place in sums['bad_at'] if place != _NOWHERE]
  more = ', ...' if images > len(places) else ''
  raise NotFiniteError(
    f'{values} {what} are not finite, those of {images} of {int(sums["count"])} images '
    f'(number {", ".join(places)}{more} from 0)'
  )


def finite_or(value: float, otherwise: float = -math.inf) -> float:
  """A value that can be compared: what is not a number is less than every number."""
  return value if math.isfinite(value) else otherwise
