"""Gradient methods against closed forms, and the axioms they are known for."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rest_jax import UserError, explain
from rest_jax.explain import queries
from rest_jax.explain.checking import Incomplete
from rest_jax.explain.path_gradients import nested_places
from rest_jax.explain.queries import target_gradients
from rest_jax.ops.platform import use_form

FEW = {'smooth_integrated_gradients': {'samples': 64, 'noise': 0.01}}
METHODS = ('gradient', 'smooth_grad', 'integrated_gradients', 'smooth_integrated_gradients')
MEAN = (0.4, 0.5, 0.6)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).uniform(size=(3, 5, 6, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def weights():
  return np.random.default_rng(1).normal(size=(5, 6, 3, 4)).astype(np.float32)


@pytest.fixture(scope='module')
def quadratic(weights):
  """Logits sum(w x^2) / 2, whose gradient is w x."""

  def model(x):
    return jnp.einsum('bhwc,hwck->bk', x**2, weights, precision='highest') / 2

  return model


@pytest.fixture(scope='module')
def network(weights):
  """Two layers that are neither linear nor polynomial."""

  def model(x):
    return jnp.einsum('bhwc,hwck->bk', jnp.tanh(2 * x - 1) * jax.nn.softplus(x), weights)

  return model


def normalised(maps):
  low, high = (f(maps, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
  return (maps - low) / (high - low)


@pytest.mark.parametrize('reduction', ['max', 'sum'])
def test_gradient_of_a_quadratic(images, weights, quadratic, reduction):
  targets = np.array([2, 0, 3])
  expected = np.abs(np.moveaxis(weights, -1, 0)[targets] * images)
  expected = normalised(expected.max(-1) if reduction == 'max' else expected.sum(-1))
  got = explain.gradient(quadratic, images, targets, reduction=reduction, query_batch=2)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_predicted_class_is_the_default(images, network):
  predicted = np.asarray(network(images)).argmax(1)
  assert len(set(predicted.tolist())) > 1
  for name in METHODS:
    method = explain.METHODS[name].fn
    maps = [method(network, images, targets, **FEW.get(name, {})) for targets in (None, predicted)]
    np.testing.assert_allclose(*maps, atol=1e-5)


@pytest.mark.parametrize('baseline', ['black', 'zero', 'mean', 'blur', (0.1, 0.9, 0.3)])
def test_completeness(images, network, baseline):
  class Model:
    mean = MEAN

    def __call__(self, x):
      return network(x)

  targets = np.array([1, 0, 3])
  attributions = explain.integrated_gradient_attributions(
    Model(), images, targets, baseline=baseline, steps=20, query_batch=7
  )
  start = explain.metrics.fill_images(Model(), jnp.asarray(images), baseline)
  gained = np.take_along_axis(np.asarray(network(images) - network(start)), targets[:, None], 1)
  np.testing.assert_allclose(attributions.sum((1, 2, 3)), gained[:, 0], atol=2e-5)


def test_two_steps_are_exact_for_a_cubic(images):
  def cubic(x):
    return jnp.stack([jnp.sum(x**3, (1, 2, 3)), jnp.sum(x, (1, 2, 3))], 1)

  got = explain.integrated_gradient_attributions(cubic, images, 0, steps=2)
  np.testing.assert_allclose(got, images**3, atol=1e-6)


class Kinks:
  """ReLUs that open one after another along the way from black: 32 points miss their kinks."""

  def __call__(self, x):
    bias = jnp.linspace(0.01, 0.3, 40)
    opened = (
      jax.nn.relu(x.mean((1, 2, 3))[:, None] - bias[None]) * jnp.sign(jnp.sin(200 * bias))[None]
    )
    return jnp.stack([400 * opened.sum(1), 0 * x[:, 0, 0, 0]], 1)


@pytest.mark.parametrize('name', ['integrated_gradients', 'smooth_integrated_gradients'])
def test_steps_are_added_until_the_sum_is_complete(images, name):
  model, target = Kinks(), 0
  options = {} if name == 'integrated_gradients' else {'noise': 0.0}
  found = explain.explain(model, images, name, target, **options)
  gain = np.asarray(model(images) - model(0 * images))[:, target]
  assert (np.asarray(found.delta) <= 0.05).all()
  np.testing.assert_allclose(found.values.sum((1, 2)), gain, rtol=0.051)
  fixed = {'steps': 1} if name == 'integrated_gradients' else {'noise': 0.0, 'samples': 1}
  with pytest.warns(Incomplete, match=f'{name}: the attributions of .* miss .* after 1 gradients'):
    few = explain.explain(model, images, name, target, **fixed)
  assert few.delta.max() > 0.05 and few.queries < found.queries
  with pytest.warns(Incomplete):
    explain.METHODS[name].fn(model, images, target, **fixed)


def test_a_gain_of_almost_nothing_is_measured_by_the_scores(images):
  """100 for the image and the baseline: a relative error of that difference means nothing."""

  def model(x):
    return 100 + 1e-5 * jnp.stack([x.mean((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1)

  assert explain.explain(model, images, 'integrated_gradients', 0).delta.max() < 0.05


def test_smooth_grad_without_noise_is_the_gradient(images, network):
  np.testing.assert_allclose(
    explain.smooth_grad(network, images, noise=0.0, samples=3),
    explain.gradient(network, images),
    atol=1e-5,
  )


def test_smooth_grad_of_a_quadratic(images, weights, quadratic, key):
  """The mean of w (x + s z): the noise's mean is part of the result and known from its keys."""
  samples, noise, targets = 5, 0.3, np.array([0, 1, 2])
  draws = np.stack(
    [jax.random.normal(jax.random.fold_in(key, n), (5, 6, 3)) for n in range(samples)]
  )
  spread = noise * (images.max((1, 2, 3)) - images.min((1, 2, 3)))[:, None, None, None]
  copies = images[None] + spread[None] * draws[:, None]
  gradients = np.moveaxis(weights, -1, 0)[targets][None] * copies
  options = dict(key=key, samples=samples, noise=noise, query_batch=4)
  got = explain.smooth_grad(quadratic, images, targets, **options)
  np.testing.assert_allclose(got, normalised(np.abs(gradients.mean(0)).max(-1)), atol=1e-5)
  got = explain.smooth_grad(quadratic, images, targets, squared=True, **options)
  np.testing.assert_allclose(got, normalised((gradients**2).mean(0).max(-1)), atol=1e-5)


