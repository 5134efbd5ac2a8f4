"""Models that are not of this project are explained without change."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rest_jax import explain

IMAGES = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
CAMS = [name for name, method in explain.METHODS.items() if method.needs_layer]


class ResNetBlock(nn.Module):
  """A residual block as Flax's examples write it."""

  filters: int
  strides: tuple[int, int] = (1, 1)
  train: bool = False

  @nn.compact
  def __call__(self, x):
    norm = lambda: nn.BatchNorm(use_running_average=not self.train)  # noqa: E731
    residual = x
    y = nn.relu(norm()(nn.Conv(self.filters, (3, 3), self.strides)(x)))
    y = norm()(nn.Conv(self.filters, (3, 3))(y))
    if residual.shape != y.shape:
      residual = norm()(nn.Conv(self.filters, (1, 1), self.strides)(residual))
    return nn.relu(residual + y)


class ResNet(nn.Module):
  num_classes: int = 5

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3))(x))
    for filters in (4, 8):
      x = ResNetBlock(filters, (2, 2))(x)
    return nn.Dense(self.num_classes)(x.mean((1, 2)))


@pytest.fixture(scope='module')
def resnet():
  variables = jax.jit(ResNet().init)(jax.random.key(0), IMAGES)
  return lambda images: ResNet().apply(variables, images)


@pytest.mark.parametrize('name', CAMS)
def test_a_linen_resnet(resnet, name):
  result = explain.explain(resnet, IMAGES, name)
  assert result.maps.shape == (2, 32, 32)
  assert not result.constant.any(), 'no map at all'
  np.testing.assert_allclose(result.maps.max((1, 2)), 1)
  np.testing.assert_allclose(result.logits, resnet(IMAGES), atol=1e-5)


def test_the_layers_of_a_linen_resnet(resnet):
  layers = explain.list_layers(resnet, (32, 32, 3))
  assert layers['ResNetBlock_1'] == (1, 8, 8, 8)
  assert explain.tap(resnet).resolve(IMAGES.shape) == 'ResNetBlock_1'


def test_a_plain_function():
  """The brightness of the upper left quarter, of which Group-CAM finds the place."""

  def features(images):
    return jnp.stack([images.mean(-1), 1 - images.mean(-1)], -1)[:, ::4, ::4]

  def head(a):
    left = a[:, :4, :4, 0].mean((1, 2))
    return jnp.stack([20 * left, jnp.ones_like(left)], -1)

  images = jnp.zeros((1, 32, 32, 3)).at[:, 2:12, 2:12].set(1.0)
  maps = explain.group_cam((features, head), images, 0, groups=2)
  assert maps[0, :14, :14].sum() > 0.9 * maps.sum() > 0
  whole = explain.explain((features, head), images, 'gradient', 0).maps
  assert whole.shape == (1, 32, 32)


class Net(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Conv(3, 4, (3, 3), (2, 2), rngs=rngs)
    self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
    self.last = nnx.Linear(4, 5, rngs=rngs)

  def features(self, x):
    return nnx.relu(self.norm(self.first(x)))

  def head(self, a):
    return self.last(a.mean((1, 2)))

  def __call__(self, x):
    return self.head(self.features(x))


@pytest.mark.parametrize('name', ['group_cam', 'grad_cam_pp', 'ablation_cam'])
def test_an_nnx_model(name):
  net = Net(nnx.Rngs(0))
  result = explain.explain((net.features, net.head), IMAGES, name, 2)
  assert not result.constant.any(), 'no map at all'
  np.testing.assert_allclose(result.logits, net(IMAGES), atol=1e-5)
  maps = explain.explain(net, IMAGES, 'gradient', 2).maps  # no layer, so no pair
  assert maps.shape == (2, 32, 32)
