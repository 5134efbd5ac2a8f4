"""The denoising autoencoder: module, training, the zoo's weights, the denoiser made of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rest_jax.data.digit_scenes import scenes
from rest_jax.defend.denoise import denoiser, noise_only
from rest_jax.errors import UserError
from rest_jax.models import create_model
from rest_jax.models.classifier import Classifier
from rest_jax.train import denoising, loop
from rest_jax.train.config import check_config, default_config

ZOO = 'digit_scenes_denoiser'


def scene_images(count):
  """The first pictures of the test split of digit_scenes, uint8 (64, 64, 3)."""
  return [scene.image for scene in scenes('test', count)]


@pytest.fixture(scope='module')
def zoo():
  return Classifier.load(ZOO)


@jax.jit
def run(model, images):
  return model(images)


def test_it_starts_as_the_identity_and_takes_any_size():
  module = create_model('denoising_autoencoder', width=4)
  x = jax.random.uniform(jax.random.key(0), (2, 13, 6, 3))
  variables = jax.jit(module.init)(jax.random.key(1), x)
  np.testing.assert_array_equal(jax.jit(module.apply)(variables, x), x)
  past, code = module.apply(variables, x, method='encode')
  assert past.shape == (2, 8, 4, 4) and code.shape == (2, 4, 2, 8)
  with pytest.raises(UserError, match=r'takes images \(B, H, W, 3\)'):
    module.apply(variables, x[..., :1])


def test_the_size_of_the_zoos_weights(zoo):
  count = sum(leaf.size for leaf in jax.tree.leaves(zoo.variables))
  assert count == 47_436 and 4 * count < 200_000
  assert zoo.num_classes == 0 and zoo.class_names == ()


def test_the_zoos_weights_take_noise_out_of_digit_scenes(zoo):
  images = np.stack(scene_images(24)).astype(np.float32) / 255
  keys = jax.random.split(jax.random.key(3), len(images))
  deviation = jnp.full(len(images), 8 / 255)
  noisy = images + denoising.draw_noise(keys, images.shape, deviation)
  before, after = (
    float(jnp.mean(denoising.psnr(denoising.squared_error(x, jnp.asarray(images)))))
    for x in (noisy, run(zoo, noisy))
  )
  assert before == pytest.approx(30.07, abs=0.02)
  assert after > before + 1.0


def test_noise_of_four_kinds_has_the_deviation_asked_for():
  keys = jax.random.split(jax.random.key(0), 64)
  noise = np.asarray(denoising.draw_noise(keys, (64, 16, 16, 3), jnp.linspace(0, 0.1, 64)))
  np.testing.assert_allclose(np.sqrt(np.mean(noise**2, (1, 2, 3))), np.linspace(0, 0.1, 64), 1e-4)
  signs = [len(np.unique(np.abs(n).round(6))) == 1 for n in noise[1:]]
  smooth = [np.mean(n[:, 1:] * n[:, :-1]) > 0.3 * np.mean(n**2) for n in noise[1:]]
  kinds = set(zip(signs, smooth, strict=True))
  assert len(kinds) == 4
  again = denoising.draw_noise(keys[5:6], (1, 16, 16, 3), jnp.linspace(0, 0.1, 64)[5:6])
  np.testing.assert_allclose(again[0], noise[5], atol=1e-6)  # whatever the batch


def test_psnr():
  x = jnp.zeros((2, 4, 4, 3))
  np.testing.assert_allclose(denoising.psnr(denoising.squared_error(x, x + 0.1)), 20, rtol=1e-5)
  np.testing.assert_allclose(denoising.psnr(denoising.squared_error(x, x)), 100, rtol=1e-6)


def test_the_denoiser_blends_by_strength(zoo):
  x = jax.random.uniform(jax.random.key(2), (2, 18, 11, 3))
  one = denoiser('autoencoder', 1.0)
  expected = run(zoo, x)
  np.testing.assert_allclose(one(x), expected, atol=1e-6)
  np.testing.assert_array_equal(one.with_strength(0.0)(x), x)
  np.testing.assert_allclose(one.with_strength(0.25)(x), 0.75 * x + 0.25 * expected, atol=1e-6)
  delta = 0.03 * jax.random.normal(jax.random.key(4), x.shape)
  left = noise_only(one, delta)
  np.testing.assert_allclose(left, run(zoo, 0.5 + delta) - run(zoo, 0.5 + 0 * delta), atol=1e-6)
  assert jnp.sum(left**2) < 0.7 * jnp.sum(delta**2)


def test_another_model_is_refused():
  with pytest.raises(UserError, match='takes a denoising_autoencoder, not rest_lite'):
    denoiser('autoencoder', model='digit_scenes')
  with pytest.raises(UserError, match='no zoo model is called nothing'):
    denoiser('autoencoder', model='nothing')


@pytest.fixture
def experiment(tmp_path):
  """A folder of 24 training and 8 test scenes, and the config of a short run on it."""
  for index, image in enumerate(scene_images(32)):
    split = tmp_path / 'images' / ('train' if index < 24 else 'test')
    place = split / ('even', 'odd')[index % 2] / f'{index}.png'
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).resize((16, 16)).save(place)
  config = default_config()
  config.model.name = 'denoising_autoencoder'
  config.model.overrides = {'width': 8}
  config.denoise.noise = config.denoise.eval_noise = 0.1
  config.data.name = str(tmp_path / 'images')
  config.data.image_size = 16
  config.data.mean, config.data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
  config.optim.lr = 3e-3
  config.train.batch_size = 8
  config.train.epochs = 40.0
  config.train.eval_every = 20.0
  config.log.every = 5
  return config


def test_a_whole_training(experiment, tmp_path):
  results = loop.train(experiment, tmp_path / 'run')
  last = results['last']
  assert results['finished'] and last['count'] == 8
  assert last['psnr'] > last['noisy_psnr'] + 0.2
  assert last['noisy_psnr'] == pytest.approx(20, abs=0.01)

  model = Classifier.load(tmp_path / 'run' / 'model')
  assert model.num_classes == 0
  assert json.loads((tmp_path / 'run/model/config.json').read_text())['mean'] == [0.0] * 3
  card = (tmp_path / 'run/model/README.md').read_text()
  assert '| 8 test images | PSNR before, dB | PSNR after, dB | mean squared error | epoch |' in card
  assert f'| {last["psnr"]:.2f} |' in card
  x = jnp.full((1, 9, 9, 3), 0.5)
  np.testing.assert_allclose(
    denoiser('autoencoder', 1.0, model=str(tmp_path / 'run/model'))(x), model(x), atol=1e-6
  )


def test_labels_and_normalisation_have_no_place(experiment):
  experiment.augment.mixup = 0.2
  experiment.adversarial.kind = 'pgd'
  with pytest.raises(UserError, match=r'switch off augment.mixup and adversarial.kind'):
    check_config(experiment)
  experiment.augment.mixup, experiment.adversarial.kind = 0.0, ''
  experiment.data.mean = (0.485, 0.456, 0.406)
  with pytest.raises(UserError, match=r'set data.mean to'):
    check_config(experiment)
