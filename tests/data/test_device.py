"""Mixup, cutmix and random erasing: what they promise about pixels and targets."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax.data.device import cut_box, mixup_cutmix, random_erasing
from rest_jax.errors import UserError

B, H, W = 5, 10, 16
DRAWS = 64


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.random((B, H, W, 3)), jnp.float32)
  return images, jnp.eye(B, dtype=jnp.float32)


@functools.cache
def mixed_by(mixup: float, cutmix: float, switch: float, prob: float):
  """DRAWS independent mixings in one compilation."""

  def one(key, images, targets):
    return mixup_cutmix(key, images, targets, mixup, cutmix, switch, prob)

  return jax.jit(jax.vmap(one, in_axes=(0, None, None)))


def draws(batch, *options):
  keys = jax.random.split(jax.random.key(1), DRAWS)
  images, targets = mixed_by(*options)(keys, *batch)
  assert images.dtype == targets.dtype == jnp.float32
  return np.asarray(images), np.asarray(targets)


def kinds(before, after, lams) -> list[str]:
  """What each draw did, checked pixel by pixel."""
  partner, found = before[::-1], []
  for images, lam in zip(after, lams, strict=True):
    kept, replaced = (images == before).all((0, 3)), (images == partner).all((0, 3))
    if kept.all():
      found.append('none')
    elif (kept | replaced).all():
      rows, columns = np.flatnonzero(~kept.all(1)), np.flatnonzero(~kept.all(0))
      assert (~kept).sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), 'no box'
      assert lam == pytest.approx(1 - (~kept).sum() / (H * W), abs=1e-6)
      found.append('cutmix')
    else:
      np.testing.assert_allclose(images, before * lam + partner * (1 - lam), atol=1e-6)
      found.append('mixup')
  return found


@pytest.mark.parametrize(
  'options', [(0.8, 0.0, 0.5, 1.0), (0.0, 1.0, 0.5, 1.0), (0.8, 1.0, 0.5, 0.7)]
)
def test_pixels_and_targets_agree(batch, options):
  images, targets = draws(batch, *options)
  np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
  assert images.min() >= 0 and images.max() <= 1
  lams = targets[:, 0, 0]
  # One-hot targets show lam: (lam, ..., 1 - lam) in the first row, 1 for the middle image.
  np.testing.assert_allclose(targets[:, 0, B - 1], 1 - lams, atol=1e-6)
  np.testing.assert_allclose(targets[:, B // 2, B // 2], 1, atol=1e-6)
  done = kinds(np.asarray(batch[0]), images, lams)
  share = {kind: done.count(kind) / DRAWS for kind in ('none', 'mixup', 'cutmix')}
  if options[1] == 0:
    assert share['mixup'] == 1
  elif options[0] == 0:
    assert share['mixup'] == 0 and share['cutmix'] > 0.7  # the box may be empty
  else:
    assert 0.15 < share['mixup'] < 0.55 and share['cutmix'] > 0.15 and share['none'] > 0.1


def test_mixup_alone_draws_beta(batch):
  _, targets = draws(batch, 0.8, 0.0, 0.5, 1.0)
  lams = targets[:, 0, 0]
  # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 (2 * 0.8 + 1)).
  assert lams.mean() == pytest.approx(0.5, abs=0.13)
  assert lams.var() == pytest.approx(1 / 10.4, rel=0.4)


@pytest.mark.parametrize('options', [(0.0, 0.0, 0.5, 1.0), (0.8, 1.0, 0.5, 0.0)])
def test_turned_off_it_returns_its_input(batch, options):
  images, targets = mixup_cutmix(jax.random.key(0), *batch, *options)
  assert images is batch[0] and targets is batch[1]


def test_the_box_has_the_wanted_area_inside_the_image():
  lams = jnp.linspace(0.0, 1.0, 400, dtype=jnp.float32)
  keys = jax.random.split(jax.random.key(0), 400)
  boxes = jax.jit(jax.vmap(lambda key, lam: cut_box(key, 40, 60, lam)))(keys, lams)
  top, left, bottom, right = (np.asarray(edge) for edge in boxes)
  assert (top >= 0).all() and (left >= 0).all() and (bottom <= 40).all() and (right <= 60).all()
  assert (bottom >= top).all() and (right >= left).all()
  whole = (top > 0) & (left > 0) & (bottom < 40) & (right < 60)
  wanted = np.sqrt(1 - np.asarray(lams))
  assert whole.sum() > 30
  assert (np.abs(bottom - top - 40 * wanted)[whole] <= 2).all()
  assert (np.abs(right - left - 60 * wanted)[whole] <= 2).all()


def test_erasing_fills_one_box_with_noise():
  images = jnp.full((200, 20, 24, 3), 0.5, jnp.float32)
  erase = jax.jit(lambda key, x: random_erasing(key, x, 0.5, mean=(0.2,) * 3, std=(0.1,) * 3))
  erased = np.asarray(erase(jax.random.key(0), images))
  assert erased.dtype == np.float32
  changed = (erased != 0.5).all(-1)
  assert (changed == (erased != 0.5).any(-1)).all()
  hit = changed.any((1, 2))
  assert 70 < hit.sum() < 130
  for mask in changed[hit]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert mask.sum() == height * width
    assert 0.01 < mask.mean() < 0.37 and 0.2 < height / width < 5
  values = erased[changed]
  assert values.mean() == pytest.approx(0.2, abs=0.01)
  assert values.std() == pytest.approx(0.1, abs=0.01)


def test_erasing_leaves_what_no_box_fits():
  images = jnp.full((4, 8, 8, 3), 0.5, jnp.float32)
  erased = random_erasing(jax.random.key(0), images, 1.0, area=(1.0, 1.0), min_aspect=1.0)
  np.testing.assert_array_equal(erased, images)


def test_erasing_turned_off(batch):
  assert random_erasing(jax.random.key(0), batch[0], 0.0) is batch[0]


def test_bad_input(batch):
  key = jax.random.key(0)
  for options in ((-1.0, 0.0), (0.1, 1.0, 2.0), (0.1, 1.0, 0.5, -0.5)):
    with pytest.raises(UserError, match='mixup and cutmix need'):
      mixup_cutmix(key, *batch, *options)
  for options in ({'prob': 2.0}, {'area': (0.5, 0.1)}, {'min_aspect': 0.0}):
    with pytest.raises(UserError, match='random erasing needs'):
      random_erasing(key, batch[0], **options)