def test_smooth_integrated_gradients_of_a_quadratic(images, weights, quadratic, key):
  """Each sample: way * w * point, the point a share of the way to a noisy image."""
  samples, noise = 6, 0.2
  draws = np.stack(
    [jax.random.normal(jax.random.fold_in(key, n), (5, 6, 3)) for n in range(samples)]
  )
  spread = noise * (images.max((1, 2, 3)) - images.min((1, 2, 3)))[:, None, None, None]
  start = np.float32(0.5)
  ways = images[None] + spread[None] * draws[:, None] - start
  shares = ((np.arange(samples) + 0.5) / samples)[:, None, None, None, None]
  parts = ways * weights[None, None, ..., 1] * (start + shares * ways)
  options = dict(samples=samples, noise=noise, baseline=0.5, query_batch=5)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', Incomplete)  # of six samples; see below
    got = explain.explain(quadratic, images, 'smooth_integrated_gradients', 1, key=key, **options)
  np.testing.assert_allclose(got.maps, normalised(np.abs(parts.mean(0)).sum(-1)), atol=1e-5)
  np.testing.assert_allclose(got.values, parts.mean(0).sum(-1), atol=1e-5)
  ends = np.asarray([quadratic(start + way)[:, 1] for way in ways]).mean(0)
  gain = ends - np.asarray(quadratic(0 * images + start))[:, 1]
  missed = np.abs(parts.mean(0).sum((1, 2, 3)) - gain) / np.abs(gain)
  np.testing.assert_allclose(got.delta, missed, rtol=1e-3)
  assert got.queries == 2 + 3 * samples


