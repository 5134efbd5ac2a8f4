"""Band compression: the identity to the bit, filters, thresholds, gates, options, weights."""

import dataclasses
import functools
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_pass import logits_and_maps

from rest_jax.errors import UserError
from rest_jax.models import model_dir
from rest_jax.models.classifier import Classifier
from rest_jax.models.compression import (
  BandCompression,
  Compression,
  nonnegative,
  parse_compression,
)
from rest_jax.models.pytorch import from_pytorch, to_pytorch
from rest_jax.models.registry import create_model
from rest_jax.ops import radial_bands, scale_bands, transform2

SMALL = dict(widths=(8, 16, 16, 16), heads=(1, 2, 2, 2), depths=(1, 1, 1, 1))
TRANSFORMS = ('dct', 'fft')


def layer(x, strategy, variables=None, **options):
  """The layer's result on x, and the variables it had."""
  module = BandCompression(Compression(strategy=strategy, **options))

  @jax.jit
  def run(x, variables):
    variables = module.init(jax.random.key(1), x) if variables is None else variables
    return module.apply(variables, x), variables

  return run(x, variables)


@pytest.fixture
def maps():
  return jax.random.normal(jax.random.key(0), (2, 9, 12, 16))


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize(
  ('strategy', 'options', 'leaf', 'value'),
  [
    ('low_pass', dict(cutoff=1.0), None, 0.0),
    ('uniform', dict(gain=1.0), None, 0.0),
    ('soft_threshold', {}, None, 0.0),
    ('wiener', {}, None, 0.0),
    # A gate whose logit is 4 + 10 x 4 is 1 to the last bit.
    ('learned', {}, ('params', 'fc2', 'bias'), 4.0),
  ],
)
def test_a_gain_of_one_is_the_identity_to_the_bit(maps, transform, strategy, options, leaf, value):
  options = dict(options, transform=transform)
  out, variables = layer(maps, strategy, **options)
  if leaf:
    assert (out != maps).any()
    collection, module, name = leaf
    variables[collection][module][name] = jnp.full_like(variables[collection][module][name], value)
    out, _ = layer(maps, strategy, variables, **options)
  np.testing.assert_array_equal(out, maps)
  half, _ = layer(maps.astype(jnp.bfloat16), strategy, variables, **options)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_array_equal(half, maps.astype(jnp.bfloat16))


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_filters(maps, transform):
  """Low-pass and Wiener gains of 0 and 1 are the filters; a constant gain is a scaling."""
  options = dict(transform=transform, bands=4)
  for strategy, variables, gains in (
    ('low_pass', None, [1, 1, 0, 0]),
    ('wiener', [0, 0, 1, 1], [0, 0, 1, 1]),
    ('wiener', [0, 1, 1, 0], [0, 1, 1, 0]),
    ('wiener', [0.25] * 4, [0.25] * 4),
  ):
    if variables is not None:
      stored = jnp.broadcast_to(jnp.asarray(variables, jnp.float32)[:, None], (4, 16))
      variables = {'batch_stats': {'gain': stored}}
    out, _ = layer(maps, strategy, variables, **options)
    z = np.asarray(transform2(maps, transform))
    mask = np.einsum('khw,k->hw', radial_bands(9, 12, 4, transform), gains)[None, ..., None]
    np.testing.assert_allclose(transform2(out, transform), z * mask, atol=5e-6)
  np.testing.assert_allclose(out, 0.25 * maps, atol=2e-6)
  uniform, _ = layer(maps, 'uniform', gain=0.25)
  np.testing.assert_array_equal(uniform, 0.25 * maps)


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_soft_threshold(maps, transform):
  """sign(Z) max(|Z| - tau, 0), tau of each band and channel, stored at a tenth."""
  tau = jax.random.uniform(jax.random.key(2), (8, 16), maxval=1.5)
  out, _ = layer(maps, 'soft_threshold', {'params': {'threshold': tau / 10}}, transform=transform)
  z = np.asarray(transform2(maps, transform))
  level = np.einsum('khw,kc->hwc', radial_bands(9, 12, 8, transform), tau)[None]
  expected = z / np.abs(z) * np.maximum(np.abs(z) - level, 0)
  np.testing.assert_allclose(transform2(out, transform), expected, atol=5e-6)


