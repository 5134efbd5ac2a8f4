"""PCA of patches: the basis is scikit-learn's, the ends of the strength, overlaps, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from rest_jax.defend.denoise import denoiser, noise_only
from rest_jax.defend.denoise.pca import fit_patch_pca
from rest_jax.errors import UserError

SIZE = 4


def blocks(images, size=SIZE):
  """All patches side by side, (N, size^2 C), by plain loops."""
  n, height, width, _ = images.shape
  return np.stack(
    [
      images[k, i : i + size, j : j + size].ravel()
      for k in range(n)
      for i in range(0, height - size + 1, size)
      for j in range(0, width - size + 1, size)
    ]
  )


@pytest.fixture(scope='module')
def images():
  """Smooth pictures with a little noise, 12x9 pixels: the last column is no whole patch."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:12, :9] / 12
  waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in rng.uniform(0, 2, (60, 3))]
  colours = rng.uniform(0.1, 0.3, (60, 1, 1, 3))
  pictures = 0.5 + np.stack(waves)[..., None] * colours + rng.normal(0, 0.02, (60, 12, 9, 3))
  return pictures.astype(np.float32)


@pytest.fixture(scope='module')
def basis(images):
  return fit_patch_pca(images, SIZE)


def test_the_basis_is_scikit_learns(images, basis):
  reference = PCA().fit(blocks(images).astype(np.float64))
  np.testing.assert_allclose(basis.mean, reference.mean_, atol=1e-6)
  np.testing.assert_allclose(basis.variances, reference.explained_variance_, rtol=1e-4, atol=1e-9)
  # A component is one up to its sign.
  cosines = np.abs(np.sum(np.asarray(basis.components) * reference.components_, axis=1))
  np.testing.assert_allclose(cosines[:20], 1, atol=1e-5)
  np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(48), atol=1e-5)


def test_leading_components_are_scikit_learns_reconstruction(images, basis):
  whole = jnp.asarray(images[:3, :, :8])
  for kept in (1, 7, 48):
    strength = 1 - np.log(kept) / np.log(48)
    got = denoiser('pca', strength, basis=basis, stride=SIZE)(whole)
    reference = PCA(kept).fit(blocks(images).astype(np.float64))
    expected = reference.inverse_transform(reference.transform(blocks(np.asarray(whole))))
    np.testing.assert_allclose(blocks(np.asarray(got)), expected, atol=2e-5)


def test_wiener_gains(images, basis):
  whole = jnp.asarray(images[:2, :, :8])
  got = denoiser('pca', 0.5, basis=basis, shrink='wiener', noise=0.2, stride=SIZE)(whole)
  v, components = np.asarray(basis.variances, np.float64), np.asarray(basis.components, np.float64)
  centred = blocks(np.asarray(whole)) - np.asarray(basis.mean)
  expected = centred @ components.T * (v / (v + 0.1**2)) @ components + np.asarray(basis.mean)
  np.testing.assert_allclose(blocks(np.asarray(got)), expected, atol=1e-5)


def test_overlapping_patches_are_the_mean_over_shifted_grids(images, basis):
  x = images[:2]
  got = denoiser('pca', 0.6, basis=basis, stride=2)(jnp.asarray(x))
  alone = denoiser('pca', 0.6, basis=basis, stride=SIZE)
  total = np.zeros_like(x)
  for top in (0, 2):
    for left in (0, 2):
      edges = ((0, 0), (top, 4 + (-top) % 4), (left, 4 + (-left) % 4), (0, 0))
      grid = np.asarray(alone(jnp.asarray(np.pad(x, edges, mode='edge'))))
      total += grid[:, top : top + 12, left : left + 9]
  np.testing.assert_allclose(got, total / 4, atol=1e-5)


def test_strength_0_is_the_identity_and_more_strength_keeps_less(images, basis):
  x = jnp.asarray(images[:2])
  one = denoiser('pca', 0.0, basis=basis, stride=SIZE)
  np.testing.assert_array_equal(one(x), x)
  noise = 0.1 * jax.random.normal(jax.random.key(0), x.shape)
  left = [
    float(jnp.sum(noise_only(one.with_strength(s), noise) ** 2)) for s in (0.0, 0.3, 0.6, 1.0)
  ]
  assert left == sorted(left, reverse=True) and left[-1] < 0.1 * left[0]
  gradient = jax.grad(lambda x: jnp.sum(one.with_strength(0.5)(x) ** 2))(x)
  assert jnp.isfinite(gradient).all()


def test_images_may_stand_for_their_basis(images, basis):
  x = jnp.asarray(images[:1])
  by_images = denoiser('pca', 0.5, basis=images, stride=8)(x)
  by_basis = denoiser('pca', 0.5, basis=fit_patch_pca(images), stride=8)(x)
  np.testing.assert_array_equal(by_images, by_basis)


def test_bad_input_is_one_line(images, basis):
  grey = jnp.zeros((1, 8, 8, 1))
  for make, match in [
    (lambda: denoiser('pca', 0.5), 'needs a basis'),
    (lambda: denoiser('pca', 0.5, basis=basis, stride=3), 'divisor of the patch size 4, not 3'),
    (lambda: denoiser('pca', 0.5, basis=basis, shrink='soft'), "leading or wiener, not 'soft'"),
    (lambda: denoiser('pca', 0.5, basis=basis, noise=0.0), 'noise is a number above 0'),
    (lambda: denoiser('pca', 0.5, basis=basis)(grey), 'patches of 48 numbers'),
    (lambda: fit_patch_pca(images, 10), 'size is 1 to 9'),
    (lambda: fit_patch_pca(images[0]), 'float images'),
    (lambda: fit_patch_pca(images[:1, :8, :8], 8), 'two patches'),
  ]:
    with pytest.raises(UserError, match=match) as error:
      make()
    assert '\n' not in str(error.value)
