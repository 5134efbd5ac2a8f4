"""Every map of the reference file, made in float64 by the code of Group-CAM's authors.

Their latest code divides 0 by 0 where a group is constant, and the file then holds nan. Those maps
are compared with a NumPy reference that skips such groups, and which itself has to give every
Group-CAM map of the file that is a number.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from numpy.lib.stride_tricks import sliding_window_view

from rest_jax import explain

GOLDEN = Path(__file__).parents[1] / 'golden' / 'groupcam_small_cnn.npz'
METHODS = {
  'gradcam': explain.grad_cam,
  'scorecam': functools.partial(explain.score_cam, variant='code'),
}
GROUP_CAMS = {
  f'groupcam{extra}{groups}': dict(groups=groups, variant=variant)
  for groups in (8, 32)
  for extra, variant in (('', 'latest'), ('_denoised', 'paper'))
}


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as file:
    return dict(file)


@pytest.fixture(scope='module')
def images(golden):
  return golden['input'].transpose(0, 2, 3, 1)


@pytest.fixture(scope='module')
def pair(golden):
  weights = {name: value for name, value in golden.items() if name.startswith('param/')}
  return Partial(features, weights), Partial(head, weights)


def traced(method, pair, images, classes, **options):
  """Inside jit, where values are not looked at: the file's images are normalised, not in [0, 1]."""
  return jax.jit(lambda x: method(pair, x, classes, **options))(images)


def features(weights, x):
  for name in ('param/features.0', 'param/features.2'):
    kernel = weights[f'{name}.weight'].transpose(2, 3, 1, 0)
    x = jax.lax.conv_general_dilated(
      x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    x = jax.nn.relu(x + weights[f'{name}.bias'][None, None, None])
  return x


def head(weights, x):
  return x.mean((1, 2)) @ weights['param/fc.weight'].T + weights['param/fc.bias'][None]


def conv_relu(x, kernel, bias):
  """3x3/2 on (C, H, W) with a border of zeros, in float64."""
  windows = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
  out = np.tensordot(kernel, windows[:, ::2, ::2], ((1, 2, 3), (0, 3, 4)))
  return np.maximum(out + bias[:, None, None], 0)


class Reference:
  """Group-CAM in plain NumPy on the file's network."""

  def __init__(self, golden):
    self.golden = {name: np.asarray(value, np.float64) for name, value in golden.items()}

  def features(self, x):
    for name in ('features.0', 'features.2'):
      weights = (self.golden[f'param/{name}.{what}'] for what in ('weight', 'bias'))
      x = conv_relu(x, *weights)
    return x

  def logits(self, x):
    plane = self.features(x).mean((1, 2))
    return self.golden['param/fc.weight'] @ plane + self.golden['param/fc.bias']

  def probability(self, x, target):
    logits = self.logits(x)
    return np.exp(logits[target] - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max())

  def group_cam(self, i, target, groups, variant):
    x, blurred = self.golden['input'][i], self.golden['blurred'][i]
    plane = self.features(x)
    # The head is a mean and a matrix, so the gradient is the matrix over the plane's size.
    weighted = plane * (self.golden['param/fc.weight'][target] / plane[0].size)[:, None, None]
    baseline, total = self.probability(blurred, target), np.zeros(x.shape[1:])
    for group in np.split(weighted, groups):
      small = np.maximum(group.sum(0), 0)
      if variant == 'paper':
        small = np.where(small > np.percentile(small, 70), small, 0)
      mask = enlarge(small, x.shape[1:])
      if mask.max() == mask.min():
        continue
      unit = (mask - mask.min()) / (mask.max() - mask.min())
      alpha = self.probability(x * unit + blurred * (1 - unit), target) - baseline
      total += alpha * unit if variant == 'paper' else max(alpha, 0) * mask
    total = np.maximum(total, 0)
    return (total - total.min()) / (total.max() - total.min())

  def grad_cam_pp(self, i, target, added):
    """Their code, which adds 1e-7 to the denominator of alpha; without it the paper's equation."""
    plane = self.features(self.golden['input'][i])
    g = self.golden['param/fc.weight'][target] / plane[0].size
    alpha = g**2 / (2 * g**2 + plane.sum((1, 2)) * g**3 + added)
    small = np.maximum(np.tensordot(alpha * np.maximum(g, 0), plane, 1), 0)
    big = enlarge(small, self.golden['input'].shape[2:])
    return (big - big.min()) / (big.max() - big.min())


def enlarge(x, size):
  rows, columns = (interpolated(n, m) for n, m in zip(x.shape, size, strict=True))
  return rows @ x @ columns.T


@functools.cache
def interpolated(n, m):
  """(m, n): what linear interpolation makes of the n unit vectors."""
  places = (np.arange(m) + 0.5) / m * n - 0.5
  return np.stack([np.interp(places, np.arange(n), unit) for unit in np.eye(n)], axis=1)


def test_logits(golden, pair, images):
  logits = explain.tap(pair)(images)
  np.testing.assert_allclose(
    logits, np.concatenate([golden[f'logits/{i}'] for i in range(4)]), atol=1e-5
  )


@pytest.fixture(scope='module')
def targets(golden):
  """Class indices of the file's two names."""
  top = [int(golden[f'logits/{i}'].argmax()) for i in range(4)]
  return {'top': top, '3': [3] * 4}


@pytest.mark.parametrize('name', METHODS)
def test_maps(golden, pair, images, targets, name):
  for target, classes in targets.items():
    maps = traced(METHODS[name], pair, images, classes)
    for i, map_ in enumerate(maps):
      np.testing.assert_allclose(map_, golden[f'{name}/{target}/{i}'], atol=1e-5)


def test_grad_cam_pp(golden, pair, images, targets):
  reference = Reference(golden)
  for target, classes in targets.items():
    maps = traced(explain.grad_cam_pp, pair, images, classes)
    for i, map_ in enumerate(maps):
      theirs = reference.grad_cam_pp(i, classes[i], 1e-7)
      np.testing.assert_allclose(theirs, golden[f'gradcampp/{target}/{i}'], atol=1e-6)
      np.testing.assert_allclose(map_, reference.grad_cam_pp(i, classes[i], 0), atol=1e-5)


@pytest.mark.parametrize('name', GROUP_CAMS)
def test_group_cam(golden, pair, images, targets, name):
  reference = Reference(golden)
  for target, classes in targets.items():
    maps = traced(explain.group_cam, pair, images, classes, **GROUP_CAMS[name])
    for i, map_ in enumerate(maps):
      expected = golden[f'{name}/{target}/{i}']
      plain = reference.group_cam(i, classes[i], **GROUP_CAMS[name])
      if np.isfinite(expected).all():
        np.testing.assert_allclose(plain, expected, atol=1e-7)
      np.testing.assert_allclose(map_, plain, atol=1e-4)


def test_the_file_has_both_kinds(golden):
  finite = {n: bool(np.isfinite(golden[f'{n}/3/0']).all()) for n in (*METHODS, *GROUP_CAMS)}
  assert [name for name, is_finite in finite.items() if not is_finite] == [
    'groupcam8',
    'groupcam32',
  ]
  assert jnp.isfinite(golden['groupcam8/top/0']).all()
