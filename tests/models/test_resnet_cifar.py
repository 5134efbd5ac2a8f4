"""The ResNets of section 4.2 of the ResNet paper, against public PyTorch code for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax.errors import UserError
from rest_jax.models import create_model
from rest_jax.models.pytorch import from_pytorch, to_pytorch

# Parameters of pytorch_resnet_cifar10's models; the paper's table 6 has them in millions.
COUNTS = {
  'resnet20': 269_722,
  'resnet32': 464_154,
  'resnet44': 658_586,
  'resnet56': 853_018,
  'resnet110': 1_727_962,
}
# Logits of that code in float64, one block a stage, for `drawn()`.
LOGITS = np.array(
  [
    [
      1.043623,
      -0.235111,
      2.465119,
      2.235591,
      -0.869874,
      -1.346324,
      -0.681603,
      0.084759,
      -1.640168,
      0.627576,
    ],
    [
      0.939223,
      -0.383934,
      2.560311,
      2.274067,
      -0.909163,
      -1.785573,
      -0.669932,
      0.097947,
      -1.417461,
      0.539059,
    ],
  ]
)


def drawn(names_and_shapes):
  """Weights and two images (PyTorch's layouts) from one stream, in the order of the state dict."""
  rng = np.random.default_rng(0)
  state = {}
  for name, shape in names_and_shapes:
    values = rng.normal(size=shape) * 0.3
    state[name] = 1 + np.abs(values) if name.endswith('running_var') else values
  return state, rng.normal(size=(2, 3, 32, 32))


def names_and_shapes():
  norm = ('weight', 'bias', 'running_mean', 'running_var')
  found = [('conv1.weight', (16, 3, 3, 3))] + [(f'bn1.{n}', (16,)) for n in norm]
  before = 16
  for stage, width in enumerate((16, 32, 64), 1):
    for i in (1, 2):
      found.append((f'layer{stage}.0.conv{i}.weight', (width, before, 3, 3)))
      found += [(f'layer{stage}.0.bn{i}.{n}', (width,)) for n in norm]
      before = width
  return [*found, ('linear.weight', (10, 64)), ('linear.bias', (10,))]


@pytest.mark.parametrize('name', COUNTS)
def test_parameter_counts(name):
  shapes = jax.eval_shape(
    lambda: create_model(name, 10).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == COUNTS[name]


def test_logits_are_those_of_the_public_code():
  state, images = drawn(names_and_shapes())
  model = create_model('resnet20', 10, depth=1)
  variables = from_pytorch(state, model)
  x = jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32)
  logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
  np.testing.assert_allclose(logits, LOGITS, rtol=0, atol=1e-4 * np.abs(LOGITS).max())
  back = to_pytorch(variables, model)
  for name, values in state.items():
    np.testing.assert_array_equal(back[name], values.astype(np.float32))


def test_maps_and_bad_sizes():
  model = create_model('resnet20', 0, depth=1, width=4)
  image = jnp.zeros((1, 33, 40, 3))
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
  maps = jax.eval_shape(lambda v: model.apply(v, image, method='features'), variables)
  assert [m.shape for m in maps] == [(1, 33, 40, 4), (1, 17, 20, 8), (1, 9, 10, 16)]
  pooled = jax.eval_shape(lambda v: model.apply(v, image, train=False), variables)
  assert pooled.shape == (1, 16)
  with pytest.raises(UserError, match='depth'):
    create_model('resnet20', depth=0).init(jax.random.key(0), image)
