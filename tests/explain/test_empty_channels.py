"""Channels that are empty in an image are no work, and change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from rest_jax import UserError, explain
from rest_jax.explain.queries import chunked_where

SIZES = jnp.array([0.5, 1.0, 2.0, 0.3, 1.5, 0.7])
COLOUR = np.array([0, 1, 1, 2, 0, 1])  # that each channel sees
HEAD = jax.random.normal(jax.random.key(1), (len(COLOUR), 3))
# All colours, no green, black.
IMAGES = jax.random.uniform(jax.random.key(2), (3, 8, 8, 3)) * jnp.array(
  [[1.0, 1, 1], [1, 0, 1], [0, 0, 0]]
).reshape(3, 1, 1, 3)
ALIVE = np.stack([np.ones(6, bool), COLOUR != 1, np.zeros(6, bool)])
PASSES = []


def features(kernel, x):
  sizes, colours = kernel
  return x.reshape(len(x), 4, 2, 4, 2, 3).mean((2, 4))[..., colours] * sizes[None, None, None]


def head(weights, a):
  return jnp.sum(jnp.tanh(a) * a, axis=(1, 2)) @ weights


def counting_head(weights, a):
  jax.debug.callback(lambda: PASSES.append(1))
  return head(weights, a)


def pair(channels=slice(None), head=head):
  kernel = SIZES[channels], jnp.asarray(COLOUR)[channels]
  return Partial(features, kernel), Partial(head, HEAD[channels])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([(1, 4), (4, 4), (5, 4), (9, 2), (7, 100)]), st.integers(0, 2**9 - 1))
def test_only_chunks_with_something_wanted_are_run(case, bits):
  n, size = case
  wanted = np.array([bits >> i & 1 for i in range(n)], bool)
  called = []

  def double(item):
    assert item[0].shape[0] <= size  # bounded memory
    jax.debug.callback(lambda: called.append(1))
    return {'out': 2 * item[0], 'odd': item[0][:, 0] % 2 == 1}

  items = (jnp.arange(3.0 * n).reshape(n, 3) + 1, None)
  found = chunked_where(double, items, jnp.asarray(wanted), size)
  jax.effects_barrier()
  np.testing.assert_array_equal(found['out'], np.where(wanted[:, None], 2 * items[0], 0))
  np.testing.assert_array_equal(found['odd'], wanted & (np.asarray(items[0])[:, 0] % 2 == 1))
  chunk = -(-n // -(-n // size))
  assert len(called) == -(-wanted.sum() // chunk)


def test_a_size_is_refused():
  with pytest.raises(UserError, match='1 or more'):
    chunked_where(lambda x: x, jnp.ones(3), jnp.ones(3, bool), 0)


@pytest.mark.parametrize('query_batch', [2, 32])
@pytest.mark.parametrize('name, more', [('score_cam', 2), ('ablation_cam', 1)])
@pytest.mark.filterwarnings('ignore::rest_jax.explain.checking.EmptyMaps')
def test_empty_channels_cost_nothing_and_change_nothing(name, more, query_batch):
  together = explain.explain(pair(), IMAGES, name, 0, query_batch=query_batch)
  assert together.image_queries.tolist() == (ALIVE.sum(1) + more).tolist()
  some = explain.explain(pair(np.flatnonzero(ALIVE[1])), IMAGES, name, 0)
  np.testing.assert_allclose(together.maps[1], some.maps[1], atol=1e-5)
  assert together.constant.tolist() == [False, False, True]


@pytest.mark.parametrize('name', ['score_cam', 'ablation_cam'])
@pytest.mark.filterwarnings('ignore::rest_jax.explain.checking.EmptyMaps')
def test_passes_are_counted_where_they_are_made(name):
  """An image at a time and a channel a pass: dead channels are not asked about."""
  made = []
  for number in (0, 1):
    jax.effects_barrier()
    PASSES.clear()
    call = getattr(explain, name)
    call(pair(head=counting_head), IMAGES[number : number + 1], 1, query_batch=1)
    jax.effects_barrier()
    made.append(len(PASSES))
  assert made[0] - made[1] == ALIVE[0].sum() - ALIVE[1].sum()


@pytest.mark.parametrize('name', ['score_cam', 'ablation_cam'])
@pytest.mark.filterwarnings('ignore::rest_jax.explain.checking.EmptyMaps')
def test_devices_of_a_mesh_ask_about_their_own_channels(name):
  images = jnp.concatenate([IMAGES, IMAGES[:1]])
  mesh, split = jax.sharding.Mesh(jax.devices(), ('batch',)), jax.sharding.PartitionSpec('batch')
  run = lambda x: getattr(explain, name)(pair(), x, 0, query_batch=4)  # noqa: E731
  shared = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split))
  np.testing.assert_allclose(shared(images), run(images), atol=1e-5)
  alone = jax.jit(jax.vmap(lambda x: run(x[None])[0]))
  np.testing.assert_allclose(alone(images), run(images), atol=1e-5)
