"""Parameters that are looked up without their initialisers, and shapes without either."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax import linen as nn

from rest_jax.models import create_detector, create_model, create_segmenter, model_dir
from rest_jax.models.layers import Dense, parameter, shapes_only

SMALL = dict(widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), heads=(1, 1, 2, 2))


def counted(calls):
  def init(key, shape):
    calls.append(shape)
    return nn.initializers.ones(key, shape)

  return init


class Scaled(nn.Module):
  filler: object
  width: int = 3

  @nn.compact
  def __call__(self, x):
    return x * parameter(self, 'scale', self.filler, (self.width,))[None]


def test_initialisers_run_where_there_is_no_value_alone():
  calls, x = [], jnp.full((2, 3), 4.0)
  module = Scaled(counted(calls))
  variables = module.init(jax.random.key(0), x)
  assert calls == [(3,)]
  np.testing.assert_array_equal(variables['params']['scale'], 1)
  np.testing.assert_array_equal(module.apply(variables, x), x)
  assert calls == [(3,)]
  with shapes_only():
    np.testing.assert_array_equal(module.init(jax.random.key(0), x)['params']['scale'], 0)
  assert calls == [(3,)]


def test_values_that_do_not_fit_are_flax_errors():
  module = Scaled(nn.initializers.ones)
  with pytest.raises(errors.ScopeParamShapeError, match='scale'):
    module.apply({'params': {'scale': jnp.ones(4)}}, jnp.ones((2, 3)))
  with pytest.raises(errors.ScopeParamNotFoundError):
    module.apply({'params': {'other': jnp.ones(4)}}, jnp.ones((2, 3)))

  class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
      return sum(parameter(self, 'scale', nn.initializers.ones, (3,)) for _ in range(2))

  with pytest.raises(errors.NameInUseError):
    Twice().init(jax.random.key(0), jnp.ones(3))


@pytest.mark.parametrize(
  'module',
  [
    create_model('rest_lite', 3, compression='learned', **SMALL),
    create_model('restv2_tiny', 0, out_norm='branch', **SMALL),
    create_model('efficientnet_lite0', 3, widths=(8,) * 7, depths=(1,) * 7, neck_width=8),
    create_detector('mask_rcnn_resnet18', 2, backbone=dict(width=8, depths=(1,) * 4), width=8),
    create_segmenter('upernet_resnet18', 2, backbone=dict(width=8, depths=(1,) * 4), width=8),
  ],
  ids=lambda module: type(module).__name__,
)
def test_tensors_are_those_that_an_initialisation_makes(module):
  images = jnp.zeros((1, 64, 64, 3))
  made = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)
  found = model_dir.abstract_tensors(module)
  assert found == model_dir.flatten(made)
  found.clear()  # a copy: the next one to ask gets them all
  assert model_dir.abstract_tensors(module) == model_dir.flatten(made)


def test_a_module_that_has_no_hash_has_tensors_too():
  class Listed(nn.Module):
    widths: list

    @nn.compact
    def __call__(self, x, train):
      return Dense(sum(self.widths))(x)

  found = model_dir.abstract_tensors(Listed([2, 3]))
  assert found['params/Dense_0/kernel'].shape == (3, 5)
