"""EMSA without the normalised map against the definition with it; the other small operations."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import erf

from rest_jax import ops
from rest_jax.ops import attention


def plain_attend(q, k, v):
  scores = jnp.einsum('bnhd,bmhd->bhnm', q, k) / np.sqrt(q.shape[-1])
  return jnp.einsum('bhnm,bmhd->bnhd', jax.nn.softmax(scores, axis=-1), v)


def plain_emsa(q, k, v, mix):
  """ResT's definition, step by step: scale, 1x1 convolution, softmax, instance norm, product."""
  bias = jnp.arange(q.shape[2], dtype=jnp.float32)  # of the convolution
  scores = jnp.einsum('bnhd,bmhd->bhnm', q, k) / np.sqrt(q.shape[-1])
  scores = jnp.einsum('bhnm,hg->bgnm', scores, mix) + bias[None, :, None, None]
  p = jax.nn.softmax(scores, axis=-1)
  mean = p.mean((2, 3), keepdims=True)
  variance = ((p - mean) ** 2).mean((2, 3), keepdims=True)
  return jnp.einsum('bhnm,bmhd->bnhd', (p - mean) / jnp.sqrt(variance + 1e-5), v)


def tensors(seed, b, n, m, h, d, scale=1.0):
  rng = np.random.default_rng(seed)
  q, k, v = (jnp.asarray(rng.normal(size=(b, t, h, d)), jnp.float32) for t in (n, m, m))
  return q * scale, k, v, jnp.asarray(rng.normal(size=(h, h)), jnp.float32)


# Images, queries, keys, heads, channels. Few, for each compiles.
shapes = st.sampled_from(
  [(1, 1, 1, 1, 1), (1, 4, 1, 2, 3), (1, 1, 5, 4, 2), (2, 9, 6, 3, 5), (2, 7, 4, 1, 1)]
)


@functools.cache
def compiled(function):
  @jax.jit
  def everything(*args):
    out, vjp = jax.vjp(function, *args)
    return (out, *vjp(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)))

  return everything


def values_and_gradients(function, *args):
  return compiled(function)(*args)


@given(shapes, st.integers(0, 99))
def test_attend_is_its_definition(shape, seed):
  q, k, v, _ = tensors(seed, *shape)
  got, want = (values_and_gradients(f, q, k, v) for f in (ops.attend, plain_attend))
  chex.assert_trees_all_close(got, want, atol=2e-5, rtol=2e-5)


@given(shapes, st.integers(0, 99))
def test_emsa_is_its_definition(shape, seed):
  q, k, v, mix = tensors(seed, *shape)
  got, want = (values_and_gradients(f, q, k, v, mix) for f in (ops.emsa, plain_emsa))
  for a, b in zip(got, want, strict=True):
    # The norm divides by a deviation that can be 3e-3 (eps alone), so errors grow with it.
    np.testing.assert_allclose(a, b, atol=2e-3 * max(0.1, float(jnp.abs(b).max())), rtol=1e-3)


def test_emsa_of_one_key_is_zero():
  q, k, v, mix = tensors(0, 1, 4, 1, 2, 3)
  np.testing.assert_array_equal(ops.emsa(q, k, v, mix), jnp.zeros_like(q))


@pytest.mark.parametrize('scale', [1e-3, 1.0, 30.0])
@pytest.mark.parametrize('keys', [2, 48])
def test_emsa_loses_nothing_where_the_map_is_nearly_even(scale, keys):
  """Against float64: the norm enlarges a map's differences from 1/m up to 300 times."""
  q, k, v, mix = tensors(3, 1, 96, keys, 2, 8, scale)
  got = np.asarray(jax.jit(ops.emsa)(q, k, v, mix), np.float64)
  q, k, v, mix = (np.asarray(x, np.float64) for x in (q, k, v, mix))
  scores = np.einsum('bnhd,bmhd,hg->bgnm', q, k, mix) / np.sqrt(q.shape[-1])
  p = np.exp(scores - scores.max(-1, keepdims=True))
  p = p / p.sum(-1, keepdims=True)
  c = p - p.mean((2, 3), keepdims=True)
  normed = c / np.sqrt((c**2).mean((2, 3), keepdims=True) + 1e-5)
  want = np.einsum('bhnm,bmhd->bnhd', normed, v)
  # What float32 loses of the scores themselves grows with them.
  assert np.abs(got - want).max() <= 3e-7 * max(1, scale) * keys**0.5 * np.abs(want).max()


def test_a_large_mean_of_the_values_takes_nothing_from_emsa():
  q, k, v, mix = tensors(4, 1, 8, 4, 2, 4, 0.1)
  want = ops.emsa(q, k, v, mix)
  assert float(jnp.abs(ops.emsa(q, k, v + 64.0, mix) - want).max()) < 1e-4 * float(
    jnp.abs(want).max()
  )


@pytest.mark.parametrize('scale', [1e-4, 1e4])
def test_emsa_stays_finite(scale):
  q, k, v, mix = tensors(0, 2, 8, 4, 2, 4, scale)
  out = values_and_gradients(ops.emsa, q, k, v, mix)
  assert all(bool(jnp.isfinite(x).all()) for x in out)


def test_bfloat16_keeps_the_dtype_and_the_value():
  q, k, v, mix = tensors(0, 2, 16, 4, 2, 8)
  low = ops.emsa(*(x.astype(jnp.bfloat16) for x in (q, k, v)), mix)
  assert low.dtype == jnp.bfloat16
  want = ops.emsa(q, k, v, mix)
  np.testing.assert_allclose(low.astype(jnp.float32), want, atol=0.05 * float(jnp.abs(want).max()))


