"""A linear classifier, whose least perturbations have closed forms."""

import jax.numpy as jnp
import numpy as np

SHAPE, CLASSES, COUNT = (3, 4, 2), 4, 6
DUAL = {'l2': 2, 'linf': 1, 'l1': np.inf}

_rng = np.random.default_rng(0)
WEIGHTS = _rng.normal(size=(24, CLASSES)).astype(np.float32)
BIAS = _rng.normal(size=CLASSES).astype(np.float32)
# In the middle of the range, so that it does not cut the balls off.
IMAGES = _rng.uniform(0.4, 0.6, (COUNT, *SHAPE)).astype(np.float32)


def logits_fn(images):
  return images.reshape(images.shape[0], -1) @ WEIGHTS + BIAS[None]


def predict(images):
  return np.asarray(jnp.argmax(logits_fn(images), axis=1))


LABELS = predict(IMAGES)


def gaps():
  """How far each other class is behind, and the slopes: (B, K), (B, K, n)."""
  logits = np.asarray(logits_fn(IMAGES), np.float64)
  gap = logits[np.arange(COUNT), LABELS][:, None] - logits
  slope = WEIGHTS.T[None].astype(np.float64) - WEIGHTS.T[LABELS][:, None]
  return gap, slope


def least(norm):
  """Distance of each image to the nearest hyperplane, (B,)."""
  gap, slope = gaps()
  dual = np.linalg.norm(slope, DUAL[norm], axis=2)
  return np.min(gap / np.where(dual > 0, dual, 1) + np.where(dual > 0, 0, np.inf), axis=1)


def least_to(norm, targets):
  """Distance of each image to the region of a class, by a solver for L2: (B,)."""
  from scipy import optimize

  if norm != 'l2':
    raise ValueError(norm)
  found = []
  for i, target in enumerate(targets):
    rows = (WEIGHTS.T - WEIGHTS.T[target][None]).astype(np.float64)
    logits = np.asarray(logits_fn(IMAGES[i : i + 1]), np.float64)[0]
    result = optimize.minimize(
      lambda d: d @ d,
      np.zeros(24),
      jac=lambda d: 2 * d,
      constraints={
        'type': 'ineq',
        'fun': lambda d, rows=rows, z=logits, t=target: z[t] - z - rows @ d,
        'jac': lambda d, rows=rows: -rows,
      },
      method='SLSQP',
    )
    found.append(result.fun**0.5)
  return np.array(found)
