"""Losses of dense tasks, against torchvision and by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.ops.dense_losses import (
  binary_cross_entropy,
  cross_entropy,
  sigmoid_focal_loss,
  smooth_l1,
)

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'dense_torchvision.npz')


def test_focal_loss_as_torchvision():
  got = jax.jit(sigmoid_focal_loss)(GOLDEN['fl_x'], GOLDEN['fl_y'])
  np.testing.assert_allclose(got, GOLDEN['fl'], atol=1e-5)


@jax.jit
def entropies(x, y):
  half = sigmoid_focal_loss(x, y, alpha=0.5, gamma=0.0)
  slopes = [jax.grad(loss)(x, y) for loss in (binary_cross_entropy, sigmoid_focal_loss)]
  return binary_cross_entropy(x, y), half, slopes


@given(st.floats(-60, 60), st.booleans())
def test_entropies_are_finite_and_right(logit, target):
  entropy, half, slopes = entropies(np.float32(logit), np.float32(target))
  want = np.logaddexp(0, -logit if target else logit)
  np.testing.assert_allclose(entropy, want, rtol=1e-4, atol=1e-6)
  # With gamma 0 and alpha 1/2 the focal loss is half of it.
  np.testing.assert_allclose(half, want / 2, rtol=1e-4, atol=1e-6)
  assert np.isfinite(slopes).all()


def test_smooth_l1_by_hand():
  x = jnp.array([-2.0, -0.05, 0.0, 0.1, 3.0])
  np.testing.assert_allclose(smooth_l1(x, 0.0), [2, 0.05, 0, 0.1, 3])
  want = [1.95, 0.0125, 0, 0.05, 2.95]
  np.testing.assert_allclose(smooth_l1(x, 0.1), want, rtol=1e-5)


def test_cross_entropy_leaves_out_what_is_to_be_ignored():
  logits = jnp.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [9.0, 9.0, 9.0]])
  labels = np.array([1, 0, 255])
  got, back = jax.vjp(jax.jit(lambda x: cross_entropy(x, labels, 255)), logits)
  want = [np.log(3), np.log(np.exp([1, 2, 3]).sum()) - 1, 0]
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert not back(np.ones(3, np.float32))[0][2].any()