def test_dropout_sees_the_map_and_no_other_change():
  q, k, v, mix = tensors(0, 1, 6, 3, 2, 4)
  drop = lambda weights: weights  # noqa: E731
  np.testing.assert_allclose(
    ops.emsa(q, k, v, mix, dropout=drop), ops.emsa(q, k, v, mix), atol=1e-4
  )
  np.testing.assert_allclose(ops.attend(q, k, v, dropout=drop), ops.attend(q, k, v), atol=1e-6)


def test_gelu_is_exact():
  x = np.linspace(-6, 6, 1001).astype(np.float32)
  want = 0.5 * x.astype(np.float64) * (1 + erf(x.astype(np.float64) / np.sqrt(2)))
  np.testing.assert_allclose(ops.gelu(jnp.asarray(x)), want, atol=1e-6)
  slope = jax.jit(jax.vmap(jax.grad(ops.gelu)))(x)
  plain = jax.jit(jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False))))(x)
  np.testing.assert_allclose(slope, plain, atol=1e-6)


def test_sum_rows():
  a, b = jnp.arange(6.0).reshape(3, 2), jnp.ones((3, 2))
  np.testing.assert_array_equal(jnp.stack(ops.sum_rows(a, b)), [[6, 9], [3, 3]])
  tangent = jax.jvp(lambda a: ops.sum_rows(a, b)[0], (a,), (b,))[1]
  np.testing.assert_array_equal(tangent, [3, 3])


def test_sum_planes():
  x = jnp.arange(24.0).reshape(2, 2, 3, 2)
  for array, total in zip((x, -x), ops.sum_planes(x, -x), strict=True):
    np.testing.assert_array_equal(total, jnp.sum(array, (1, 2), keepdims=True))


@pytest.mark.parametrize('operation', ['emsa', 'depthwise'])
def test_compiled_gradient_is_the_eager_one(operation):
  """Guards against a compiler that fuses a gradient wrongly (seen in one CPU release)."""
  q, k, v, mix = tensors(1, 1, 32, 8, 2, 8)
  if operation == 'emsa':
    loss, args = lambda *a: jnp.sum(jnp.sin(ops.emsa(*a))), (q, k, v, mix)
  else:
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 4))
    loss = lambda x, w: jnp.sum(jnp.sin(ops.depthwise_conv(x, w, padding=1)))  # noqa: E731
    args = (x, kernel)
  gradient = jax.grad(loss, argnums=tuple(range(len(args))))
  compiled = jax.jit(gradient)(*args)
  with jax.disable_jit():
    eager = gradient(*args)
  chex.assert_trees_all_close(compiled, eager, atol=1e-3, rtol=1e-4)


# ---- Large maps ---------------------------------------------------------------------------------


@pytest.mark.parametrize('form', ['fast', 'plain'])
@pytest.mark.parametrize('rows', [1, 12, 30])  # values at a time: 1, 1 and 2 of 7 rows, 4 of them
@pytest.mark.parametrize('kind', ['attend', 'emsa'])
def test_some_rows_at_a_time_give_the_same(kind, rows, form, monkeypatch):
  monkeypatch.setattr(attention, 'WHOLE_MAP', {form: 20})
  monkeypatch.setattr(attention, 'ROWS', {form: rows * 2})
  q, k, v, mix = tensors(3, 2, 7, 5, 1 if kind == 'attend' else 2, 3)
  given_ = (q, k, v) if kind == 'attend' else (q, k, v, mix)
  function, plain = (ops.attend, plain_attend) if kind == 'attend' else (ops.emsa, plain_emsa)
  with ops.use_form(form):
    found = compiled(lambda *args: function(*args))(*given_)
    text = str(jax.make_jaxpr(lambda *args: function(*args))(*given_))
  assert 'scan' in text and 'f32[2,1,7,5]' not in text and 'f32[2,2,7,5]' not in text
  chex.assert_trees_all_close(found, compiled(plain)(*given_), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize('kind', ['attend', 'emsa'])
def test_a_large_map_is_never_there_as_a_whole(kind):
  """Of stage 1 at 1024 px, by the compiler's count of the memory of values and gradients."""
  heads, count, keys = (1, 2**16, 2**10) if kind == 'attend' else (2, 2**15, 2**9)
  q, k, v, mix = (
    jax.ShapeDtypeStruct(shape, jnp.float32)
    for shape in ((1, count, heads, 8), *[(1, keys, heads, 8)] * 2, (heads, heads))
  )
  given_ = (q, k, v) if kind == 'attend' else (q, k, v, mix)
  function = ops.attend if kind == 'attend' else ops.emsa
  total = jax.jit(jax.grad(lambda *args: jnp.sum(function(*args) ** 2), argnums=(0, 1, 2)))
  used = total.lower(*given_).compile().memory_analysis().temp_size_in_bytes
  assert used < 4 * heads * count * keys / 2


def test_dropout_sees_the_whole_map(monkeypatch):
  monkeypatch.setattr(attention, 'WHOLE_MAP', {'fast': 1, 'plain': 1})
  q, k, v, mix = tensors(4, 1, 6, 4, 2, 3)
  seen = []

  def dropout(weights):
    seen.append(weights.shape)
    return weights

  np.testing.assert_allclose(ops.emsa(q, k, v, mix, dropout), plain_emsa(q, k, v, mix), atol=1e-5)
  assert seen == [(1, 2, 6, 4)]
