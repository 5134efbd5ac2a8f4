"""Band energies inside a classifier, Wiener gains, and compression added to what is there."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rest_jax import defend
from rest_jax.errors import UserError
from rest_jax.models import model_dir
from rest_jax.models.classifier import Classifier
from rest_jax.models.compression import compressors, end_stage
from rest_jax.models.model_config import ModelConfig
from rest_jax.models.registry import create_model
from rest_jax.ops import scale_bands

BANDS, SIDE, IMAGES = 4, 48, 40
# Deviations of a band's coefficients, for three channels.
SIGNAL = np.array([[4.0, 2.0, 3.0], [2.0, 1.0, 3.0], [0.5, 0.5, 3.0], [0.2, 0.1, 3.0]])
NOISE = np.array([[0.5, 0.1, 1.0], [0.5, 1.0, 2.0], [0.5, 1.5, 3.0], [0.6, 2.0, 0.0]])
SMALL: dict[str, Any] = dict(width=8, depths=(1, 1, 1, 1))


class Layers(nn.Module):
  """Two compression layers, an addition between them, and the mean as logits."""

  compression: Any = None
  frozen_stages: int = 0

  def setup(self):
    for name, layer in compressors(self.compression):
      setattr(self, name, layer)

  def __call__(self, x, train: bool = False):
    x = end_stage(self, 1, x) + 1.0
    return end_stage(self, 2, x).mean((1, 2))


def layers(strategy='wiener', stages=(1, 2), **options):
  module = Layers(dict(strategy=strategy, stages=stages, bands=BANDS, **options))
  x = jnp.zeros((1, SIDE, SIDE, 3))
  variables = jax.jit(lambda x: module.init(jax.random.key(0), x))(x)
  config = ModelConfig('layers', 3, mean=(0.0,) * 3, std=(1.0,) * 3)
  return Classifier(module, variables, config, ('a', 'b', 'c'))


def fields(deviations, seed, transform='dct', count=IMAGES):
  """Gaussian fields whose coefficients have these deviations."""
  white = jax.random.normal(jax.random.key(seed), (count, SIDE, SIDE, 3))
  return scale_bands(white, jnp.asarray(deviations, jnp.float32)[None], transform)


@pytest.mark.parametrize('transform', ['dct', 'fft'])
def test_wiener_gains_have_the_closed_form(transform):
  """Within 2 %, on Gaussian bands; the second layer sees the first one's result."""
  clean, noise = (fields(d, i, transform, 500) for i, d in enumerate((SIGNAL, NOISE)))
  classifier = layers(transform=transform)
  found = defend.with_wiener_gains(classifier, clean, clean + noise, batch_size=300)
  stats = found.variables['batch_stats']
  expected = SIGNAL**2 / (SIGNAL**2 + NOISE**2)
  np.testing.assert_allclose(stats['compress1']['gain'], expected, rtol=0.02)
  # The mean of 1 that is added between the layers is signal of the lowest band.
  np.testing.assert_allclose(stats['compress2']['gain'][1:], expected[1:], rtol=0.02)
  assert (stats['compress2']['gain'][0] > expected[0]).all()
  np.testing.assert_array_equal(classifier.variables['batch_stats']['compress1']['gain'], 1)


def test_wiener_gains_err_least():
  """The filtered fields are nearer to the clean ones than with any other gain of a band."""
  clean, noise = fields(SIGNAL, 0), fields(NOISE, 1)
  gains = jnp.asarray(SIGNAL**2 / (SIGNAL**2 + NOISE**2), jnp.float32)[None]
  error = jax.jit(lambda g: jnp.square(scale_bands(clean + noise, g) - clean).mean((0, 1, 2)))
  best = error(gains)
  for k in range(BANDS):
    for change in (-0.1, 0.1):
      assert (error(gains.at[:, k].add(change)) > best).all()


def test_energies_are_means_over_images():
  """Whatever the batches, and Parseval's: the bands of a channel hold all of its energy."""
  clean, noise = fields(SIGNAL, 0), fields(NOISE, 1)
  classifier = layers()
  whole = defend.measure_bands(classifier, clean, clean + noise, batch_size=IMAGES)
  parts = defend.measure_bands(classifier, clean, clean + noise, batch_size=16)
  assert set(whole) == {1, 2} and whole[1].clean.shape == (BANDS, 3)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)
  for field, energy in ((clean, whole[1].clean), (noise, whole[1].noise)):
    np.testing.assert_allclose(energy.sum(0), np.square(field).sum((0, 1, 2)) / IMAGES, rtol=1e-4)


def test_gains_of_nothing():
  gains = defend.wiener_gains([0.0, 0.0, 2.0, 3.0], [0.0, 1.0, 0.0, 1.0])
  assert gains.dtype == np.float32
  np.testing.assert_array_equal(gains, np.array([1, 0, 1, 0.75]))


@pytest.fixture(scope='module')
def classifier():
  specs = model_dir.abstract_tensors(create_model('resnet18', 3, **SMALL))
  rng = np.random.default_rng(0)
  flat = {n: jnp.asarray(rng.uniform(0, 1, s.shape), s.dtype) for n, s in specs.items()}
  return Classifier.create(
    'resnet18', model_dir.unflatten(flat), num_classes=3, overrides=SMALL, input_size=32
  )


def test_compression_is_added_and_taken_away(classifier, tmp_path):
  images = np.random.default_rng(1).uniform(size=(2, 32, 32, 3)).astype(np.float32)
  call = jax.jit(lambda c, x: c(x))
  plain = call(classifier, images)
  added = defend.add_compression(classifier, {'strategy': 'wiener', 'stages': [1, 2]})
  np.testing.assert_array_equal(call(added, images), plain)
  measured = defend.with_wiener_gains(added, images, images[::-1])
  assert (call(measured, images) != plain).any()
  measured.save(tmp_path / 'model')
  loaded = Classifier.load(tmp_path / 'model')
  np.testing.assert_array_equal(call(loaded, images), call(measured, images))
  for nothing in (None, 'none'):
    back = defend.add_compression(measured, nothing)
    assert back.config == classifier.config
    np.testing.assert_array_equal(call(back, images), plain)
  learned = (defend.add_compression(measured, 'learned', key=jax.random.key(i)) for i in (0, 0, 1))
  one, same, other = (c.variables['params']['compress1']['fc1']['kernel'] for c in learned)
  assert (one == same).all() and (one != other).any()


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda c, x: defend.measure_bands(c, x, x), 'resnet18 has no band compression'),
    (lambda c, x: defend.with_wiener_gains(layers('low_pass'), x, x), "this classifier's is 'low"),
    (lambda c, x: defend.measure_bands(layers(), x, x[:1]), 'images have one shape'),
    (lambda c, x: defend.measure_bands(layers(), x[:0], x[:0]), 'images have one shape'),
    (lambda c, x: defend.wiener_gains([1.0], [1.0, 2.0]), 'energies have one shape'),
    (lambda c, x: defend.wiener_gains([-1.0], [1.0]), 'clean energies are finite numbers of 0'),
    (lambda c, x: defend.wiener_gains([1.0], [np.nan]), 'noise energies are finite'),
    (lambda c, x: defend.add_compression(c, 'wienr'), "no strategy 'wienr'; did you mean wiener"),
  ],
)
def test_bad_input(classifier, call, message):
  with pytest.raises(UserError, match=message) as error:
    call(classifier, np.zeros((2, SIDE, SIDE, 3), np.float32))
  assert '\n' not in str(error.value)