def test_thresholds_leave_zero_only_upwards():
  """At 0 the gradient passes where descent raises the threshold, and the layer's is finite."""
  grad = jax.grad(lambda x: (nonnegative(x) * jnp.asarray([-1.0, 1.0, -1.0, 1.0])).sum())
  np.testing.assert_array_equal(grad(jnp.asarray([0.0, 0.0, 1.0, 1.0])), [-1, 0, -1, 1])
  module = BandCompression(Compression('soft_threshold', transform='fft'))

  @jax.jit
  def gradients(threshold, x):
    def loss(threshold, x):
      return jnp.square(jnp.asarray(module.apply({'params': {'threshold': threshold}}, x))).sum()

    return jax.grad(loss, (0, 1))(threshold, x)

  x = jnp.zeros((1, 8, 8, 2)).at[..., 0].set(jax.random.normal(jax.random.key(0), (8, 8)))
  by_threshold, by_x = gradients(jnp.zeros((8, 2)), x)
  forward = jax.jvp(
    lambda x: module.apply({'params': {'threshold': jnp.zeros((8, 2))}}, x), (x,), (x,)
  )
  np.testing.assert_array_equal(forward[1], x)
  assert (by_threshold[:, 0] < 0).all()  # higher thresholds, less energy
  np.testing.assert_array_equal(by_threshold[:, 1], 0)  # a plane of zeros
  np.testing.assert_allclose(by_x, 2 * x, atol=1e-5)


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_learned_gates(maps, transform):
  """They start at sigmoid(4), are one a group of channels, and depend on the image's bands."""
  options = dict(transform=transform, groups=4, bands=3)
  out, variables = layer(maps, 'learned', **options)
  np.testing.assert_allclose(out, jax.nn.sigmoid(4.0) * maps, atol=1e-6)
  params = variables['params']
  params['fc2']['kernel'] = jax.random.normal(jax.random.key(3), (16, 3)) * 0.3
  out, _ = layer(maps, 'learned', variables, **options)
  z, after = (np.asarray(transform2(v, transform)) for v in (maps, out))
  masks = radial_bands(9, 12, 3, transform)
  ratio = np.real(after / z)
  gates = np.stack([ratio[:, masks[k] == 1].mean(1) for k in range(3)], axis=1)
  gates = gates.reshape(2, 3, 4, 4)
  np.testing.assert_allclose(gates, gates[..., :1].repeat(4, -1), atol=1e-4)
  assert (gates >= 0).all() and (gates <= 1 + 1e-5).all()
  assert np.abs(gates[0] - gates[1]).max() > 1e-3 and np.ptp(gates[..., 0]) > 1e-2
  # Twice the side, twice the pixels each way: the same energies a coefficient.
  one, _ = layer(jnp.ones((1, 8, 8, 4)), 'learned', groups=2)
  two, _ = layer(jnp.ones((1, 8, 8, 4)), 'learned', groups=2, hidden=3)
  np.testing.assert_allclose(one, two, atol=1e-6)


def test_gates_by_hand(maps):
  """The network, in NumPy."""
  _, variables = layer(maps, 'learned', groups=4, bands=3)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype) / 4, variables)
  out, _ = layer(maps, 'learned', variables, groups=4, bands=3)
  masks, z = radial_bands(9, 12, 3), np.asarray(transform2(maps))
  mean = np.einsum('khw,bhwc->bkc', masks, z**2) / masks.sum((1, 2))[None, :, None]
  features = np.log(mean.reshape(2, 3, 4, 4).mean(-1).transpose(0, 2, 1) + 1e-6)
  params = jax.tree.map(np.asarray, variables['params'])
  hidden = features @ params['fc1']['kernel'] + params['fc1']['bias'] + params['group']
  logits = np.asarray(jax.nn.gelu(hidden)) @ params['fc2']['kernel'] + params['fc2']['bias']
  gains = jax.nn.sigmoid(jnp.asarray(4 + 10 * logits)).transpose(0, 2, 1).repeat(4, axis=2)
  np.testing.assert_allclose(out, scale_bands(maps, gains), atol=1e-5)


@pytest.fixture(scope='module')
def images():
  return jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)


# Bits are compared of programs that are fused as they are for users, not as quickly as can be.
USUAL = (
  {'xla_cpu_use_fusion_emitters': True}
  if 'fusion_emitters' in os.environ['REST_JAX_QUICK_FLAGS']
  else None
)


@functools.partial(jax.jit, static_argnums=0, compiler_options=USUAL)
def outputs(model, variables, images):
  return logits_and_maps(model, variables, images)


@pytest.mark.parametrize(
  ('name', 'options'),
  [('restv2_tiny', SMALL), ('resnet18', dict(width=8, depths=(1, 1, 1, 1)))],
)
def test_in_a_backbone(name, options, images):
  """Logits and maps with new layers are those of the model without, to the bit."""
  plain = create_model(name, 5, **options)
  tensors = model_dir.abstract_tensors(plain)
  compressed = create_model(
    name, 5, compression=dict(strategy='soft_threshold', stages=[1, 3]), **options
  )
  more = model_dir.abstract_tensors(compressed)
  added = {'params/compress1/threshold', 'params/compress3/threshold'}
  assert set(more) - set(tensors) == added and set(tensors) < set(more)
  rng = np.random.default_rng(1)
  flat = {n: jnp.asarray(rng.uniform(size=s.shape), s.dtype) for n, s in more.items()}
  plain_out = outputs(plain, model_dir.unflatten({n: flat[n] for n in tensors}), images)
  zeros = flat | {n: jnp.zeros_like(flat[n]) for n in added}
  same = outputs(compressed, model_dir.unflatten(zeros), images)
  jax.tree.map(np.testing.assert_array_equal, plain_out, same)
  other = outputs(compressed, model_dir.unflatten(flat), images)[1]
  assert [bool((a != b).any()) for a, b in zip(other, same[1], strict=True)] == [True] * 4


