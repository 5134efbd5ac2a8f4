"""Insertion and deletion against the Group-CAM authors' code and a plain loop."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import UserError
from rest_jax.explain.metrics import fill_images, insertion_deletion, step_at
from rest_jax.explain.metrics.faithfulness import area

GOLDEN = Path(__file__).parents[1] / 'golden'


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN / 'groupcam_small_cnn.npz') as file:
    return dict(file)


@pytest.fixture(scope='module')
def reference_order():
  """Pixels by decreasing saliency, as the reference run took them.

  Its masks are not a number anywhere (a constant group, divided by zero), so that this is how the
  NumPy of that run orders 4096 ties; other builds of NumPy may do it otherwise.
  """
  return np.load(GOLDEN / 'groupcam_insertion_order.npy').astype(int)


def network(golden):
  def run(x):
    for name in ('features.0', 'features.2'):
      kernel = golden[f'param/{name}.weight'].transpose(2, 3, 1, 0)
      x = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
      x = jax.nn.relu(x + golden[f'param/{name}.bias'][None, None, None])
    weight, bias = golden['param/fc.weight'], golden['param/fc.bias']
    return x.mean((1, 2)) @ weight.T + bias[None]

  return run


def check_against(golden, curves):
  for i in range(4):
    np.testing.assert_allclose(curves.insertion[i], golden[f'ins/curve/{i}'], atol=1e-5)
    np.testing.assert_allclose(curves.deletion[i], golden[f'del/curve/{i}'], atol=1e-5)
    np.testing.assert_allclose(curves.insertion_auc[i], golden[f'ins/auc/{i}'], atol=1e-5)
    np.testing.assert_allclose(curves.deletion_auc[i], golden[f'del/auc/{i}'], atol=1e-5)


def test_curves_of_the_authors_code(golden, reference_order):
  images = golden['input'].transpose(0, 2, 3, 1)
  maps = np.empty(64 * 64)
  maps[reference_order] = np.linspace(1, 0, 64 * 64)
  maps = np.broadcast_to(maps.reshape(64, 64), (4, 64, 64))
  model = network(golden)
  # Inside jit, where values are not looked at: these images are normalised, not in [0, 1].
  ask = lambda x, maps: insertion_deletion(  # noqa: E731
    model, x, maps, pixels_per_step=128, query_batch=100
  )
  check_against(golden, jax.jit(ask)(images, maps.astype(np.float32)))
  masks = np.stack([golden[f'mask/{i}'] for i in range(4)])
  with pytest.raises(UserError, match='map 0 is not finite'):
    insertion_deletion(model, np.clip(images, 0, 1), masks)


def brightness(x):
  """Two classes: how bright the left and the right half are."""
  half = x.shape[2] // 2
  return jnp.stack([x[:, :, :half].mean((1, 2, 3)), x[:, :, half:].mean((1, 2, 3))], 1) * 20


@pytest.fixture(scope='module')
def scenes():
  rng = np.random.default_rng(0)
  return (rng.uniform(size=(3, 6, 8, 3)).astype(np.float32), rng.uniform(size=(3, 6, 8)))


def test_plain_loop(scenes):
  images, maps = scenes
  targets, step = np.array([0, 1, 0]), 7
  got = insertion_deletion(
    brightness, images, maps, targets, pixels_per_step=step, insertion_fill='mean', query_batch=5
  )
  for i, (image, order) in enumerate(zip(images, np.argsort(-maps.reshape(3, -1)), strict=True)):
    inserted = np.broadcast_to(image.mean((0, 1)), image.shape).copy()
    deleted = image.copy()
    for k in range(8):
      scores = jax.nn.softmax(brightness(np.stack([inserted, deleted])))[:, targets[i]]
      np.testing.assert_allclose(scores, [got.insertion[i, k], got.deletion[i, k]], atol=1e-6)
      rows, columns = np.divmod(order[k * step : (k + 1) * step], 8)
      inserted[rows, columns], deleted[rows, columns] = image[rows, columns], 0
    assert got.insertion.shape == (3, 8)
  share = [*np.arange(7) * 7 / 48, 1]
  np.testing.assert_allclose(got.share, [share] * 3, rtol=1e-6)
  np.testing.assert_allclose(got.insertion_auc, np.trapezoid(got.insertion, share), rtol=1e-5)


def test_steps_of_both_variants(scenes):
  images, maps = scenes
  assert insertion_deletion(brightness, images, maps).deletion.shape == (3, 2)
  latest = insertion_deletion(brightness, images, maps, variant='latest')
  assert latest.deletion.shape == (3, 4)
  whole = jax.nn.softmax(brightness(images)).max(1)  # the predicted class
  np.testing.assert_allclose(latest.deletion[:, 0], whole, atol=1e-6)
  np.testing.assert_allclose(latest.insertion[:, -1], whole, atol=1e-6)


def test_batch_equals_single_images(scenes):
  images, maps = scenes
  together = insertion_deletion(brightness, images, maps, 1, pixels_per_step=6)
  assert together.share.shape == together.insertion.shape
  for i in range(3):
    alone = insertion_deletion(
      brightness, images[i : i + 1], maps[i : i + 1], 1, pixels_per_step=6, query_batch=4
    )
    for one, many in zip(alone, together, strict=True):
      np.testing.assert_allclose(one[0], many[i], atol=1e-6)


def test_area():
  curve, even, short = jnp.array([0.0, 1.0, 0.5]), jnp.array([0, 0.5, 1]), jnp.array([0, 0.8, 1])
  np.testing.assert_allclose(area(curve, even), (0 + 2 * 1 + 0.5) / 4)
  np.testing.assert_allclose(area(curve, short), 0.8 * 0.5 + 0.2 * 0.75, rtol=1e-6)


@pytest.mark.parametrize(('side', 'step'), [(9, 72), (9, 80), (12, 100), (10, 1), (5, 25), (5, 99)])
def test_a_linear_score_has_half_the_area_whatever_the_steps(side, step):
  """The share of white pixels, as pixels go from white to black and back."""
  images = np.ones((2, side, side, 3), np.float32)
  maps = np.random.default_rng(0).uniform(size=(2, side, side))
  curves = insertion_deletion(
    lambda x: x,
    images,
    maps,
    score=lambda x: x.mean((1, 2, 3)),
    pixels_per_step=step,
    insertion_fill='black',
  )
  np.testing.assert_allclose(curves.insertion, curves.share, atol=1e-6)
  np.testing.assert_allclose(curves.insertion_auc, 0.5, atol=1e-6)
  np.testing.assert_allclose(curves.deletion_auc, 0.5, atol=1e-6)


def corner(x):
  return jnp.stack([6 * x[:, :4, :4].mean((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1)


def test_a_constant_map_gets_what_a_random_order_gets():
  images = np.ones((1, 16, 16, 3), np.float32)
  ask = lambda maps: insertion_deletion(  # noqa: E731
    corner, images, maps, 0, pixels_per_step=16, insertion_fill='black'
  ).insertion_auc[0]
  rng = np.random.default_rng(0)
  random = [float(ask(rng.uniform(size=(1, 16, 16)))) for _ in range(30)]
  for constant in (np.zeros((1, 16, 16)), np.full((1, 16, 16), 0.3, np.float32)):
    assert abs(float(ask(constant)) - np.mean(random)) < 2.5 * np.std(random)
  one_by_one = np.arange(256.0).reshape(1, 16, 16)  # in reading order, as ties used to go
  assert abs(float(ask(-one_by_one)) - np.mean(random)) > 2.5 * np.std(random)


def test_curves_inside_jit_are_the_same(scenes):
  images, maps = scenes
  maps = np.round(3 * maps) / 3  # with ties
  ask = lambda images, maps: insertion_deletion(  # noqa: E731
    brightness, images, maps, 1, pixels_per_step=6
  )
  outside = ask(images, maps.astype(np.float32))
  for one, other in zip(jax.jit(ask)(images, maps.astype(np.float32)), outside, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


class Normalised:
  """What a classifier tells about itself."""

  mean = (0.5, 0.25, 0.125)

  def __call__(self, x):
    return brightness(x)


def test_fills(scenes):
  images = jnp.asarray(scenes[0])
  zero = fill_images(Normalised(), images, 'zero')
  np.testing.assert_array_equal(zero[1, 2, 3], np.float32(Normalised.mean))
  assert not fill_images(brightness, images, 'zero').any()
  assert not fill_images(Normalised(), images, 'black').any()
  np.testing.assert_allclose(
    fill_images(brightness, images, 'mean')[0, 4, 5], images[0].mean((0, 1)), rtol=1e-5
  )
  np.testing.assert_allclose(fill_images(brightness, images, 'blur').shape, images.shape)
  np.testing.assert_array_equal(
    fill_images(brightness, images, [0.0, 0.5, 1.0])[2, 0, 0], [0, 0.5, 1]
  )
  np.testing.assert_array_equal(fill_images(brightness, images, images[1])[2], images[1])


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'variant': 'old'}, "got 'old'"),
    ({'pixels_per_step': 4, 'variant': 'latest'}, 'leave it or pixels_per_step out'),
    ({'pixels_per_step': 0}, 'whole number from 1, not 0'),
    ({'pixels_per_step': 1.7}, 'whole number from 1, not 1.7'),
    ({'query_batch': 0}, 'query_batch'),
    ({'insertion_fill': 'snow'}, "'snow'; there are blur"),
    ({'deletion_fill': np.zeros(4)}, 'give a colour'),
    ({'targets': 2}, 'no class 2'),
  ],
)
def test_bad_options(scenes, options, words):
  with pytest.raises(UserError, match=words):
    insertion_deletion(brightness, *scenes, **options)


def test_maps_of_another_shape(scenes):
  with pytest.raises(UserError, match=r'maps \(3, 6, 7\) do not fit'):
    insertion_deletion(brightness, scenes[0], scenes[1][:, :, 1:])


@pytest.mark.parametrize(
  'size, paper, latest', [(224, 224 * 8, 224 * 2), (64, 147, 37), (32, 37, 10)]
)
def test_as_many_steps_at_any_size(size, paper, latest):
  assert (step_at((size, size, 3)), step_at((size, size), 'latest')) == (paper, latest)
