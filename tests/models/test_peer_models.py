"""ResNet, VGG and EfficientNet-Lite against the libraries whose weights they read.

`golden/peer_state_dicts.json`: names, shapes and parameter counts of torchvision's ResNets and VGGs
(timm's ResNets have the same names) and of efficientnet-lite-pytorch's Lite 0 to 2.
`golden/peer_logits.json`: logits that those libraries compute in float64 for narrow or short
networks with `seeded_weights`, for images of even and odd sizes (2x64x64, 1x45x33; VGG 1x160x352
too, where the windows of its 7x7 average overlap).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from one_pass import logits_and_maps
from seeded_weights import seeded, seeded_images

from rest_jax.errors import UserError
from rest_jax.models import create_model, model_dir
from rest_jax.models.efficientnet_lite import round_width
from rest_jax.models.pytorch import from_pytorch, to_pytorch
from rest_jax.models.vgg import average_to_grid

GOLDEN = Path(__file__).parents[1] / 'golden'
STATE_DICTS = json.loads((GOLDEN / 'peer_state_dicts.json').read_text())
LOGITS = json.loads((GOLDEN / 'peer_logits.json').read_text())


def our_state_dict(model, specs):
  """{PyTorch name: array} of a model of ours, zeros that take no memory."""
  zeros = {n: np.broadcast_to(np.zeros((), s.dtype), s.shape) for n, s in specs.items()}
  return to_pytorch(model_dir.unflatten(zeros), model)


@pytest.mark.parametrize('name', STATE_DICTS)
def test_names_shapes_and_parameters_are_the_peers(name, monkeypatch):
  model = create_model(name)
  specs = model_dir.abstract_tensors(model)
  counted = sum(s.size for n, s in specs.items() if n.startswith('params/'))
  assert counted == STATE_DICTS[name]['parameters']
  if counted > 6e7:
    return  # VGG's linear layers: their layout is tested on narrow ones
  monkeypatch.setattr(model_dir, 'abstract_tensors', lambda module: specs)  # traced already
  shapes = {n: list(a.shape) for n, a in our_state_dict(model, specs).items()}
  assert shapes == STATE_DICTS[name]['state_dict']


@pytest.fixture(scope='module', params=LOGITS)
def peer(request):
  """A narrow model, its variables from seeded PyTorch weights, and the peer's logits by size."""
  case = LOGITS[request.param]
  model = create_model(case['model'], 5, **case['options'])
  state_dict = our_state_dict(model, model_dir.abstract_tensors(model))
  shapes = {n: a.shape for n, a in state_dict.items()}
  return model, from_pytorch(seeded(shapes), model), case['logits']


def test_logits_and_features(peer):
  model, variables, logits = peer

  @jax.jit
  def run(variables, x):  # weights that are constants would be computed with by the compiler
    return logits_and_maps(model, variables, x)

  for size, expected in logits.items():
    shape = tuple(map(int, size.split('x')))
    found, maps = run(variables, seeded_images(shape))
    expected = np.array(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert len(maps) == 4 and all(np.isfinite(m).all() for m in maps)


def test_layouts_go_there_and_back(peer):
  model, variables, _ = peer
  back = from_pytorch(to_pytorch(variables, model), model)
  for one, two in zip(jax.tree.leaves(variables), jax.tree.leaves(back), strict=True):
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
  'name, strides, widths',
  [
    ('efficientnet_lite2', (4, 8, 16, 32), (24, 48, 120, 352)),
    ('vgg19_bn', (2, 4, 8, 16), (128, 256, 512, 512)),
  ],
)
def test_four_maps_at_an_odd_size(name, strides, widths):
  model = create_model(name, 0)

  def run(x):
    pooled, variables = model.init_with_output(jax.random.key(0), x, train=False)
    return pooled, model.apply(variables, x, train=False, method='features')

  pooled, maps = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 45, 67, 3), jnp.float32))
  assert pooled.shape == (2, 4096 if name == 'vgg19_bn' else 1280) and pooled.dtype == jnp.float32
  for m, stride, channels in zip(maps, strides, widths, strict=True):
    up = 0 if name == 'vgg19_bn' else stride - 1  # VGG's pooling leaves the odd last row out
    assert m.shape == (2, (45 + up) // stride, (67 + up) // stride, channels)


@pytest.mark.parametrize('case', ['efficientnet_lite', 'vgg_bn'])
def test_training_pass(case):
  options = dict(LOGITS[case]['options'], drop_rate=0.5)
  options |= dict(drop_path_rate=0.5) if case == 'efficientnet_lite' else dict(remat=True)
  model = create_model(LOGITS[case]['model'], 3, **options)
  x = seeded_images((2, 32, 32, 3))
  variables = drawn(model, x, train=False)

  @jax.jit
  def step(key):
    return model.apply(variables, x, train=True, mutable=['batch_stats'], rngs={'dropout': key})

  (one, state), (two, _) = step(jax.random.key(1)), step(jax.random.key(2))
  assert np.isfinite(one).all() and (one != two).any()  # dropout draws anew
  counts = [v for k, v in model_dir.flatten(state).items() if k.endswith('count')]
  assert counts and all(count == 1 for count in counts)


def test_wrong_options_and_images_are_refused():
  for name, options in (
    ('vgg16', dict(depths=(2, 2, 3))),
    ('efficientnet_lite0', dict(widths=(8, 8))),
    ('efficientnet_lite0', dict(depths=(1, 2, 2, 3, 3, 4, 0))),
  ):
    with pytest.raises(UserError, match=r'takes .* numbers of 1 or more'):
      model_dir.abstract_tensors(create_model(name, **options))
  for name in ('vgg16', 'efficientnet_lite1'):
    model = create_model(name)
    images = jax.ShapeDtypeStruct((1, 20, 40, 3), jnp.float32)
    with pytest.raises(UserError, match='32 px or more'):
      jax.eval_shape(lambda x, m=model: m.init(jax.random.key(0), x, train=False), images)


def test_widths_are_rounded_to_eight():
  assert [round_width(1.1 * w) for w in (16, 24, 40, 80, 112, 192, 320)] == [
    16, 24, 48, 88, 120, 208, 352,
  ]  # fmt: skip
  assert round_width(11) == 16  # 8 would take more than a tenth off


def test_windows_of_the_grid():
  x = jnp.arange(10.0).reshape(1, 10, 1, 1)
  found = average_to_grid(x)[0, :, 0, 0]
  # Rows floor(10 i / 7) up to ceil(10 (i + 1) / 7).
  np.testing.assert_allclose(found, [0.5, 1.5, 3.0, 4.5, 6.0, 7.5, 8.5], rtol=1e-6)
  same = jnp.ones((1, 7, 7, 2))
  assert average_to_grid(same) is same
