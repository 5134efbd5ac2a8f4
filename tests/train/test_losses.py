"""Losses against values worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.train.losses import smooth_one_hot, soft_cross_entropy


def test_cross_entropy_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
  targets = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
  expected = [np.log(2.0), -0.5 * np.log(0.1) - 0.5 * np.log(0.8)]
  np.testing.assert_allclose(soft_cross_entropy(logits, targets), expected, rtol=1e-6)


def test_smoothing_by_hand():
  targets = smooth_one_hot(jnp.array([2, 0]), 4, 0.1)
  expected = [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]
  np.testing.assert_allclose(targets, expected, rtol=1e-6)


def test_large_and_bfloat16_logits():
  loss = soft_cross_entropy(
    jnp.array([[1000.0, 0.0]], jnp.bfloat16), smooth_one_hot(jnp.array([1]), 2)
  )
  assert loss.dtype == jnp.float32
  assert float(loss[0]) == pytest.approx(1000.0)


@given(shift=st.floats(-50.0, 50.0), smoothing=st.floats(0.0, 0.9), label=st.integers(0, 4))
def test_adding_a_constant_to_the_logits_changes_nothing(shift, smoothing, label):
  logits = jnp.linspace(-1.0, 1.0, 5)[None]
  targets = smooth_one_hot(jnp.array([label]), 5, smoothing)
  assert float(targets.sum()) == pytest.approx(1.0, abs=1e-5)
  moved = soft_cross_entropy(logits + jnp.float32(shift), targets)
  np.testing.assert_allclose(moved, soft_cross_entropy(logits, targets), atol=2e-5)
