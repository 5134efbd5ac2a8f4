"""Weights to start from: zoo, model directory, checkpoint; new heads; what does not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rest_jax import defend
from rest_jax.errors import UserError
from rest_jax.models import create_model, model_dir, registry
from rest_jax.models.classifier import Classifier
from rest_jax.models.pytorch import to_pytorch
from rest_jax.text import plural
from rest_jax.train import parallel
from rest_jax.train.classifying import initial as load_initial
from rest_jax.train.pipeline import Plan
from rest_jax.train.task import build_task

ZOO = dict(widths=(32, 64, 128, 256), depths=(1, 1, 2, 1), reductions=(4, 2, 1, 1))
SMALL = dict(widths=(8, 16, 32, 64), depths=(1, 1, 1, 1))


@pytest.fixture
def zoo_config(config):
  config.model.init = 'digit_scenes'
  config.model.name = 'rest_lite'
  config.model.overrides = dict(ZOO, drop_path_rate=0.3)  # says nothing about the weights
  return config


def test_a_model_of_the_zoo_with_its_head(zoo_config):
  tensors, what = load_initial(zoo_config, 10)
  own = model_dir.flatten(Classifier.load('digit_scenes').variables)
  assert set(tensors) == set(own)
  assert all(np.array_equal(tensors[name], own[name]) for name in own)
  assert what == 'Starting from digit_scenes: 132 arrays, its head too for 10 classes'


def test_another_number_of_classes_gets_a_new_head(zoo_config):
  tensors, what = load_initial(zoo_config, 3)
  assert len(tensors) == 130 and not any('head' in name.split('/') for name in tensors)
  assert 'but a new head for 3 classes' in what


def test_band_compression_starts_new(zoo_config):
  """In a model with it, from one without; gains that the weights have are taken."""
  plain, _ = load_initial(zoo_config, 10)
  for strategy, arrays in (('wiener', 1), ('learned', 5), ('low_pass', 0)):
    zoo_config.model.overrides.compression = strategy
    tensors, what = load_initial(zoo_config, 10)
    assert set(tensors) == set(plain)
    new = f'; band compression starts new ({plural(arrays, "array")})'
    assert what.endswith(new if arrays else 'classes')


def test_measured_gains_are_kept(zoo_config, tmp_path):
  images = np.random.default_rng(0).uniform(size=(1, 32, 32, 3)).astype(np.float32)
  measured = defend.with_wiener_gains(
    defend.add_compression(Classifier.load('digit_scenes'), 'wiener'), images, images[:, ::-1]
  )
  measured.save(tmp_path / 'model')
  zoo_config.model.init = str(tmp_path / 'model')
  zoo_config.model.overrides.compression = 'wiener'
  tensors, what = load_initial(zoo_config, 10)
  gain = measured.variables['batch_stats']['compress1']['gain']
  np.testing.assert_array_equal(tensors['batch_stats/compress1/gain'], gain)
  assert what.endswith('133 arrays, its head too for 10 classes')
  zoo_config.model.overrides.compression = 'none'
  with pytest.raises(UserError, match='1 unexpected; unexpected: batch_stats/compress1/gain'):
    load_initial(zoo_config, 10)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(init='digit_scene'), 'no zoo model is called digit_scene'),
    (dict(init='none.pth'), 'there is no checkpoint none.pth'),
    (
      dict(overrides={}),
      r"is rest_lite with overrides .*'widths': \(32, .*same model.name and model.overrides",
    ),
    (
      dict(overrides=dict(ZOO, depths=(1, 1, 1, 1))),
      r'16 unexpected; unexpected: params/stage3/block1.* \.\.\.',
    ),
  ],
)
def test_what_does_not_fit(zoo_config, change, message):
  zoo_config.model.update(change)
  if 'overrides' in change:
    zoo_config.model.overrides = change['overrides']
  with pytest.raises(UserError, match=message):
    load_initial(zoo_config, 10)


def test_another_normalisation(zoo_config):
  zoo_config.data.mean = (0.5, 0.5, 0.5)
  with pytest.raises(UserError, match=r'normalised with mean .*0.485.*set data.mean'):
    load_initial(zoo_config, 10)


@pytest.mark.parametrize(('classes', 'arrays'), [(5, 0), (3, -2)])
def test_an_official_checkpoint(config, tmp_path, classes, arrays):
  model = create_model('restv2_tiny', 5, **SMALL)
  expected = model_dir.abstract_tensors(model)
  rng = np.random.default_rng(0)
  flat = {n: rng.normal(size=s.shape).astype(s.dtype) for n, s in expected.items()}
  path = tmp_path / 'official.safetensors'
  safetensors.numpy.save_file(to_pytorch(model_dir.unflatten(flat), model), path)
  config.model.update(name='restv2_tiny', init=str(path))
  config.model.overrides = SMALL
  tensors, _ = load_initial(config, classes)
  assert len(tensors) == len(flat) + arrays
  assert all(np.array_equal(tensors[name], flat[name]) for name in tensors)
  config.model.name = 'rest_lite'
  with pytest.raises(UserError, match=r'official.safetensors does not fit rest_lite'):
    load_initial(config, classes)


def test_the_state_starts_there(config, tmp_path, tiny_net, monkeypatch, capsys):
  """Loaded arrays to the bit, in the average too; the new head as from scratch; another size."""
  monkeypatch.setitem(registry._BUILDERS, 'tiny_net', tiny_net)
  monkeypatch.setitem(registry._BUILDERS, 'tiny_two', functools.partial(tiny_net, num_classes=2))
  variables = jax.device_get(
    tiny_net(2).init(jax.random.key(7), jnp.zeros((1, 8, 8, 3)), train=False)
  )
  Classifier.create('tiny_net', variables, num_classes=2).save(tmp_path / 'model')
  config.model.name = 'tiny_net'
  config.data.image_size = 16
  config.train.ema = 0.5
  plan, mesh = Plan(10, 1.0, frozenset({10}), 1), parallel.make_mesh(jax.devices()[:2])
  scratch = jax.device_get(build_task(config, plan, mesh, 'abc').create())
  config.model.init = str(tmp_path / 'model')
  started = jax.device_get(build_task(config, plan, mesh, 'abc').create())
  assert 'but a new head for 3 classes' in capsys.readouterr().out
  for tree in (started.params, started.ema['params']):
    np.testing.assert_array_equal(tree['conv']['kernel'], variables['params']['conv']['kernel'])
    np.testing.assert_array_equal(tree['head']['kernel'], scratch.params['head']['kernel'])
  assert jax.tree.structure(started) == jax.tree.structure(scratch)
