"""ROIAlign, pooling to cells, and masks in and out of their frames."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.errors import UserError
from rest_jax.ops.paste import crop_masks, paste_masks
from rest_jax.ops.pooling import adaptive_avg_pool
from rest_jax.ops.regions import pyramid_roi_align, roi_align, roi_levels

FOLDER = Path(__file__).parents[1] / 'golden'
TORCHVISION, GOLDEN = np.load(FOLDER / 'dense_torchvision.npz'), np.load(FOLDER / 'dense.npz')
align = jax.jit(roi_align, static_argnums=2, static_argnames=('scale', 'aligned'))
paste = jax.jit(paste_masks, static_argnums=2)
crop = jax.jit(crop_masks, static_argnums=(3, 4))
pool = jax.jit(adaptive_avg_pool, static_argnums=1)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('size', [7, 14])
def test_the_same_as_torchvision(size, aligned):
  features = TORCHVISION['ra_f'][0].transpose(1, 2, 0)
  got = align(features, TORCHVISION['ra_b'], size, scale=0.25, aligned=aligned)
  want = TORCHVISION[f'ra_{int(aligned)}_{size}_2'].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_fixed_number_of_samples_is_not_the_adaptive_one():
  """Detectron2's default takes as many samples as a bin has pixels: the choice, written down."""
  features = TORCHVISION['ra_f'][0].transpose(1, 2, 0)
  got = align(features, TORCHVISION['ra_b'], 7, scale=0.25, aligned=True)
  adaptive = TORCHVISION['ra_1_7_0'].transpose(0, 2, 3, 1)
  assert np.abs(got - adaptive).max() > 0.1


@given(
  st.floats(2, 20), st.floats(2, 14), st.floats(1, 20), st.floats(1, 14),
  st.floats(-2, 2), st.floats(-2, 2),
)  # fmt: skip
def test_a_linear_ramp_is_exact(x, y, width, height, slope_x, slope_y):
  """The mean of a plane over a bin is its value at the bin's centre."""
  rows, columns = np.mgrid[:32, :44].astype(np.float32) + 0.5  # pixel centres are at halves
  ramp = (slope_x * columns + slope_y * rows + 1)[..., None]
  box = np.array([[x, y, x + width, y + height]], np.float32)
  got = align(ramp.astype(np.float32), box, 7)[0, ..., 0]
  centres = (np.arange(7) + 0.5) / 7
  want = slope_x * (x + width * centres)[None] + slope_y * (y + height * centres)[:, None] + 1
  np.testing.assert_allclose(got, want, atol=2e-3)


def test_levels_by_hand():
  sides = np.array([10, 111, 113, 223.9, 224, 447, 449, 900, 5000, 0], np.float32)
  boxes = np.stack([0 * sides, 0 * sides, sides, sides], 1)
  np.testing.assert_array_equal(roi_levels(boxes, 4), [0, 0, 1, 1, 2, 2, 3, 3, 3, 0])


def test_a_pyramid_reads_each_region_from_its_level():
  rng = np.random.default_rng(0)
  maps = [rng.normal(size=(side, side, 3)).astype(np.float32) for side in (16, 8)]
  boxes = np.array([[1, 2, 20, 30], [0, 0, 60, 60], [5, 5, 9, 9], [0, 0, 0, 0]], np.float32)
  many = np.tile(boxes, (20, 1))  # more than a chunk

  @jax.jit
  def read(boxes):
    return pyramid_roi_align(maps, boxes, (4, 8), 3, canonical=64.0)

  got = read(many)
  assert got.shape == (80, 3, 3, 3)
  np.testing.assert_array_equal(roi_levels(boxes, 2, 64.0), [0, 1, 0, 0])
  for i, level in enumerate((0, 1, 0, 0)):
    want = align(maps[level], boxes[i : i + 1], 3, scale=1 / (4, 8)[level])
    np.testing.assert_allclose(got[i], want[0], atol=1e-5)
    np.testing.assert_allclose(got[76 + i], want[0], atol=1e-5)
  np.testing.assert_allclose(read(boxes), got[:4], atol=1e-6)


@pytest.mark.parametrize('size', [1, 2, 3, 6, 9])
def test_pooling_as_pytorch(size):
  got = pool(GOLDEN['pool/x'].transpose(0, 2, 3, 1), size)
  np.testing.assert_allclose(got.transpose(0, 3, 1, 2), GOLDEN[f'pool/{size}'], atol=1e-5)


def test_pooling_refuses():
  with pytest.raises(UserError, match='positive size'):
    adaptive_avg_pool(jnp.zeros((1, 4, 4, 1)), 0)
  with pytest.raises(UserError, match=r'\(B, H, W, C\)'):
    adaptive_avg_pool(jnp.zeros((4, 4, 1)), 2)


def test_pasting_as_detectron2():
  got = paste(GOLDEN['paste/masks'], GOLDEN['paste/boxes'], (40, 48))
  np.testing.assert_allclose(got, GOLDEN['paste/pasted'], atol=1e-4)


def test_pasting_by_hand():
  # Samples as large as pixels: the mask itself, at its place.
  mask = np.arange(12, dtype=np.float32).reshape(1, 3, 4) / 12
  got = paste(mask, jnp.array([[2.0, 1, 6, 4]]), (6, 8))
  want = np.zeros((6, 8))
  want[1:4, 2:6] = mask[0]
  np.testing.assert_allclose(got[0], want, atol=1e-6)
  assert not paste(mask, jnp.array([[2.0, 1, 2, 4]]), (6, 8)).any()


def test_cropping_is_pastings_inverse():
  """What is cut out of the frame of a box is what pasting shows there."""
  rng = np.random.default_rng(1)
  masks = (rng.random((1, 16, 16)) > 0.5).astype(np.float32)
  frame = jnp.array([[0.0, 0, 16, 16]])
  np.testing.assert_allclose(crop(masks, frame, frame, 16, 1), masks, atol=1e-6)
  part = crop(masks, frame, jnp.array([[4.0, 2, 12, 10]]), 8, 1)
  np.testing.assert_allclose(part[0], masks[0, 2:10, 4:12], atol=1e-6)
  outside = crop(np.ones((1, 16, 16), np.float32), frame, jnp.array([[8.0, 0, 24, 16]]), 8)
  np.testing.assert_allclose(outside[0, :, :3], 1, atol=1e-6)
  np.testing.assert_allclose(outside[0, :, 5:], 0, atol=1e-6)
