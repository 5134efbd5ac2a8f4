"""Group-CAM as augmentation: masks by hand, the share of a batch, the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn
from jax.tree_util import Partial

from rest_jax.errors import UserError
from rest_jax.explain.group_cams import group_cam
from rest_jax.train import optim, parallel, saliency, state, step


def test_blur_is_the_papers_at_its_size():
  assert saliency.blur_of(224) == (51, 50.0)
  size, sigma = saliency.blur_of(64)
  assert (size, sigma) == (15, pytest.approx(50 * 64 / 224))
  assert saliency.blur_of(8)[0] == 3


def test_masks_by_hand():
  maps = jnp.array([[[0.0, 1.0], [0.5, 0.1]], [[0.0, 0.0], [0.0, 0.0]]])  # the mean is 0.4
  expected = [[[0, 1], [1, 0]], [[1, 1], [1, 1]]]
  np.testing.assert_array_equal(saliency.binarise(maps)[..., 0], expected)


@pytest.fixture
def explained(config, tiny_net):
  """A model on images of 16 px, and the settings that explain its convolution."""
  config.data.image_size = 16
  config.augment.update(group_cam=0.4, group_cam_groups=4, group_cam_layer='conv')
  model = tiny_net()
  images = jnp.asarray(np.random.default_rng(0).random((5, 16, 16, 3)), jnp.float32)
  variables = drawn(model, images, train=False)

  def logits(variables, x):
    return model.apply(variables, x, train=False)

  return config, Partial(logits, variables), images


def test_a_share_is_blurred_outside_its_saliency(explained):
  config, classify, images = explained
  labels = jnp.array([0, 1, 2, 0, 1])
  blur = functools.partial(saliency.blur_background, augment=config.augment)
  out = jax.jit(blur)(classify, images, labels)
  np.testing.assert_array_equal(out[2:], images[2:])

  # The first two: of their own labels, not of what is predicted.
  size, sigma = saliency.blur_of(16)
  options = dict(layer='conv', groups=4, blur_size=size, blur_sigma=sigma)
  maps = np.asarray(group_cam(classify, images[:2], labels[:2], **options))
  mask = (maps >= maps.mean((1, 2), keepdims=True))[..., None]
  assert 0.05 < mask.mean() < 0.95
  kept = np.where(mask, np.asarray(images[:2]), np.asarray(out[:2]))
  np.testing.assert_array_equal(kept, out[:2])
  blurred = np.asarray(jax.jit(lambda x: saliency.gaussian_blur(x, size, sigma))(images[:2]))
  np.testing.assert_allclose(np.where(mask, blurred, np.asarray(out[:2])), blurred, atol=1e-6)
  assert float(jnp.abs(out[:2] - images[:2]).max()) > 0.1


def test_part_of_the_step(config, batch, tiny_net):
  """It changes what is trained on, on every device, and an unknown layer is one clear error."""
  optimizer = optim.make_optimizer(config.optim, lambda _: 0.01)
  mesh = parallel.make_mesh(jax.devices()[:2])

  def first_loss():
    create = parallel.replicate(
      lambda: state.create_state(tiny_net(), optimizer, jax.random.key(0), 8), mesh
    )
    one = step.make_train_step(tiny_net(), optimizer, lambda _: 0.01, config, 3)
    _, metrics = parallel.map_train_step(one, mesh)(create(), parallel.to_global(batch, mesh))
    return float(metrics['loss'])

  plain = first_loss()
  config.augment.update(group_cam=1.0, group_cam_groups=2, group_cam_layer='conv')
  changed = first_loss()
  assert np.isfinite(changed) and changed != plain
  config.augment.group_cam_layer = 'convv'
  with pytest.raises(UserError, match=r"no layer 'convv'; did you mean conv"):
    first_loss()
