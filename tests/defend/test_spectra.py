"""Spectra of perturbations: Parseval, a known frequency, the stages of a backbone, the figure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from rest_jax.defend import figures
from rest_jax.defend.spectra import perturbation_spectra
from rest_jax.errors import UserError
from rest_jax.models.classifier import Classifier
from rest_jax.models.model_config import ModelConfig


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).uniform(0.2, 0.8, (3, 32, 32, 3)).astype(np.float32)


class Backbone(nn.Module):
  """Four maps by convolutions; the last one is a single number a channel."""

  def setup(self):
    self.stages = [nn.Conv(4, (3, 3), strides=s) for s in (4, 2, 2, 2)]

  def features(self, x, train=False):
    maps = []
    for stage in self.stages:
      x = nn.relu(stage(x))
      maps.append(x)
    return tuple(maps)

  def __call__(self, x, train=False):
    return self.features(x)[-1].mean((1, 2))


@pytest.fixture(scope='module')
def backbone():
  module = Backbone()
  variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  return Classifier(module, variables, ModelConfig('rest_lite', 4), tuple('abcd'))


def stripes(period):
  wave = np.cos(2 * np.pi * (np.arange(32) + 0.5) / period)
  return 0.05 * np.broadcast_to(wave[None, None, :, None], (3, 32, 32, 3)).astype(np.float32)


@pytest.mark.parametrize('transform', ['dct', 'fft'])
def test_energies_are_those_of_parseval_and_stand_in_their_band(images, transform):
  # A period of 4 pixels is half of the highest frequency; along one axis that is a radius of
  # 0.5 / sqrt 2 = 0.354, in the third of eight bands.
  (spectrum,) = perturbation_spectra(
    lambda x: x.mean((1, 2)), images, images + stripes(4), transform=transform, batch_size=2
  )
  assert (spectrum.model, spectrum.place) == ('model', 'input')
  delta = (images + stripes(4) - images).astype(np.float64)
  assert sum(spectrum.noise) == pytest.approx(np.sum(delta**2), rel=1e-4)
  assert sum(spectrum.clean) == pytest.approx(np.sum(images.astype(np.float64) ** 2), rel=1e-4)
  assert np.argmax(spectrum.share) == 2 and spectrum.share[2] > 0.99
  assert spectrum.relative[2] == pytest.approx(spectrum.noise[2] / spectrum.clean[2])
  assert spectrum.total == pytest.approx(sum(spectrum.noise) / sum(spectrum.clean))
  rows = spectrum.rows()
  assert [row['low'] for row in rows] == [k / 8 for k in range(8)] and rows[2]['share'] > 0.99


def test_stages_of_a_backbone_side_by_side(images, backbone, tmp_path):
  models = {'one': backbone, 'two': lambda x: x.mean((1, 2))}
  spectra = perturbation_spectra(
    models, images, {'one': images + stripes(4), 'two': images + stripes(32)}, batch_size=2
  )
  places = [(s.model, s.place) for s in spectra]
  stages = [f'stage{i}' for i in range(1, 5)]
  assert places == [('one', 'input'), *(('one', stage) for stage in stages), ('two', 'input')]
  maps = [jax.jit(backbone.features)(jnp.asarray(x)) for x in (images, images + stripes(4))]
  for spectrum, clean, noisy in zip(spectra[1:5], *maps, strict=True):
    difference = np.asarray(noisy - clean, np.float64)
    assert sum(spectrum.noise) == pytest.approx(np.sum(difference**2), rel=1e-3)
    assert sum(spectrum.clean) == pytest.approx(np.sum(np.asarray(clean) ** 2), rel=1e-3)

  figures.draw_spectra(spectra, tmp_path / 'spectra.png')
  picture = np.asarray(Image.open(tmp_path / 'spectra.png').convert('RGB'))
  assert min(picture.shape[:2]) > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 30


def test_no_perturbation_has_no_share(images):
  (spectrum,) = perturbation_spectra(lambda x: x.mean((1, 2)), images, images, bands=3)
  assert np.isnan(spectrum.share).all() and spectrum.relative.tolist() == [0, 0, 0]
  assert spectrum.total == 0


def test_bad_input_is_one_line(images):
  model = lambda x: x.mean((1, 2))  # noqa: E731
  for arguments, options, match in [
    ((model, images, images[:1]), {}, 'of one shape'),
    ((model, images, {'a': images}), {}, 'give one of each name'),
    ((model, images, images), dict(transform='wavelet'), "transform is 'dct' or 'fft'"),
    ((model, images, images), dict(bands=0), 'bands'),
  ]:
    with pytest.raises(UserError, match=match) as error:
      perturbation_spectra(*arguments, **options)
    assert '\n' not in str(error.value)
