"""Layers of NNX and Equinox models have names and are tapped, as Linen's are."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from rest_jax import UserError, explain

IMAGES = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))


class Block(nnx.Module):
  def __init__(self, inputs, outputs, rngs):
    self.conv = nnx.Conv(inputs, outputs, (3, 3), strides=2, rngs=rngs)
    self.norm = nnx.BatchNorm(outputs, use_running_average=True, rngs=rngs)

  def __call__(self, x):
    return nnx.relu(self.norm(self.conv(x)))


class Doubled(Block):
  def __call__(self, x):
    return 2 * super().__call__(x)


class Net(nnx.Module):
  def __init__(self, rngs):
    self.blocks = nnx.List([Block(3, 4, rngs), Doubled(4, 8, rngs)])
    self.head = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, x):
    for block in self.blocks:
      x = block(x)
    return self.head(x.mean((1, 2)))


@pytest.fixture(scope='module')
def net():
  return Net(nnx.Rngs(0))


def test_nnx_layers_are_named_by_where_they_hang(net):
  assert explain.list_layers(net, (32, 32, 3)) == {
    'blocks/0/conv': (1, 16, 16, 4),
    'blocks/0/norm': (1, 16, 16, 4),
    'blocks/0': (1, 16, 16, 4),
    'blocks/1/conv': (1, 8, 8, 8),
    'blocks/1/norm': (1, 8, 8, 8),
    'blocks/1': (1, 8, 8, 8),
  }
  assert explain.tap(net).resolve(IMAGES.shape) == 'blocks/1'
  with pytest.raises(UserError, match='did you mean blocks/1'):
    explain.explain(net, IMAGES, 'grad_cam', 2, layer='block/1')


def test_a_tap_in_an_nnx_model_is_what_a_pair_gives(net):
  features = Partial(lambda net, x: net.blocks[1](net.blocks[0](x)), net)
  head = Partial(lambda net, a: net.head(a.mean((1, 2))), net)
  found = explain.explain(net, IMAGES, 'grad_cam', 2, layer='blocks/1')
  wanted = explain.explain((features, head), IMAGES, 'grad_cam', 2)
  np.testing.assert_allclose(found.maps, wanted.maps, atol=1e-6)
  np.testing.assert_allclose(found.logits, net(IMAGES), atol=1e-5)


def test_several_modules_in_one_function_have_names():
  first, last = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), nnx.Conv(4, 5, (3, 3), rngs=nnx.Rngs(1))
  function = Partial(lambda first, last, x: last(first(x)).mean((1, 2)), first, last)
  assert set(explain.list_layers(function, (8, 8, 3))) == {'Conv_0', 'Conv_1'}


def test_linen_inside_nnx_is_named_as_linen():
  module = nnx.bridge.ToNNX(nn.Sequential([nn.Conv(4, (3, 3)), nn.relu]), rngs=nnx.Rngs(0))
  module.lazy_init(IMAGES)
  model = Partial(lambda module, x: module(x).mean((1, 2)), module)
  assert 'layers_0' in explain.list_layers(model, (32, 32, 3))


def test_nothing_stays_wrapped(net):
  before = {kind: vars(kind)['__call__'] for kind in (Block, Doubled, Net, nnx.Conv, nnx.Linear)}
  explain.list_layers(net, (16, 16, 3))
  with pytest.raises(Exception, match=r'.'):
    explain.list_layers(net, (16, 16, 7))
  assert before == {kind: vars(kind)['__call__'] for kind in before}


@pytest.fixture(scope='module')
def equinox_net():
  """Of one image with its channels first, as Equinox's layers take it."""
  eqx = pytest.importorskip('equinox')

  class EquinoxNet(eqx.Module):
    layers: list
    out: eqx.nn.Linear

    def __init__(self, key):
      keys = jax.random.split(key, 3)
      first = eqx.nn.Conv2d(3, 4, 3, 2, padding=1, key=keys[0])
      self.layers = [first, eqx.nn.Conv2d(4, 8, 3, 2, padding=1, key=keys[1])]
      self.out = eqx.nn.Linear(8, 5, key=keys[2])

    def features(self, x):
      for layer in self.layers:
        x = jax.nn.relu(layer(x))
      return x

    def __call__(self, x):
      return self.out(self.features(x).mean((1, 2)))

  return EquinoxNet(jax.random.key(0))


def test_a_tap_in_an_equinox_model_under_vmap(equinox_net):
  def model(x):
    return jax.vmap(equinox_net)(x.transpose(0, 3, 1, 2))

  assert explain.list_layers(model, (32, 16, 3)) == {
    'layers/0': (1, 16, 8, 4),
    'layers/1': (1, 8, 4, 8),
  }

  def features(x):
    first, last = equinox_net.layers
    maps = jax.vmap(lambda x: last(jax.nn.relu(first(x))))(x.transpose(0, 3, 1, 2))
    return maps.transpose(0, 2, 3, 1)

  def head(maps):
    return jax.vmap(equinox_net.out)(jax.nn.relu(maps).mean((1, 2)))

  found = explain.explain(model, IMAGES, 'grad_cam', 2, layer='layers/1')
  wanted = explain.explain((features, head), IMAGES, 'grad_cam', 2)
  np.testing.assert_allclose(found.maps, wanted.maps, atol=1e-6)
  np.testing.assert_allclose(found.logits, model(IMAGES), atol=1e-5)


def test_an_equinox_model_inside_jit_is_not_seen(equinox_net):
  inner = jax.jit(jax.vmap(lambda x: equinox_net(x)))
  with pytest.raises(UserError, match='jitted inside is not seen'):
    explain.list_layers(lambda x: inner(x.transpose(0, 3, 1, 2)) * 1.0, (32, 32, 3))


def test_derivatives_inside_an_equinox_model(equinox_net):
  def slope(x):
    return jax.vmap(jax.grad(lambda x: equinox_net(x).sum()))(x.transpose(0, 3, 1, 2)).mean((2, 3))

  assert set(explain.list_layers(slope, (32, 32, 3))) == {'layers/0', 'layers/1'}
  np.testing.assert_allclose(explain.tap(slope)(IMAGES), slope(IMAGES), rtol=1e-5)
