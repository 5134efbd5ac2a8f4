"""Losses of dense tasks, against torchvision and by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.ops import dense_losses

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'dense_torchvision.npz')


def test_focal_loss_as_torchvision():
  got = dense_losses.sigmoid_focal_loss(jnp.asarray(GOLDEN['fl_x']), jnp.asarray(GOLDEN['fl_y']))
  np.testing.assert_allclose(got, GOLDEN['fl'], atol=1e-5)


@given(st.floats(-60, 60), st.booleans())
def test_entropies_are_finite_and_right(logit, target):
  x, y = jnp.float32(logit), jnp.float32(target)
  sign = -1 if target else 1
  want = np.logaddexp(0, sign * logit)
  np.testing.assert_allclose(dense_losses.binary_cross_entropy(x, y), want, rtol=1e-4, atol=1e-6)
  # With gamma 0 and alpha 1/2 the focal loss is half of it.
  half = dense_losses.sigmoid_focal_loss(x, y, alpha=0.5, gamma=0.0)
  np.testing.assert_allclose(half, want / 2, rtol=1e-4, atol=1e-6)
  for loss in (dense_losses.binary_cross_entropy, dense_losses.sigmoid_focal_loss):
    assert np.isfinite(jax.grad(loss)(x, y))


def test_smooth_l1_by_hand():
  x = jnp.array([-2.0, -0.05, 0.0, 0.1, 3.0])
  np.testing.assert_allclose(dense_losses.smooth_l1(x, 0.0), [2, 0.05, 0, 0.1, 3])
  want = [1.95, 0.0125, 0, 0.05, 2.95]
  np.testing.assert_allclose(dense_losses.smooth_l1(x, 0.1), want, rtol=1e-5)


def test_cross_entropy_leaves_out_what_is_to_be_ignored():
  logits = jnp.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [9.0, 9.0, 9.0]])
  got = dense_losses.cross_entropy(logits, jnp.array([1, 0, 255]), 255)
  want = [np.log(3), np.log(np.exp([1, 2, 3]).sum()) - 1, 0]
  np.testing.assert_allclose(got, want, rtol=1e-6)
  slope = jax.grad(lambda x: dense_losses.cross_entropy(x, jnp.array([1, 0, 255]), 255).sum())
  assert not slope(logits)[2].any()
