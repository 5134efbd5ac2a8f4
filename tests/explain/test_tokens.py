"""Vision transformers with class and register tokens: which layer, which plane, which gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from flax import linen as nn
from jax.tree_util import Partial

from rest_jax import UserError, explain
from rest_jax.explain.checking import EmptyMaps
from rest_jax.explain.queries import layer_gradient

IMAGES = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))


class Block(nn.Module):
  """A transformer block, its norms before (as in ViT) or after (as in the first transformer)."""

  after: bool = False

  @nn.compact
  def __call__(self, x):
    attention = nn.MultiHeadDotProductAttention(2, name='attention')
    mlp = lambda y: nn.Dense(8, name='down')(nn.gelu(nn.Dense(16, name='up')(y)))  # noqa: E731
    if self.after:
      x = nn.LayerNorm(name='norm1')(x + attention(x, x))
      return nn.LayerNorm(name='norm2')(x + mlp(x))
    y = nn.LayerNorm(name='norm1')(x)
    x = x + attention(y, y)
    return x + mlp(nn.LayerNorm(name='norm2')(x))


class Encoder(nn.Module):
  after: bool = False

  @nn.compact
  def __call__(self, x):
    for i in range(2):
      x = Block(self.after, name=f'block{i}')(x)
    return nn.LayerNorm(name='norm')(x)


class Patches(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Conv(8, (8, 8), (8, 8), name='projection')(x)


class ViT(nn.Module):
  prefix: int = 1
  after: bool = False
  mean: bool = False

  @nn.compact
  def __call__(self, x):
    x = Patches(name='patches')(x).reshape(x.shape[0], -1, 8)
    first = self.param('first', nn.initializers.normal(1), (1, self.prefix, 8))
    x = jnp.concatenate([jnp.broadcast_to(first, (len(x), *first.shape[1:])), x], 1)
    x = Encoder(self.after, name='encoder')(x)
    return nn.Dense(4, name='head')(x.mean(1) if self.mean else x[:, 0])


def built(**options):
  module = ViT(**options)
  return Partial(module.apply, drawn(module, IMAGES))


@pytest.mark.parametrize('prefix', [1, 5])
@pytest.mark.parametrize('after', [False, True])
def test_the_default_layer_of_a_class_token_has_a_gradient(prefix, after):
  model = built(prefix=prefix, after=after)
  point = explain.tap(model)
  layer = 'encoder/block0' if after else 'encoder/block1/norm1'
  assert point.resolve(IMAGES.shape) == layer
  assert point.feature_shape(IMAGES) == (2, 4, 4, 8)
  seen = layer_gradient(point, IMAGES, jnp.array([1, 2]))
  assert (jnp.abs(seen.gradients).max((1, 2, 3)) > 1e-4).all()
  for name in ('grad_cam', 'ablation_cam'):
    found = explain.explain(model, IMAGES, name, [1, 2])
    assert not found.constant.all(), name


def test_a_mean_over_tokens_keeps_the_last_layer():
  model = built(prefix=0 + 1, mean=True)
  assert explain.tap(model).resolve(IMAGES.shape) == 'encoder/block1/norm1'


@pytest.mark.parametrize('name', ['grad_cam', 'group_cam', 'hires_cam', 'ablation_cam'])
def test_behind_the_last_attention_nothing_is_drawn_and_it_is_said(name):
  model = built()
  with pytest.warns(EmptyMaps, match='at layer encoder/block1 is 0 in all images') as caught:
    found = explain.explain(model, IMAGES, name, 1, layer='encoder/block1')
  assert not found.maps.any() and found.constant.all()
  assert '\n' not in str(caught[0].message)


def test_a_plane_that_cannot_be_inferred_is_asked_for():
  odd = jnp.ones((1, 32, 40, 3))
  model = built()
  point = explain.tap(Partial(lambda x: model(x[:, :, 8:][:, ::1])), None)
  with pytest.raises(UserError, match=r'say layer=... and grid=\(rows, columns\); its layers: enc'):
    point.feature_shape(odd)
  given = explain.tap(point, grid=(4, 4))
  assert given.feature_shape(odd) == (1, 4, 4, 8)


def test_a_pair_of_tokens():
  kernel = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  tokens = lambda x: (x[:, ::8, ::8] @ kernel).reshape(len(x), -1, 5)  # noqa: E731
  pair = (tokens, lambda a: jnp.tanh(a).mean(1)[:, :3])
  plane = (lambda x: x[:, ::8, ::8] @ kernel, lambda a: jnp.tanh(a).mean((1, 2))[:, :3])
  np.testing.assert_allclose(
    explain.grad_cam(pair, IMAGES, 1), explain.grad_cam(plane, IMAGES, 1), atol=1e-5
  )
