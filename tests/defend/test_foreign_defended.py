"""Defences in front of models other than ours: one logit, other outputs, mutable modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defence_toys import SHAPE, fading, rounding
from flax import nnx

from rest_jax import attacks, defend
from rest_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('alone')
KEY = jax.random.key(0)
WEIGHTS = np.random.default_rng(0).normal(size=int(np.prod(SHAPE))).astype(np.float32)
IMAGES = np.random.default_rng(1).random((12, *SHAPE), np.float32)


def score(images):
  return (images - 0.5).reshape(images.shape[0], -1) @ WEIGHTS


def column(images):
  return score(images)[:, None]


def pair(images):
  """The same decision as of one logit, of two classes."""
  return jnp.stack([jnp.zeros(images.shape[0]), score(images)], axis=1)


LABELS = (np.asarray(score(IMAGES)) > 0).astype(np.int32)


def evaluate(model):
  return defend.evaluate_defences(
    model,
    IMAGES,
    LABELS,
    {'fading': fading(0.5), 'rounding': rounding(0.95)},
    threats=attacks.Threat('linf', 0.05),
    attack='fgsm',
    key=KEY,
    check_health=False,
  ).rows


@pytest.mark.parametrize('one_logit', [score, column])
def test_one_logit_is_two_classes(one_logit):
  rows = evaluate(one_logit)
  assert rows == evaluate(pair)
  assert rows[0].clean.value == 1 and rows[0].worst.value < 1
  adv = np.asarray(attacks.fgsm(pair, IMAGES, LABELS, key=KEY, eps=0.1))
  one, two = (
    defend.noise_study(model, IMAGES, LABELS, adv, {'fading': fading()}, bands=2).to_dict()
    for model in (one_logit, pair)
  )
  np.testing.assert_equal(one, two)


@pytest.mark.parametrize(
  'run',
  [evaluate, lambda model: defend.noise_study(model, IMAGES, LABELS, IMAGES, {}, bands=2)],
)
def test_outputs_that_are_no_logits_are_one_line_with_the_cure(run):
  with pytest.raises(UserError, match=r"a dict of 'logits'.*model\(images\)\['logits'\]"):
    run(lambda images: {'logits': pair(images)})
  with pytest.raises(UserError, match=r'a tuple of 2.*model\(images\)\[0\]'):
    run(lambda images: (pair(images), images))


def test_a_defended_mutable_module_is_seen_as_it_is_now():
  class Net(nnx.Module):
    def __init__(self):
      self.head = nnx.Linear(len(WEIGHTS), 3, rngs=nnx.Rngs(0))

    def __call__(self, images):
      return self.head(images.reshape(images.shape[0], -1))

  net = Net()
  before = np.asarray(defend.protect(net.__call__, fading(0.5))(IMAGES))
  nnx.update(net, jax.tree.map(lambda leaf: 2 * leaf, nnx.state(net)))
  for model in (net, net.__call__):
    after = np.asarray(defend.protect(model, fading(0.5))(IMAGES))
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5)
  with pytest.raises(UserError, match='encloses the mutable module'):
    defend.protect(lambda images: net(images), fading(0.5))
