"""`ops.platform.jit`: compiled with the platform's options alone, a part of others inside them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rest_jax.ops import platform

X = jnp.arange(2 * 8 * 8 * 4, dtype=jnp.float32).reshape(2, 8, 8, 4) / 100
KERNEL = jnp.ones((3, 3, 4, 4)) / 36


@platform.jit
def convolved(x, kernel):
  """A convolution, then its sum."""
  names = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=names)


def test_convolutions_are_eigens_and_the_results_are_the_same():
  assert platform.compiler_options()  # of the versions that the tests run with
  plain = jax.jit(convolved.__wrapped__)
  large = jnp.ones((8, 32, 32, 32)), jnp.ones((3, 3, 32, 32))
  text = convolved.lower(*large).compile().as_text()
  assert 'ynn' in plain.lower(*large).compile().as_text()
  assert 'ynn' not in text and 'convolution(' in text
  np.testing.assert_allclose(convolved(X, KERNEL), plain(X, KERNEL), rtol=1e-5)
  assert convolved.__name__ == 'convolved' and convolved._cache_size() == 1


@pytest.mark.parametrize(
  'around',
  [
    lambda f: jax.jit(lambda x: f(x, KERNEL).sum()),
    lambda f: jax.jit(lambda x: f(X, KERNEL).sum() + x.sum()),  # nothing that is traced goes in
    lambda f: lambda x: jax.grad(lambda x: f(x, KERNEL).sum())(x),
    lambda f: lambda x: jax.vmap(f, (0, None))(x[:, None], KERNEL),
    lambda f: lambda x: lax.scan(lambda x, _: (f(x, KERNEL), None), x, None, length=2)[0],
    lambda f: lambda x: jax.eval_shape(f, x, KERNEL).shape[0] * x,
  ],
)
def test_inside_others_it_is_a_part_of_them(around):
  found = jax.block_until_ready(around(convolved)(X))
  np.testing.assert_allclose(found, around(convolved.__wrapped__)(X), rtol=1e-5)


def test_settings_go_to_jax():
  @platform.jit
  def twice(x):
    return 2 * x

  power = platform.jit(lambda x, n: x**n, static_argnames='n')
  assert power(jnp.float32(3), n=2) == 9 and twice(jnp.float32(3)) == 6


@pytest.mark.parametrize('case', ['unknown', 'flags', 'other backend'])
def test_where_no_option_is_known_none_is_given(case, monkeypatch):
  platform.compiler_options.cache_clear()
  if case == 'unknown':
    monkeypatch.setattr(platform, '_CPU_OPTIONS', {'xla_cpu_no_such_option': 'a'})
  elif case == 'flags':
    monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type=individual_dot')
  else:
    monkeypatch.setattr(platform.jax, 'default_backend', lambda: 'tpu')
  try:
    assert platform.compiler_options() is None
    assert platform.jit(lambda x: x + 1)(jnp.float32(1)) == 2
  finally:
    platform.compiler_options.cache_clear()


def test_traced_once_for_each_shape_and_taken_over_as_it_is():
  """What is traced around it has the operations themselves, and they are written down but once."""
  seen = []

  def cubes(x, times):
    seen.append(x.shape)
    return times * x**3

  once = platform.traced_once(cubes, static_argnums=1)
  one, two = (
    str(jax.make_jaxpr(jax.grad(lambda x: once(x, 2).sum() + once(x + 1, 2).sum()))(X))
    for _ in range(2)
  )
  assert one == two and 'cubes' not in one and seen == [X.shape]
  texts = {
    jax.jit(lambda x, f=f: f(x, 2) + f(x, 2)).lower(X).as_text()
    for f in (lambda x, times: times * x**3, once)
  }
  assert len(texts) == 1 and seen == [X.shape]
  np.testing.assert_array_equal(jax.vmap(lambda x: once(x, 2))(X), once(X, 2))
  assert seen == [X.shape, X.shape[1:]]


def test_what_is_apart_is_fused_with_nothing():
  @functools.partial(platform.apart, static_argnums=1)
  def around(x, reach):
    return sum(jnp.roll(x, i, 0) for i in range(-reach, reach + 1))

  def function(x, around=around):
    return around(jnp.sin(x), 2) + around(jnp.cos(x), 2)

  plain = functools.partial(function, around=lambda x, reach: around.__wrapped__(x, reach))
  texts = [jax.jit(f).lower(X[0]).compile().as_text() for f in (function, plain)]
  assert [text.count(' call(') for text in texts] == [2, 0]
  assert 'inlineable' not in texts[0].split(' call(')[0]  # nothing inside is kept apart by itself
  for wrap in (
    lambda f: f(X[0]),
    lambda f: jax.grad(lambda x: jnp.sum(f(x) ** 2))(X[0]),
    lambda f: jax.vmap(f)(X),
    lambda f: lax.fori_loop(0, 2, lambda i, x: f(x), X[0]),
  ):
    np.testing.assert_allclose(wrap(function), wrap(plain), rtol=1e-5, atol=1e-5)


def test_on_other_backends_a_part_is_fused_as_ever(monkeypatch):
  part = platform.apart(lambda x, times: times * jnp.sin(x), static_argnums=1)
  monkeypatch.setattr(platform.jax, 'default_backend', lambda: 'tpu')
  text = jax.jit(lambda x: part(x, 2)).lower(X).as_text()
  assert 'call' not in text and 'inlineable' not in text
