"""Auto-PGD in NumPy and float64, written from the papers' pseudocode, with the histories kept.

As the published code it counts a rise at the first step against a loss of 0.
"""

import math

import numpy as np


def project_l1(delta, x, eps):
  """The nearest point of the L1 ball within [0, 1], by sorting the breakpoints."""
  size = np.abs(delta)
  room = np.abs(np.clip(delta, -x, 1 - x))
  if room.sum() <= eps:
    return np.sign(delta) * room
  points = np.sort(np.concatenate([[0.0], size, size - room]))
  sums = np.array([np.clip(size - c, 0, room).sum() for c in points])
  i = np.searchsorted(-sums, -eps) - 1  # the last breakpoint with more than eps
  share = (sums[i] - eps) / (sums[i] - sums[i + 1])
  c = points[i] + share * (points[i + 1] - points[i])
  return np.sign(delta) * np.clip(size - c, 0, room)


def move(x, point, before, gradient, length, first, norm, eps, share):
  """One step of section 3.1, equation 2 and 3 (Linf, L2), or of the sparse step (L1)."""

  def inside(z):
    delta = z - x
    if norm == 'linf':
      return np.clip(x + np.clip(delta, -eps, eps), 0, 1)
    if norm == 'l1':
      return x + project_l1(delta, x, eps)
    n = np.linalg.norm(delta)
    return np.clip(x + delta / (n + 1e-12) * min(n, eps), 0, 1)

  if norm == 'l1':
    size = np.sort(np.abs(gradient))
    least = size[min(max(int((1 - share) * x.size), 0), x.size - 1)]
    sign = np.where(np.abs(gradient) >= least, np.sign(gradient), 0)
    return inside(point + length * sign / (np.abs(sign).sum() + 1e-10))
  way = np.sign(gradient) if norm == 'linf' else gradient / (np.linalg.norm(gradient) + 1e-12)
  z = inside(point + length * way)
  weight = 1.0 if first else 0.75
  return inside(point + weight * (z - point) + (1 - weight) * (point - before))


def attack(loss_and_gradient, x, start, norm, eps, n):
  """Attacks one image, flat; gives the point of highest loss and the losses of all steps."""
  k, least, less = (max(int(s * n), 1) for s in (0.22, 0.06, 0.03))
  if norm == 'l1':
    k = max(int(0.04 * n), 1)
  point = before = best = start
  loss, gradient = loss_and_gradient(point)
  best_loss, best_gradient = loss, gradient
  losses = [0.0]  # the published history is filled with zeros at first
  full = 1.0 if norm == 'l1' else 2.0
  length, share, support = full * eps, 0.2, x.size
  since, reduced, checked = 0, True, best_loss
  trace = [loss]
  for i in range(n):
    new = move(x, point, before, gradient, length, i == 0, norm, eps, share)
    before, point = point, new
    loss, gradient = loss_and_gradient(point)
    losses.append(loss)
    trace.append(loss)
    if loss > best_loss:
      best, best_loss, best_gradient = point, loss, gradient
    since += 1
    if since < k:
      continue
    since = 0
    if norm == 'l1':
      new_support = np.count_nonzero(best - x)
      back = new_support / support < 0.95
      share, support = new_support / x.size / 1.5, new_support
      length = full * eps if back else max(length / 1.5, full * eps / 10)
    else:
      rises = sum(losses[-j] > losses[-j - 1] for j in range(1, k + 1))
      back = rises <= k * 0.75 or (not reduced and checked >= best_loss)
      reduced, checked = back, best_loss
      length = length / 2 if back else length
      k = max(k - less, least)
    if back:
      point, gradient = best, best_gradient
  assert math.isfinite(best_loss)
  return best, best_loss, np.array(trace)
