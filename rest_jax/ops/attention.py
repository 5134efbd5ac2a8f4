"""Efficient multi-head self-attention's inner product, without the normalised map.

Shapes: B images, h heads, n queries, m keys (m = n / s^2), d channels a head.

A map (h, n, m) grows with the fourth power of an image's side: that of rest_small's first stage has
0.2 million values an image at 224 px and 67 million at 1024. Large ones are never there as a whole:
some rows at a time are made, used and forgotten, and made again for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rest_jax.ops.platform import Form, form, traced_once
from rest_jax.ops.reduce import wide_type

INSTANCE_NORM_EPS = 1e-5
# Values of an image's map up to which it is made as a whole, and of a batch's rows otherwise. The
# numbers of a CPU are measured, those of an accelerator are what its memory hardly notices.
WHOLE_MAP: dict[Form, int] = {'fast': 2**23, 'plain': 2**27}
ROWS: dict[Form, int] = {'fast': 2**22, 'plain': 2**25}


def attend(
  q: Float[Array, 'B n h d'],
  k: Float[Array, 'B m h d'],
  v: Float[Array, 'B m h d'],
  dropout: Callable | None = None,
) -> Float[Array, 'B n h d']:
  """softmax(q k^T / sqrt(d)) v.

  Args:
    q: queries.
    k: keys.
    v: values.
    dropout: applied to the attention map (B, h, n, m); None for none.

  Returns:
    One row for each query, in the dtype of v.

  References:
    ResTv2, arXiv 2204.07366, equation 4 (without the up-sampling branch).
  """
  rows = _rows_at_once(q, k)
  if dropout is None and rows < q.shape[1]:
    return _joined(_by_rows(_attend, rows, q, k, v), q.shape[1])
  weights = _weights(q, k, v.dtype)
  if dropout is not None:
    weights = dropout(weights)
  return _weighted(weights, v)


def _attend(q, k, v):
  return _weighted(_weights(q, k, v.dtype), v)


@partial(traced_once, static_argnums=2)
def _weights(q, k, dtype):
  return jax.nn.softmax(_scores(q, k), axis=-1).astype(dtype)


@traced_once
def _weighted(weights, v):
  return jnp.einsum('bhnm,bmhd->bnhd', weights, v)


def emsa(
  q: Float[Array, 'B n h d'],
  k: Float[Array, 'B m h d'],
  v: Float[Array, 'B m h d'],
  head_mix: Float[Array, 'h h'],
  dropout: Callable | None = None,
) -> Float[Array, 'B n h d']:
  """IN(softmax(Conv1x1_heads(q k^T / sqrt(d)))) v, for more than one head.

  The instance norm (no affine, over the n x m plane of each head) is never applied to the map:
  the rows of a softmax sum to 1, so the plane's mean is exactly 1/m, and with C = P - 1/m
  IN(P) v = (C v) / sqrt(mean(C^2) + eps).
  C comes from the scores directly (`_centred_softmax`): a map of new weights is nearly even, C a
  thousandth of P, and differences of rounded numbers, P - 1/m or mean(P^2) - 1/m^2, would reach the
  logits a thousand times enlarged.
  The 1x1 convolution's bias is the same for a whole plane and a softmax does not see it, so it is
  no argument here.

  Args:
    q: queries.
    k: keys.
    v: values.
    head_mix: the 1x1 convolution over heads, (in, out).
    dropout: applied to the normalised map (B, h, n, m); None for none. With it the map has to be
      stored after all.

  Returns:
    One row for each query, in the dtype of v.

  References:
    ResT, arXiv 2105.13677, equations 2-4.
  """
  rows, count = _rows_at_once(q, k), q.shape[1]
  if dropout is None and rows < count:
    mixed, squares = _by_rows(_emsa, rows, q, k, v, head_mix)
    scale = _factor(jnp.sum(squares, 0) / (count * k.shape[1]))
    return _joined(mixed, count) * scale[:, None, :, None].astype(v.dtype)
  centred, scale = _centred_map(q, k, head_mix)
  if dropout is not None:
    normed = dropout(centred * scale[:, :, None, None])
    return _weighted(normed.astype(v.dtype), v)
  mixed = _weighted(centred.astype(v.dtype), v)
  return mixed * scale[:, None, :, None].astype(v.dtype)


def _emsa(q, k, v, head_mix):
  """C v of some rows, and the sums of C^2 over them, (B, h)."""
  centred = _centred_softmax(_mix(_scores(q, k), head_mix))
  return _weighted(centred.astype(v.dtype), v), jnp.sum(jnp.square(centred), axis=(2, 3))


@traced_once
def _centred_map(q, k, head_mix):
  """C and what it is multiplied by, (B, h, n, m) and (B, h)."""
  centred = _centred_softmax(_mix(_scores(q, k), head_mix))
  return centred, _factor(jnp.mean(jnp.square(centred), axis=(2, 3)))


def _factor(variance):
  return lax.rsqrt(variance + INSTANCE_NORM_EPS)


def _rows_at_once(q, k) -> int:
  """Rows of the map to make at a time: all, where it is small."""
  batch, count, heads, _ = q.shape
  if heads * count * k.shape[1] <= WHOLE_MAP[form()]:
    return count
  return max(1, ROWS[form()] // (batch * heads * k.shape[1]))


def _by_rows(function, rows: int, q, *others):
  """function(some rows of q, *others) for all rows, one set after another.

  Rows that fill the last set up are 0: their scores are equal, and so their C is 0.

  Returns:
    What the function gives, along a new first axis.
  """
  batch, count, *rest = q.shape
  sets = -(-count // rows)
  rows = -(-count // sets)
  padded = jnp.pad(q, ((0, 0), (0, sets * rows - count), *((0, 0),) * len(rest)))
  blocks = jnp.moveaxis(padded.reshape(batch, sets, rows, *rest), 1, 0)
  # For the gradient the map's rows are made again, not kept; a loop needs no barrier for that.
  return lax.map(jax.checkpoint(lambda q: function(q, *others), prevent_cse=False), blocks)


def _joined(blocks, count: int):
  """Sets of rows (sets, B, rows, h, d), the last filled up, as (B, n, h, d)."""
  rows = jnp.moveaxis(blocks, 0, 1)
  return rows.reshape(rows.shape[0], -1, *rows.shape[3:])[:, :count]


@jax.custom_jvp
def _centred_softmax(x: Float[Array, '*rows m']) -> Float[Array, '*rows m']:
  """softmax(x) - 1/m over the last axis, exact to the precision of its own small values.

  With t = e^(x - max) - 1 it is (t - mean(t)) / sum(t + 1).
  """
  t = jnp.expm1(x - jnp.max(x, axis=-1, keepdims=True))
  return (t - jnp.mean(t, axis=-1, keepdims=True)) / jnp.sum(t + 1.0, axis=-1, keepdims=True)


@_centred_softmax.defjvp
def _centred_softmax_jvp(primals, tangents):
  centred, (change,) = _centred_softmax(*primals), tangents
  weights = centred + 1.0 / centred.shape[-1]
  return centred, weights * (change - jnp.sum(weights * change, axis=-1, keepdims=True))


def _scores(q, k):
  scale = q.shape[-1] ** -0.5
  return jnp.einsum('bnhd,bmhd->bhnm', q * scale, k, preferred_element_type=wide_type(k.dtype))


def _mix(scores, head_mix):
  return jnp.einsum('bhnm,hg->bgnm', scores, head_mix.astype(scores.dtype))
