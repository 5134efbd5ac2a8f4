"""The brushes of digit_scenes, against values found by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.data.digit_scene_drawing import blend, enlarge, luma, rotation, stroke, warp


def test_warp_under_the_identity_is_the_image():
  image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
  # The last row and column are one 65536th of a pixel inside the border: not a whole grey level.
  assert np.abs(warp(image, (1, 0, 0, 0, 1, 0), 9, 7) - image.astype(int)).max() <= 1
  assert (warp(image, (1, 0, 0, 0, 1, 0), 8, 6) == image[:8, :6]).all()


def test_warp_half_a_pixel_is_the_mean_of_neighbours():
  image = np.array([[0, 100, 50], [20, 40, 200]], np.uint8)
  assert warp(image, (1, 0, 0.5, 0, 1, 0), 1, 2).tolist() == [[50, 75]]
  assert warp(image, (1, 0, 0.5, 0, 1, 0.5), 1, 2).tolist() == [[40, 98]]


def test_warp_transposes():
  image = np.random.default_rng(0).integers(0, 256, (6, 6), dtype=np.uint8)
  assert (warp(image, (0, 1, 0, 1, 0, 0), 5, 5) == image.T[:5, :5]).all()


@given(st.floats(-1, 1))
def test_rotation_lies_on_the_circle_at_the_angle(t):
  cos, sin = rotation(t)
  assert cos * cos + sin * sin == pytest.approx(1, abs=1e-12)
  assert np.arctan2(sin, cos) == pytest.approx(2 * np.arctan(t), abs=1e-12)


def test_stroke_covers_its_thickness_and_length():
  coverage = stroke((2, 4), (12, 4), bend=0, thickness=2, height=9, width=16)
  assert coverage[4, 7] == 1 and coverage[3, 7] == pytest.approx(0.5)
  assert coverage[1, 7] == 0 and coverage[4, 0] == 0 and coverage[4, 14] == 0
  assert coverage[:, 7].sum() == pytest.approx(2)


def test_stroke_bends_at_its_middle():
  coverage = stroke((0, 2), (12, 2), bend=4, thickness=1, height=9, width=13)
  assert coverage[:, 6].argmax() == 6 and coverage[:, 0].argmax() == 2


def test_blend_paints_in_place():
  canvas = np.zeros((1, 2, 3), np.float32)
  blend(canvas, np.array([[0, 0.5]], np.float32), np.array([200, 100, 0]))
  assert canvas.tolist() == [[[0, 0, 0], [100, 50, 0]]]


def test_luma_of_grey_is_the_grey():
  assert luma(np.full((4, 3), 200, np.uint8)).tolist() == [200] * 4
  assert luma(np.array([255, 0, 0])) < luma(np.array([0, 255, 0]))


def test_enlarge_keeps_flat_areas_and_fades_out():
  large = enlarge(np.full((1, 8, 8), 16), 8)
  assert large.shape == (1, 96, 96)
  assert (large[0, 32:64, 32:64] == 255).all()
  # Two negative lobes multiply to a grey level or two, which no threshold lets through.
  assert large[0, :8].max() <= 2 and large[0, :, -8:].max() <= 2


def test_enlarge_is_cubic_convolution():
  # A lone pixel at phase 1/4 of a pixel from the centre (factor 2): Catmull-Rom of 1/4 is
  # 1.5 t^3 - 2.5 t^2 + 1 = 0.8671875 along each axis.
  grid = np.zeros((1, 3, 3), int)
  grid[0, 1, 1] = 16
  assert enlarge(grid, 2)[0, 6, 6] == round(255 * 0.8671875**2)


def test_enlarge_is_symmetric():
  grid = np.random.default_rng(1).integers(0, 17, (2, 8, 8))
  assert (enlarge(grid[:, ::-1], 8)[:, ::-1] == enlarge(grid, 8)).all()
