"""What belongs to one image stays with it: fills, keys and queries, in batches of any size."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rest_jax import UserError, explain
from rest_jax.explain import methods
from rest_jax.explain.group_cams import in_order, made_groups
from rest_jax.explain.path_gradients import STEPS
from rest_jax.models import predictions

SIDE, COUNT = 8, 5
KERNEL = np.random.default_rng(1).normal(size=(3, 10)).astype(np.float32)


class Toy:
  """A pair of a layer and a head, which knows how pictures are resized."""

  config = SimpleNamespace(input_size=SIDE, resize='resize_crop', crop_pct=1.0)

  def __call__(self, images):
    return jnp.tanh(3 * images @ KERNEL).mean((1, 2))

  def preprocess(self, image):
    return predictions.preprocess(image, size=SIDE, crop_pct=1.0)

  def views(self, pictures):
    return [predictions.View(self, source) for source in predictions.expand(pictures)]


TOY = Toy()
PAIR = (lambda x: jax.nn.relu(x @ KERNEL), lambda a: jnp.tanh(a).mean((1, 2)))
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
IMAGES = np.concatenate([TOY.preprocess(Image.fromarray(p)) for p in PIXELS])
FILLS = RNG.uniform(size=IMAGES.shape).astype(np.float32)
FILLED = {
  'occlusion': ('fill', {}),
  'rise': ('fill', {'masks': 4}),
  'integrated_gradients': ('baseline', {'steps': 16}),
  'smooth_integrated_gradients': ('baseline', {'samples': 16, 'noise': 0.0}),
}


@pytest.fixture
def pictures(monkeypatch):
  monkeypatch.setattr(methods, '_TOGETHER', 2)
  return [Image.fromarray(p) for p in PIXELS]


@pytest.mark.filterwarnings('ignore::rest_jax.explain.checking.Incomplete')
@pytest.mark.parametrize('name', FILLED)
def test_a_batch_of_fills_goes_with_its_images(name, pictures):
  option, more = FILLED[name]
  ask = lambda images, fill: explain.explain(TOY, images, name, 1, **{option: fill}, **more)  # noqa: E731
  alone = [ask(IMAGES[i : i + 1], FILLS[i : i + 1]).maps[0] for i in range(COUNT)]
  for images in (IMAGES, pictures):
    np.testing.assert_allclose(ask(images, FILLS).maps, alone, atol=1e-3)
    one = ask(images, FILLS[:1]).maps  # for all of them
    np.testing.assert_allclose(one, ask(images, FILLS[0]).maps, atol=1e-3)
    for wrong in (FILLS[:2], FILLS[:4]):
      with pytest.raises(UserError, match=r'fill of shape|rows for 5 images'):
        ask(images, wrong)


class Tapped(Toy):
  """With a layer, as a Linen model has one."""

  def __call__(self, images):
    return MODULE.apply(VARIABLES, images)


def _module():
  import flax.linen as nn

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.Conv(6, (3, 3), name='stage1')(x))
      return nn.Dense(3)(jnp.tanh(x).mean((1, 2)))

  module = Net()
  return module, module.init(jax.random.key(0), IMAGES)


MODULE, VARIABLES = _module()


def test_keys_go_with_their_images(pictures):
  model, keys = Tapped(), jax.random.split(jax.random.key(3), COUNT)

  def ask(images, key):
    options = dict(key=key, samples=2, layer='stage1')
    return explain.explain(model, images, 'smooth_grad_cam_pp', 1, **options).maps

  alone = [ask(IMAGES[i : i + 1], keys[i])[0] for i in range(COUNT)]
  for images in (IMAGES, pictures):
    np.testing.assert_allclose(ask(images, keys), alone, atol=1e-5)
    old = jax.random.PRNGKey(7)  # two numbers, which are no keys of two images
    np.testing.assert_allclose(ask(images[:2], old), ask(images[:2], jax.random.key(7)), atol=1e-5)
    with pytest.raises(UserError, match=r'one for each of 5 images|rows for 5 images'):
      ask(images, keys[:2])


@pytest.mark.parametrize('name', ['rise', 'smooth_grad', 'smooth_integrated_gradients'])
def test_what_draws_the_same_for_all_takes_one_key(name):
  with pytest.raises(UserError, match=f'{name} takes one key for all images, got keys of shape'):
    explain.explain(TOY, IMAGES, name, key=jax.random.split(jax.random.key(3), COUNT))


@pytest.mark.filterwarnings('ignore::rest_jax.explain.checking.Incomplete')
@pytest.mark.parametrize('name', ['integrated_gradients', 'smooth_integrated_gradients'])
def test_queries_of_an_image_do_not_depend_on_its_neighbours(name, pictures):
  images = IMAGES * np.array([1, 0.02, 1, 0.3, 0.1], np.float32)[:, None, None, None]
  ask = lambda images: explain.explain(TOY, images, name, 1)  # noqa: E731
  alone = [ask(images[i : i + 1]).queries for i in range(COUNT)]
  together = ask(images)
  assert list(together.image_queries) == alone and together.queries == np.ceil(np.mean(alone))
  assert min(alone) >= 2 + 2 * STEPS
  seen = ask(pictures)
  assert len(seen.image_queries) == COUNT and seen.queries == np.ceil(np.mean(seen.image_queries))


@pytest.mark.parametrize('groups', [1, 3, 4, 6, 7, 10, 32])
def test_the_groups_that_are_made_are_counted(groups):
  made = len(set(in_order(10, groups)))
  assert made_groups(channels=10, groups=groups) == made
  found = explain.explain(PAIR, IMAGES, 'group_cam', groups=groups)
  assert found.queries == made + 3 and (np.asarray(found.image_queries) == made + 3).all()