def test_none_is_no_layer_at_all():
  plain = create_model('rest_lite', 5, **SMALL)
  for nothing in (None, 'none', {'strategy': 'none'}):
    model = create_model('rest_lite', 5, compression=nothing, **SMALL)
    assert model == plain and hash(model) == hash(plain)
  assert parse_compression('none') is None


def test_few_parameters():
  """Under 3 % more at 8 bands, of every strategy, in the smallest published and the demo model."""
  demo: dict[str, Any] = dict(
    widths=(32, 64, 128, 256), depths=(1, 1, 2, 1), reductions=(4, 2, 1, 1)
  )
  for options in ({}, demo):
    sizes = {}
    for strategy in ('none', 'soft_threshold', 'learned'):
      tensors = model_dir.abstract_tensors(
        create_model('rest_lite', compression=strategy, **options)
      )
      sizes[strategy] = sum(s.size for n, s in tensors.items() if n.startswith('params/'))
    assert sizes['soft_threshold'] - sizes['none'] == 8 * (32 if options else 64)
    assert sizes['learned'] - sizes['none'] == (8 + 1 + 8) * 16 + (16 + 1) * 8
    assert max(sizes.values()) / sizes['none'] < 1.001


@pytest.mark.parametrize(
  ('compression', 'message'),
  [
    ('lowpass', "no strategy 'lowpass'; did you mean low_pass?"),
    ({'strategy': 'learned', 'band': 4}, "no option 'band'; did you mean bands?"),
    ({'stages': (5,)}, r'stages of 1 to 4, such as \(1, 2\), not \(5,\)'),
    ({'stages': ()}, 'stages of 1 to 4'),
    ({'stages': ('1',)}, 'stages of 1 to 4'),
    ({'stages': (2, 1)}, 'each stage once and in order'),
    ({'transform': 'dst'}, "no transform 'dst'; did you mean dct"),
    ({'bands': 0}, 'bands is a whole number of 1 to 64, not 0'),
    ({'bands': 65}, 'bands is a whole number of 1 to 64, not 65'),
    ({'groups': 1.5}, 'groups is a whole number of 1 or more, not 1.5'),
    ({'cutoff': 0}, 'cutoff is a number above 0 to 1, not 0'),
    ({'gain': 1.2}, 'gain is a number from 0 to 1, not 1.2'),
    ({'soft': 1}, 'soft is True or False'),
    (3, 'a strategy or a mapping of options, not 3'),
  ],
)
def test_bad_options(compression, message):
  with pytest.raises(UserError, match=message) as error:
    create_model('rest_lite', 5, compression=compression)
  assert '\n' not in str(error.value)


def test_groups_that_do_not_divide():
  with pytest.raises(UserError, match='16 channels after compress2 do not divide into 5 groups'):
    model = create_model('rest_lite', 5, compression=dict(stages=2, groups=5), **SMALL)
    model_dir.abstract_tensors(model)


@pytest.mark.parametrize(
  'compression',
  [
    'wiener',
    dict(strategy='learned', stages=[1, 2], bands=4),
    Compression('soft_threshold', soft=True),
  ],
)
def test_a_model_directory_keeps_it(tmp_path, compression):
  overrides = dict(SMALL, compression=compression)
  specs = model_dir.abstract_tensors(create_model('rest_lite', 3, **overrides))
  rng = np.random.default_rng(0)
  flat = {n: jnp.asarray(rng.uniform(size=s.shape), s.dtype) for n, s in specs.items()}
  saved = Classifier.create(
    'rest_lite', model_dir.unflatten(flat), num_classes=3, overrides=overrides
  )
  hash(saved.config)  # a classifier is an argument of compiled functions
  saved.save(tmp_path / 'model')
  text = json.loads((tmp_path / 'model' / 'config.json').read_text())
  given = compression if isinstance(compression, str | dict) else dataclasses.asdict(compression)
  assert text['overrides']['compression'] == json.loads(json.dumps(given))
  loaded = Classifier.load(tmp_path / 'model')
  assert loaded.config == saved.config and loaded.module == saved.module
  assert loaded.module.compression == parse_compression(compression)
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, saved.variables)


def test_official_weights():
  """A checkpoint fills all but the new layers, which start as such; there is no way back."""
  plain = create_model('rest_lite', 3, **SMALL)
  rng = np.random.default_rng(0)
  specs = model_dir.abstract_tensors(plain)
  flat = {n: rng.normal(size=s.shape).astype(s.dtype) for n, s in specs.items()}
  official = to_pytorch(model_dir.unflatten(flat), plain)
  model = create_model('rest_lite', 3, compression='wiener', **SMALL)
  found = model_dir.flatten(from_pytorch(official, model))
  assert all(np.array_equal(found[name], flat[name]) for name in flat)
  np.testing.assert_array_equal(found['batch_stats/compress1/gain'], np.ones((8, 8)))
  with pytest.raises(UserError, match='no PyTorch counterpart'):
    to_pytorch(model_dir.unflatten(found), model)
