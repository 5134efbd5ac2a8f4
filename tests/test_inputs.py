"""The one check of images and the one of radii."""

import fractions
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from rest_jax.errors import UserError
from rest_jax.inputs import check_images, check_pair, radii, radius
from rest_jax.text import radius_text

GREY = np.full((2, 6, 5, 3), 0.5, np.float32)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_floats_of_any_type_come_back_as_float32(dtype):
  images = check_images(GREY.astype(dtype))
  assert images.dtype == jnp.float32 and np.array_equal(images, GREY)
  assert check_images(jnp.asarray(GREY, jnp.bfloat16), dtype=None).dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ('dtype', 'beyond'), [(np.float32, 6e-7), (np.float64, 1e-12), (jnp.bfloat16, 2.0**-7)]
)
def test_rounding_outside_of_the_range_is_taken_back(dtype, beyond):
  images = np.asarray(np.tile([-beyond, 1 + beyond], 90).reshape(2, 6, 5, 3), dtype)
  found = np.asarray(check_images(images))
  assert found.min() == 0 and found.max() == 1


@pytest.mark.parametrize(
  ('images', 'words'),
  [
    ((GREY * 255).astype(np.uint8), 'divided by 255'),
    (GREY * 255, 'divide pixels of 0 to 255 by 255'),
    (GREY * 4 - 3, 'belongs into the model'),
    (GREY + 0.6, 'jnp.clip'),
    (np.where(GREY > 1, GREY, np.nan), 'not finite in 2 of 2'),
    (GREY * np.inf, 'not finite'),
    (GREY[0], r'image\[None\]'),
    (GREY[..., 0], r'\(B, H, W, C\)'),
    (np.full((2, 3, 6, 5), 0.5, np.float32), 'channels first'),
    (np.full((2, 1, 28, 28), 0.5, np.float32), 'channels first'),
    (np.zeros((2, 0, 5, 3), np.float32), r'\(B, H, W, C\)'),
    ((GREY, np.zeros(2, np.int32)), 'give each by itself'),
    ([GREY[0], GREY[1]], 'jnp.stack'),
    (GREY.tolist(), 'not a list'),
    (None, 'NoneType'),
  ],
)
def test_what_are_no_images_is_one_line(images, words):
  with pytest.raises(UserError, match=words) as caught:
    check_images(images)
  assert '\n' not in str(caught.value)


def test_an_empty_batch_where_it_will_not_do():
  assert check_images(GREY[:0]).shape == (0, 6, 5, 3)
  with pytest.raises(UserError, match='no pictures'):
    check_images(GREY[:0], what='pictures', empty=False)


def test_signals_and_small_planes_are_not_taken_for_channels_first():
  for shape in [(2, 1, 128, 12), (2, 3, 4, 4), (2, 3, 2, 5), (2, 8, 8, 16)]:
    assert check_images(np.zeros(shape, np.float32)).shape == shape


def test_traced_images_are_taken_as_they_are():
  assert jax.jit(check_images)(GREY * 255).max() > 1
  with pytest.raises(UserError, match='channels first'):
    jax.jit(check_images)(np.zeros((2, 3, 8, 8), np.float32))


def test_pairs_of_other_shapes_do_not_broadcast():
  check_pair(GREY, GREY, ('adv', 'images'))
  with pytest.raises(UserError, match='adv and images have one shape'):
    check_pair(GREY, GREY[:1], ('adv', 'images'))


@pytest.mark.parametrize(
  ('value', 'number'),
  [
    (0, 0.0),
    (1, 1.0),
    ('8/255', 8 / 255),
    (' 8 / 255 ', 8 / 255),
    ('0.03', 0.03),
    ('1e-2', 0.01),
    (np.float32(0.25), 0.25),
    (jnp.float32(0.25), 0.25),
    (fractions.Fraction(1, 255), 1 / 255),
  ],
)
def test_radii_are_numbers_or_texts(value, number):
  assert radius(value, 'linf') == number


@pytest.mark.parametrize(
  'value', [-0.1, '-1', math.nan, 'nan', 'x', '1/0', '8/', None, True, [0.1], 1j]
)
def test_what_is_no_radius_is_one_line(value):
  with pytest.raises(UserError, match=r'such as 0\.03 or 8/255'):
    radius(value, 'linf')


def test_a_radius_beyond_the_whole_range():
  with pytest.raises(UserError, match=r'eps is 8, beyond 1.*such as 8/255'):
    radius(8, 'linf')
  with pytest.raises(UserError, match='--eps is 8, beyond'):
    radius('8', 'linf', what='--eps')
  assert radius(8, 'l2') == 8 and radius(math.inf, 'linf', infinite=True) == math.inf
  with pytest.raises(UserError, match='radius'):
    radius(math.inf, 'l2')


def test_radii_of_a_batch():
  assert np.array_equal(radii([0.1, 0.2], 'linf', 2), [0.1, 0.2])
  assert radii('1/4', 'l2', 2) == 0.25
  assert jax.jit(lambda x: radii(x, 'linf', 2))(jnp.ones(2) * 8).shape == (2,)
  with pytest.raises(UserError, match='one an image'):
    radii([0.1, 0.2, 0.3], 'linf', 2)
  with pytest.raises(UserError, match='beyond 1'):
    radii(np.array([0.1, 8.0]), 'linf', 2)


@given(st.integers(1, 510))
def test_radii_are_written_as_they_are_read(halves):
  value = halves / 510
  assert radius(radius_text(value), 'linf') == pytest.approx(value, rel=1e-7)
  assert radius_text(float(np.float32(value))) == radius_text(value)


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (1 / 255, '1/255'),
    (8 / 255, '8/255'),
    (0.5 / 255, '0.5/255'),
    (0.03, '0.03'),
    (0.2, '0.2'),
    (12.0, '12'),
    (0.0, '0'),
    (0.123456, '0.123456'),
    (None, 'none'),
  ],
)
def test_radii_as_people_write_them(value, text):
  assert radius_text(value) == text


def test_training_takes_radii_as_people_write_them():
  from rest_jax.train import config as configs
  from rest_jax.train.command import _with_radii

  given = ['--config.adversarial.eps=8/255', '--config.adversarial.step_size', '2/255', '--x=1/2']
  expected = [f'--config.adversarial.eps={8 / 255!r}', given[1], repr(2 / 255), '--x=1/2']
  assert _with_radii(given) == expected
  config = configs.default_config()
  config.adversarial.eps = 8.0
  with pytest.raises(UserError, match=r"'adversarial.eps' is 8.0, beyond 1.*such as 8/255"):
    configs.check_config(config)
  config.adversarial.norm = 'l2'
  configs.check_config(config)


def test_one_check_for_attacks_explanations_and_denoisers():
  from rest_jax import attacks, defend, explain

  def model(x):
    return x.reshape(x.shape[0], -1)[:, :3]

  calls = [
    lambda x: attacks.fgsm(model, x, np.zeros(2, np.int32), eps=0.1),
    lambda x: explain.check_images(x),
    lambda x: defend.denoiser('gaussian')(x),
  ]
  for call in calls:
    for bad, words in [(GREY * 255, '0 to 255'), (GREY * np.nan, 'not finite')]:
      with pytest.raises(UserError, match=words):
        call(bad)
    call(GREY + 0.5 + 2e-7)
