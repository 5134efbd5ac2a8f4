"""The picture that a released model makes of a file is the one that training evaluated it on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.data.augmentation import eval_view
from rest_jax.models.predictions import preprocess


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@given(
  height=st.integers(20, 90),
  width=st.integers(20, 90),
  resize=st.sampled_from(['squash', 'resize_crop']),
  crop_pct=st.sampled_from([0.875, 0.9, 1.0]),
)
def test_same_pixels(interpolation, height, width, resize, crop_pct):
  image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
  judged = eval_view(image, 32, resize, crop_pct, interpolation)
  seen = preprocess(image, size=32, resize=resize, crop_pct=crop_pct, interpolation=interpolation)
  np.testing.assert_array_equal(np.rint(np.asarray(seen)[0] * 255).astype(np.uint8), judged)
