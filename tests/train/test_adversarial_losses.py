"""TRADES and MART against the formulas of their papers in float64 probabilities."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.train import losses

LOGITS = st.lists(st.floats(-8, 8), min_size=3, max_size=3)


def softmax(x):
  e = np.exp(np.asarray(x, np.float64))
  return e / e.sum(-1, keepdims=True)


@given(LOGITS, LOGITS, st.integers(0, 2), st.floats(0.1, 8))
def test_formulas(natural, adversarial, label, beta):
  p, q = softmax(natural), softmax(adversarial)
  kl = (p * np.log(p / q)).sum()
  rows = (jnp.array([natural], jnp.float32), jnp.array([adversarial], jnp.float32))
  targets = losses.smooth_one_hot(jnp.array([label]), 3)
  assert float(losses.kl_divergence(*rows)[0]) == pytest.approx(kl, rel=1e-4, abs=1e-5)
  trades = -np.log(p[label]) + beta * kl
  assert float(losses.trades_loss(*rows, targets, beta)[0]) == pytest.approx(
    trades, rel=1e-4, abs=1e-4
  )
  rival = max(q[k] for k in range(3) if k != label)
  mart = -np.log(q[label]) - np.log(1 - rival) + beta * kl * (1 - p[label])
  assert float(losses.mart_loss(*rows, targets, beta)[0]) == pytest.approx(mart, rel=1e-4, abs=1e-4)


def test_soft_targets_in_trades():
  """Label smoothing and mixup reach the natural term."""
  natural, targets = jnp.array([[1.0, 0.0]]), jnp.array([[0.7, 0.3]])
  p = softmax([1.0, 0.0])
  expected = -0.7 * np.log(p[0]) - 0.3 * np.log(p[1])
  assert float(losses.trades_loss(natural, natural, targets, 6.0)[0]) == pytest.approx(expected)


def test_mart_is_finite_where_probabilities_are_not_below_one():
  sure_and_wrong = jnp.array([[0.0, 200.0, 0.0]])
  targets = jnp.array([[1.0, 0.0, 0.0]])
  value = losses.mart_loss(jnp.zeros((1, 3)), sure_and_wrong, targets, 0.0)
  # -log p_y = 200 and -log(1 - p_1) = 200 - log 2.
  np.testing.assert_allclose(value, [400 - np.log(2)], rtol=1e-6)


def test_hit_rate():
  logits = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
  targets = losses.smooth_one_hot(jnp.array([1, 0, 0, 0]), 2, 0.1)
  assert float(losses.hit_rate(logits, targets)) == 0.75
