"""The CAM family against the papers' formulas in plain NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from rest_jax import UserError, explain
from rest_jax.explain import queries
from rest_jax.explain.grad_cams import first_component, plus_plus_weights

KERNEL = jax.random.normal(jax.random.key(0), (2, 2, 3, 6))
HEAD = jax.random.normal(jax.random.key(1), (6, 4))
IMAGES = jax.random.uniform(jax.random.key(2), (2, 10, 8, 3))
TARGETS = jnp.array([1, 3])


def features(kernel, x):
  dimensions = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(
    x - 0.5, kernel, (2, 2), 'VALID', dimension_numbers=dimensions
  )


def head(weights, a):
  return jnp.sum(jnp.tanh(a) * a, axis=(1, 2)) @ weights


layer_gradient = jax.jit(queries.layer_gradient)
PAIR = (Partial(features, KERNEL), Partial(head, HEAD))


@pytest.fixture(scope='module')
def seen():
  """(map, gradient) of each image, float64 (h, w, K)."""
  result = layer_gradient(explain.tap(PAIR), IMAGES, TARGETS)
  arrays = [np.asarray(x, np.float64) for x in (result.features, result.gradients)]
  return list(zip(*arrays, strict=True))


def check(maps, expected, atol=1e-5):
  """Compares with maps at feature resolution before they are brought to size and range."""
  assert maps.shape == (2, 10, 8)
  for ours, small in zip(maps, expected, strict=True):
    big = np.asarray(explain.upsample(jnp.asarray(small[None], jnp.float32), (10, 8)))[0]
    np.testing.assert_allclose(ours, (big - big.min()) / (big.max() - big.min()), atol=atol)


def relu(x):
  return np.maximum(x, 0)


def grad_cam(a, g):
  return relu(sum(g[..., k].mean() * a[..., k] for k in range(6)))


def grad_cam_pp(a, g):
  total = 0
  for k in range(6):
    w = 0
    for i, j in np.ndindex(g.shape[:2]):
      # Equation 19, whose sum over the plane is that of A alone.
      below = 2 * g[i, j, k] ** 2 + a[..., k].sum() * g[i, j, k] ** 3
      w += g[i, j, k] ** 2 / below * relu(g[i, j, k]) if g[i, j, k] else 0
    total += w * a[..., k]
  return relu(total)


def xgrad_cam(a, g):
  return relu(sum(np.sum(g[..., k] * a[..., k] / a[..., k].sum()) * a[..., k] for k in range(6)))


def hires_cam(a, g):
  return relu(np.sum(g * a, axis=-1))


def layer_cam(a, g):
  return relu(np.sum(relu(g) * a, axis=-1))


@pytest.mark.parametrize('formula', [grad_cam, grad_cam_pp, xgrad_cam, hires_cam, layer_cam])
def test_formula(seen, formula):
  method = explain.METHODS[formula.__name__].fn
  check(method(PAIR, IMAGES, TARGETS), [formula(a, g) for a, g in seen])


# Two positions by two channels: A, and dS/dA, the same whatever A is.
HAND_A = np.array([[1.0, 1.0], [3.0, 1.0]], np.float32).reshape(1, 2, 1, 2)
HAND_G = np.array([[0.5, 0.3], [0.1, 0.3]], np.float32).reshape(1, 2, 1, 2)
HAND = {
  # Means .3 and .3: .3 + .3 and .9 + .3.
  explain.grad_cam: (0.6, 1.2),
  # 1 / (2 + 4 * .5) * .5 + 1 / (2 + 4 * .1) * .1 and 2 / (2 + 2 * .3) * .3: .16667 and .23077.
  explain.grad_cam_pp: (0.16667 + 0.23077, 0.5 + 0.23077),
  # (.5 * 1 + .1 * 3) / 4 and .6 / 2: .2 and .3.
  explain.xgrad_cam: (0.2 + 0.3, 0.6 + 0.3),
  explain.hires_cam: (0.5 + 0.3, 0.3 + 0.3),
  explain.layer_cam: (0.5 + 0.3, 0.3 + 0.3),
  # The first channel is worth .5 + .3, the second .3 + .3: .8 + .6 and 2.4 + .6.
  explain.ablation_cam: (0.8 + 0.6, 2.4 + 0.6),
}


def hand_case():
  """A pair, and its input: with a third position, of A and gradient 0.

  The least value is then 0 and nothing is shifted; the plane is a half larger, which Grad-CAM's
  mean alone notices, and that is a factor.
  """
  a, g = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (HAND_A, HAND_G))
  head = lambda g, a: jnp.stack([jnp.sum(g * a, (1, 2, 3)), 0 * a[:, 0, 0, 0]], 1)  # noqa: E731
  return (lambda x: 3 * x, Partial(head, g)), a / 3


@pytest.mark.parametrize('method', HAND, ids=lambda method: method.__name__)
def test_values_computed_by_hand(method):
  pair, images = hand_case()
  maps = np.asarray(method(pair, images, 0))[0, :, 0]
  expected = np.array([*HAND[method], 0])
  np.testing.assert_allclose(maps, expected / expected.max(), atol=1e-4)


def test_weights_of_grad_cam_pp_by_hand():
  """Up to a factor, here the largest gradient .5: .16667 and .23077, ratio .722."""
  weights = np.asarray(plus_plus_weights(jnp.asarray(HAND_A), jnp.asarray(HAND_G))).ravel()
  np.testing.assert_allclose(weights * 0.5, [0.16667, 0.23077], atol=1e-5)


@pytest.mark.parametrize('scale', [1e2, 1, 1e-2, 1e-3, 1e-4, 1e-15])
def test_grad_cam_pp_has_no_constant_of_its_own(scale):
  """Two channels, whose gradient is (1, 2) times a scale: equation 19 in double precision."""
  a = np.broadcast_to(np.array([1.0, 2.0]), (1, 2, 2, 2))
  g = np.broadcast_to(scale * np.array([1.0, 2.0]), a.shape)
  exact = 1 / (2 + a.sum((0, 1, 2)) * g[0, 0, 0]) * g[0, 0, 0]
  weights = plus_plus_weights(jnp.asarray(a, jnp.float32), jnp.asarray(g, jnp.float32)).ravel()
  np.testing.assert_allclose(weights[0] / weights[1], exact[0] / exact[1], rtol=1e-5)


def test_smooth_grad_cam_pp_shares_the_hand_case():
  pair, images = hand_case()
  maps = explain.smooth_grad_cam_pp(pair, images, 0, samples=3)
  expected = np.array([*HAND[explain.grad_cam_pp], 0])
  # The gradient is the same for every noisy copy; their scores differ, and that cancels.
  np.testing.assert_allclose(maps[0, :, 0], expected / expected.max(), atol=1e-4)


def test_xgrad_cam_of_a_channel_that_sums_to_zero():
  pair = (lambda x: x - x.mean((1, 2), keepdims=True), lambda a: a[:, 0, 0])
  maps = explain.xgrad_cam(pair, jnp.round(IMAGES * 8) * 0 + jnp.ones(3)[None, None, None])
  assert jnp.isfinite(maps).all() and explain.constant_maps(maps).all()


@pytest.mark.parametrize('shape', [(3, 2, 7), (5, 4, 3)])
def test_eigen_cam_is_the_first_singular_vector(shape):
  a = np.random.default_rng(0).normal(size=(2, *shape)) + 0.3
  ours = first_component(jnp.asarray(a * 1e25, jnp.float32))  # whose squares overflow
  for i in range(2):
    centred = a[i] - a[i].mean((0, 1))
    _, _, v = np.linalg.svd(centred.reshape(-1, shape[-1]), full_matrices=False)
    expected = centred @ v[0]
    expected *= np.sign(expected.ravel()[np.abs(expected).argmax()])
    scale = np.abs(expected).max() / np.abs(ours[i]).max()
    np.testing.assert_allclose(ours[i] * scale, expected, atol=1e-5)


def test_eigen_cam_lights_what_stands_out():
  """One corner differs, on maps of any sign and offset; a map without a component is empty."""
  for sign, offset in ((1, 0), (-1, 0), (1, -5), (-1, 5)):
    a = np.full((1, 4, 4, 3), offset, np.float32)
    a[0, 0, 1] += sign * np.float32([1, 2, 0.5])
    component = np.asarray(first_component(jnp.asarray(a)))[0]
    assert component.argmax() == 1
  constant = jnp.broadcast_to(jnp.array([0.1, -7.3, 1e3])[None, None, None], (1, 5, 4, 3))
  assert not first_component(constant).any()


def test_eigen_cam_does_not_depend_on_the_class(seen):
  maps = explain.eigen_cam(PAIR, IMAGES, TARGETS)
  check(maps, [np.asarray(first_component(jnp.asarray(a[None], jnp.float32)))[0] for a, _ in seen])
  np.testing.assert_array_equal(maps, explain.eigen_cam(PAIR, IMAGES))


@pytest.mark.parametrize('query_batch', [2, 32])
def test_ablation_cam(seen, query_batch):
  weights = np.asarray(HEAD, np.float64)
  score = lambda a: np.sum(np.tanh(a) * a, axis=(0, 1)) @ weights  # noqa: E731
  expected = []
  for (a, _), target in zip(seen, TARGETS.tolist(), strict=True):
    total = 0
    for k in range(6):
      without = a.copy()
      without[..., k] = 0
      total += (score(a)[target] - score(without)[target]) * a[..., k]
    expected.append(relu(total))
  check(explain.ablation_cam(PAIR, IMAGES, TARGETS, query_batch=query_batch), expected, 1e-4)


class Classified:
  """A classifier of our contract: a mean colour that normalisation turns into 0."""

  mean = (0.2, 0.5, 0.7)

  def __call__(self, x):
    return head(HEAD, features(KERNEL, x))


@pytest.mark.parametrize(('query_batch', 'variant'), [(4, 'paper'), (32, 'code')])
def test_score_cam_hides_behind_what_the_model_sees_as_zero(seen, query_batch, variant):
  point = explain.tap(PAIR)
  for mean in (None, Classified.mean):
    model = point if mean is None else type(point)(point.function, point.head, mean=mean)
    hidden = np.zeros(3) if mean is None else np.array(mean)
    expected = []
    for i, (a, _) in enumerate(seen):
      big = np.asarray(explain.upsample(jnp.asarray(np.moveaxis(a, -1, 0), jnp.float32), (10, 8)))
      masks = np.stack([(b - b.min()) / (b.max() - b.min()) for b in big])[..., None]
      masked = jnp.asarray(np.asarray(IMAGES[i]) * masks + hidden * (1 - masks), jnp.float32)
      weights = jax.nn.softmax(point(masked))[:, TARGETS[i]]
      if variant == 'paper':  # definition 3: less what the baseline has
        baseline = jnp.broadcast_to(jnp.asarray(hidden, jnp.float32)[None, None], (1, 10, 8, 3))
        weights = weights - jax.nn.softmax(point(baseline))[:, TARGETS[i]]
      expected.append(a @ np.asarray(weights, np.float64))
    maps = explain.score_cam(model, IMAGES, TARGETS, variant=variant, query_batch=query_batch)
    for ours, small in zip(maps, expected, strict=True):
      big = relu(np.asarray(explain.upsample(jnp.asarray(small[None], jnp.float32), (10, 8)))[0])
      np.testing.assert_allclose(ours, explain.min_max(jnp.asarray(big)), atol=1e-4)


def test_the_mean_colour_is_found():
  assert explain.tap(Classified()).mean == Classified.mean
  assert explain.tap(lambda x: x).mean is None


def test_smooth_grad_cam_pp_without_noise_is_grad_cam_pp(key):
  maps = explain.smooth_grad_cam_pp(PAIR, IMAGES, TARGETS, key=key, samples=2, noise=0.0)
  np.testing.assert_allclose(maps, explain.grad_cam_pp(PAIR, IMAGES, TARGETS), atol=1e-4)


def test_smooth_grad_cam_pp(key, seen):
  """Against sums over the same noise in float64, and independent of the batch."""
  options = dict(samples=3, noise=0.2)
  maps = explain.smooth_grad_cam_pp(PAIR, IMAGES, TARGETS, key=key, **options)
  one = explain.smooth_grad_cam_pp(PAIR, IMAGES, TARGETS, key=key, query_batch=1, **options)
  np.testing.assert_allclose(maps, one, atol=1e-5)
  point, i = explain.tap(PAIR), 1
  image = IMAGES[i]
  sums = np.zeros((3, *seen[i][0].shape))
  for n in range(3):
    noise = jax.random.normal(jax.random.fold_in(key, n), image.shape)
    noisy = image + 0.2 * (image.max() - image.min()) * noise
    result = layer_gradient(point, noisy[None], TARGETS[i:])
    g, y = np.asarray(result.gradients[0], np.float64), float(jnp.exp(result.logits[0, TARGETS[i]]))
    sums += [y * g / 3, y * g**2 / 3, y * g**3 / 3]
  first, second, third = sums
  a = seen[i][0]
  alpha = second / (2 * second + np.sum(a, axis=(0, 1)) * third)
  small = relu(np.sum(np.sum(alpha * relu(first), axis=(0, 1)) * a, axis=-1))
  check(maps[i : i + 1].repeat(2, 0), [small] * 2, 1e-3)
  other = explain.smooth_grad_cam_pp(PAIR, IMAGES, TARGETS, key=jax.random.key(9), **options)
  assert np.abs(other - maps).max() > 1e-3
  with pytest.raises(UserError, match='samples are 1 or more'):
    explain.smooth_grad_cam_pp(PAIR, IMAGES, key=key, samples=0)
