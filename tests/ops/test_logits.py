"""Probabilities of logits: the softmax, and the sigmoid of a single one."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from rest_jax.ops.logits import log_probabilities, probabilities

ROWS = np.random.default_rng(0).normal(0, 3, (6, 4)).astype(np.float32)


@pytest.mark.parametrize('classes', [1, 2, 4])
def test_one_logit_is_read_by_its_sigmoid_and_several_by_their_softmax(classes):
  logits = ROWS[:, :classes]
  exact = logits.astype(np.float64)
  expected = expit(exact) if classes == 1 else softmax(exact, axis=-1)
  np.testing.assert_allclose(probabilities(jnp.asarray(logits)), expected, rtol=1e-5)
  np.testing.assert_allclose(log_probabilities(jnp.asarray(logits)), np.log(expected), atol=1e-5)


@pytest.mark.parametrize('classes', [1, 4])
def test_probabilities_of_any_finite_logits_are_finite(classes):
  large = jnp.asarray(1e30 * ROWS[:, :classes])
  shares = np.asarray(probabilities(large))
  assert np.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1
