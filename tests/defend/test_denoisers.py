"""What all denoisers share: identity, gradients, batches, noise only; and their registry."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import defend
from rest_jax.defend.denoise import DENOISERS, denoiser, list_denoisers, noise_only
from rest_jax.errors import UserError

# Those that have to be fitted or trained first have tests of their own.
NAMES = [name for name in list_denoisers() if DENOISERS[name].needs is None]
# Odd, not square, no multiple of a block or a power of two.
SHAPE = (2, 11, 14, 3)


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  smooth = np.linspace(0.2, 0.8, SHAPE[2])[None, None, :, None]
  return jnp.asarray(np.clip(smooth + rng.normal(0, 0.1, SHAPE), 0, 1), jnp.float32)


@pytest.fixture(params=NAMES)
def name(request):
  return request.param


def loss(one, images, key):
  return jnp.sum(jnp.square(one(images, key)))


# One compilation for all tests of a denoiser: strengths are data.
gradient = jax.jit(jax.grad(loss, argnums=1))


def test_strength_0_gives_the_very_bits(name, images, key):
  odd = images.at[0, 0, 0].set(jnp.array([-0.0, 1e-40, 1.0]))
  out = denoiser(name, 0.0)(odd, key)
  np.testing.assert_array_equal(np.asarray(out).view(np.int32), np.asarray(odd).view(np.int32))
  delta = images - 0.5
  np.testing.assert_array_equal(noise_only(denoiser(name, 0), delta, key), delta)


def test_shape_range_and_the_other_strengths(name, images, key):
  for strength in (0.01, 0.5, 1.0):
    out = denoiser(name, strength)(images, key)
    assert out.shape == images.shape and out.dtype == images.dtype
    assert np.isfinite(out).all() and np.abs(out).max() < 1.5
  assert float(jnp.abs(out - images).max()) > 0.05, 'the strongest setting changes pictures'


@pytest.mark.parametrize(
  ('name', 'unit'),
  [
    ('gaussian', None),
    ('median', None),
    ('wavelet', None),
    ('bilateral', 'sigma_color'),
    ('non_local_means', 'h'),
    ('total_variation', 'weight'),
  ],
)
def test_faint_images_are_denoised_like_strong_ones(name, unit, images):
  """Pixels and the options in their unit times c give the outcome times c: no constant has one."""
  scale = 1e-4
  options = {} if unit is None else {unit: DENOISERS[name].options()[unit]}
  plain = denoiser(name, 0.7, **options)(images)
  faint = denoiser(name, 0.7, **{key: scale * value for key, value in options.items()})
  np.testing.assert_allclose(faint(scale * images) / scale, plain, atol=2e-4)


def test_gradients_are_finite(name, images, key):
  one = denoiser(name, 0.7)
  flat = jnp.full_like(images, 0.25)
  for strength in (0.0, 0.7):
    for x in (images, flat):
      assert np.isfinite(gradient(one.with_strength(strength), x, key)).all()
  at_zero = gradient(one.with_strength(0.0), images, key)
  np.testing.assert_array_equal(at_zero, 2 * images)
  moved = np.abs(gradient(one, images, key)).max()
  assert moved > 0 if one.differentiable else moved == 0


def test_an_image_does_not_depend_on_its_batch(name, images, key):
  one = denoiser(name, 0.6)
  together = one(images, key)
  second = one(images[1:], jax.random.fold_in(key, 1)[None])
  np.testing.assert_allclose(second, together[1:], atol=1e-6)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(2))
  mapped = jax.vmap(lambda x, k: one(x[None], k[None])[0])(images, keys)
  np.testing.assert_allclose(mapped, together, atol=1e-6)


@pytest.mark.parametrize('name', [n for n in NAMES if n != 'resize_pad'])  # it puts black around
def test_a_constant_image_stays(name, images, key):
  flat = jnp.full_like(images, 0.3)
  # Levels of 2 bits are a third apart; JPEG of quality 10 rounds means to 10 grey levels.
  bound = {'bit_depth': 0.5 / 3 + 1e-6, 'jpeg': 5.5 / 255}.get(name, 1e-5)
  for strength in (0.3, 1.0):
    np.testing.assert_allclose(denoiser(name, strength)(flat, key), flat, atol=bound)


def test_noise_only_is_what_is_left_on_mid_grey(name, images, key):
  one, delta = denoiser(name, 0.5), 0.2 * (images - 0.5)
  grey = jnp.full_like(delta, 0.5)
  expected = one(grey + delta, key) - one(grey, key)
  np.testing.assert_allclose(noise_only(one, delta, key), expected, atol=2e-6)


def test_shorter_floats_and_small_images(name, key):
  tiny = jnp.full((1, 1, 2, 1), 0.75, jnp.bfloat16)
  out = denoiser(name, 0.5)(tiny, key)
  assert out.dtype == jnp.bfloat16 and out.shape == tiny.shape
  assert denoiser(name)(jnp.zeros((0, 4, 4, 3)), key).shape == (0, 4, 4, 3)


@pytest.mark.parametrize('name', ['gaussian', 'wavelet', 'jpeg', 'resize_pad'])
def test_a_grid_of_strengths_compiles_once(name, images, key):
  traces = []

  @jax.jit
  def run(one, images, key):
    traces.append(one.name)
    return one(images, key)

  outs = [run(denoiser(name, strength), images, key) for strength in (0.0, 0.2, 0.9)]
  outs.append(run(denoiser(name, 0.1).with_strength(1.0), images, key))
  assert traces == [name]
  np.testing.assert_array_equal(outs[0], images)
  assert float(jnp.abs(outs[-1] - images).max()) > 0.05


def test_random_ones_draw_by_key(images, key):
  one = denoiser('resize_pad', 1.0)
  np.testing.assert_array_equal(one(images, key), one(images, key))
  assert float(jnp.abs(one(images, key) - one(images, jax.random.key(1))).max()) > 0.05
  with pytest.raises(UserError, match='random and needs a key'):
    one(images)


def test_the_registry_tells_what_they_are():
  assert set(list_denoisers()) == set(DENOISERS) and len(DENOISERS) >= 14
  families = [list_denoisers(family) for family in ('spatial', 'frequency', 'latent')]
  assert [*itertools.chain(*families)] == list_denoisers() and all(families)
  for name, info in DENOISERS.items():
    assert info.name == name and info.source and info.strength and info.build.__doc__
    assert '\n' not in info.strength
    if info.needs is None:
      one = info.build(0.5)
      facts = (one.name, one.random, one.differentiable)
      assert facts == (name, info.random, info.differentiable)
  assert defend.denoiser is denoiser


def test_bad_input(images):
  cases = [
    (lambda: denoiser('gausian'), 'did you mean gaussian'),
    (lambda: denoiser('gaussian', 1.5), 'from 0 .identity. to 1, not 1.5'),
    (lambda: denoiser('gaussian', -0.1), 'not -0.1'),
    (lambda: denoiser('gaussian', float('nan')), 'not nan'),
    (lambda: denoiser('gaussian', 'much'), "not 'much'"),
    (lambda: denoiser('gaussian', sigm=1.0), 'did you mean sigma'),
    (lambda: denoiser('gaussian', sigma=0), 'above 0'),
    (lambda: denoiser('median', size=4), '3 or 5'),
    (lambda: denoiser('bit_depth', bits=8), 'from 1 to 7'),
    (lambda: denoiser('jpeg', quality=100), 'from 1 to 99'),
    (lambda: denoiser('jpeg', subsampling='4:1:1'), 'unknown subsampling'),
    (lambda: denoiser('low_pass', transform='dwt'), 'dct or fft'),
    (lambda: denoiser('band_pass', low=0.5, high=0.2), 'a band of radii'),
    (lambda: denoiser('non_local_means', patch=4), 'odd side'),
    (lambda: denoiser('resize_pad', smallest=1.2), 'share of the side'),
    (lambda: denoiser('wavelet', wavelet='db9'), 'unknown wavelet'),
    (lambda: list_denoisers('temporal'), 'unknown family'),
    (lambda: denoiser('gaussian')(images[0]), 'leading axis'),
    (lambda: denoiser('gaussian')(np.zeros((1, 4, 4, 3), np.uint8)), 'are floats'),
    (lambda: denoiser('gaussian')(images * 255), 'divide pixels of 0 to 255 by 255'),
  ]
  for call, message in cases:
    with pytest.raises(UserError, match=message) as error:
      call()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', [*NAMES, 'autoencoder'])
def test_shows_itself_in_one_line(name):
  """Without its weights, which would fill pages."""
  line = repr(denoiser(name, 0.5))
  assert line.startswith(f'Denoiser(name={name!r}, strength=') and len(line) < 120
  assert '\n' not in line