def test_samples_that_are_added_lie_between_those_before(images, weights, quadratic, key):
  """The default's places and noises by hand, where the first 64 are not complete but 256 are."""
  noise, start, image = 0.3, np.float32(0.5), images[:1]
  options = dict(noise=noise, baseline=0.5, query_batch=24)
  got = explain.explain(quadratic, image, 'smooth_integrated_gradients', 3, key=key, **options)
  samples = (got.queries - 2) // 3
  assert samples == 256
  places: list[float] = []
  for cells in (32, 64, 128):
    thirds = {round((cell + side / 3) / cells, 6) for cell in range(cells) for side in (1, 2)}
    assert thirds > {*places}
    places += sorted(thirds - {*places})
  draws = jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), (5, 6, 3)))
  ways = image + noise * np.ptp(image) * np.asarray(draws(np.arange(samples))) - start
  parts = ways * weights[None, ..., 3] * (start + np.array(places)[:, None, None, None] * ways)
  np.testing.assert_allclose(got.values[0], parts.mean(0).sum(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('first', [2, 6, 64])
def test_places_are_nested_and_of_second_order(first):
  most = 8 * first
  places = np.asarray(nested_places(jnp.arange(most), first), np.float64)
  assert len({*np.round(places, 6)}) == most and 0 < places.min() < places.max() < 1
  for count in (first, 2 * first, 4 * first, most):
    taken = np.sort(places[:count]) * count / 2  # in cells
    np.testing.assert_allclose(taken % 1, np.tile([1 / 3, 2 / 3], count // 2), atol=1e-4)
    np.testing.assert_allclose(places[:count].mean(), 1 / 2, atol=1e-6)  # exact for lines
    np.testing.assert_allclose((places[:count] ** 2).mean(), 1 / 3, atol=0.4 / count**2)


@pytest.mark.parametrize('name', METHODS)
def test_batch_equals_single_images(name, images, network, key):
  method = explain.METHODS[name]
  options = {**({'key': key} if method.needs_key else {}), **FEW.get(name, {})}
  together = method.fn(network, images, 2, **options)
  for i in range(len(images)):
    alone = method.fn(network, images[i : i + 1], 2, query_batch=3, **options)
    np.testing.assert_allclose(alone[0], together[i], atol=2e-5)
  assert together.shape == images.shape[:3]
  assert together.dtype == jnp.float32


def test_another_key_is_another_noise(images, network):
  a, b = (explain.smooth_grad(network, images, key=jax.random.key(k), samples=2) for k in (0, 1))
  assert np.abs(a - b).max() > 1e-2


def test_linear_model_has_a_constant_map(images):
  def model(x):
    return jnp.stack([jnp.sum(x, (1, 2, 3)), -jnp.sum(x, (1, 2, 3))], 1)

  maps = explain.gradient(model, images)
  assert not maps.any() and explain.constant_maps(maps).all()


def test_gradient_is_of_the_logit(images, network):
  got = target_gradients(network, jnp.asarray(images), jnp.array([1, 1, 1]))
  step = 1e-2 * np.eye(1, images[0].size, 17).reshape(images.shape[1:]).astype(np.float32)
  numeric = (network(images + step[None]) - network(images - step[None]))[:, 1] / 2e-2
  np.testing.assert_allclose(got.reshape(3, -1)[:, 17], numeric, rtol=1e-2)


@pytest.mark.parametrize(
  ('name', 'options', 'words'),
  [
    ('gradient', {'reduction': 'mean'}, "got 'mean'"),
    ('integrated_gradients', {'steps': 0}, 'got 0'),
    ('integrated_gradients', {'baseline': 'red'}, "'red'"),
    ('smooth_grad', {'samples': 0}, 'got 0 and'),
    ('smooth_integrated_gradients', {'noise': -1.0}, 'and -1'),
    ('gradient', {'targets': 9}, 'no class 9'),
    ('gradient', {'query_batch': 0}, 'query_batch'),
  ],
)
def test_bad_options(images, network, name, options, words):
  with pytest.raises(UserError, match=words):
    explain.METHODS[name].fn(network, images, **options)


@pytest.mark.parametrize('name', ['guided_backprop', 'rise', 'integrated_gradients'])
def test_images_shared_out_over_devices(name):
  """Inside shard_map each device explains its own images: the same maps."""

  def model(x):
    return jnp.mean(jax.nn.relu(x @ mix) ** 2, (1, 2))

  mix = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
  images = np.random.default_rng(1).uniform(size=(4, 5, 5, 3)).astype(np.float32)
  targets = np.arange(4, dtype=np.int32)
  options = {'masks': 6} if name == 'rise' else {}

  def maps(x, classes):
    return explain.METHODS[name].fn(model, x, classes, **options)

  mesh = Mesh(np.asarray(jax.devices()), ('batch',))
  shared = jax.shard_map(maps, mesh=mesh, in_specs=P('batch'), out_specs=P('batch'))
  np.testing.assert_allclose(jax.jit(shared)(images, targets), maps(images, targets), atol=5e-5)


def _convolve(x, kernel):
  kinds = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=kinds)


def test_gradients_are_those_of_convolutions_that_stay_fast_in_loops():
  """A stranger's gradient keeps its kernel in XLA's slow layout (benchmarks/NOTES.md)."""
  first, second = (jax.random.normal(jax.random.key(k), (3, 3, 3, 3)) for k in (1, 2))
  images = jax.random.uniform(jax.random.key(0), (2, 6, 6, 3))
  pair = (lambda x: _convolve(x, first), lambda a: _convolve(jnp.sin(a), second).mean((1, 2)))
  point = explain.tap(pair)
  ask = {
    'image': lambda x: queries.target_gradients(point, x, None),
    'layer': lambda x: queries.layer_gradient(point, x, None).gradients,
  }
  for name, gradients in ask.items():
    with use_form('plain'):
      expected, slow = jax.jit(gradients)(images), str(jax.make_jaxpr(gradients)(images))
    # A new function, for the form is no part of jit's key.
    quick = lambda x, gradients=gradients: gradients(x)  # noqa: E731
    with jax.checking_leaks(), use_form('fast'):
      found, fast = jax.jit(quick)(images), str(jax.make_jaxpr(quick)(images))
    np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)
    transposed = 'rhs_spec=(2, 3, 0, 1)'
    assert transposed in slow and transposed not in fast, name
