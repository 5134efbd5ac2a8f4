"""Models that give something else than logits of classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from rest_jax import attacks
from rest_jax.attacks.square_attack import Square
from rest_jax.errors import UserError

WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)
IMAGES = np.random.default_rng(1).uniform(0.4, 0.6, (5, 2, 2, 3)).astype(np.float32)
KEY = jax.random.key(0)
OPTIONS = {'key': KEY, 'eps': 0.1, 'steps': 10}


def decisions(weights, images):
  return (images - 0.5).reshape(images.shape[0], -1) @ weights


MODEL = Partial(decisions, WEIGHTS)
ONE = Partial(decisions, WEIGHTS[:, :1])
LABELS = np.asarray(ONE(IMAGES)[:, 0] > 0).astype(np.int32)


def of_two(images):
  logit = ONE(images)
  return jnp.concatenate([jnp.zeros_like(logit), logit], axis=1)


@pytest.mark.parametrize('name', ['pgd', 'apgd', 'deepfool', 'square'])
def test_one_logit_is_class_1_against_0(name):
  options = {'square': {'key': KEY, 'eps': 0.1, 'n_queries': 20}, 'deepfool': {}}
  options = options.get(name, OPTIONS)
  one, two = (getattr(attacks, name)(f, IMAGES, LABELS, **options) for f in (ONE, of_two))
  np.testing.assert_allclose(one, two, atol=1e-6)
  fooled = (np.asarray(ONE(one)[:, 0]) > 0) != LABELS
  assert fooled.any() if name == 'square' else fooled.all()


def test_one_logit_without_an_axis_is_evaluated():
  found = attacks.evaluate(
    lambda x: ONE(x)[:, 0],
    IMAGES,
    LABELS,
    threats=attacks.Threat('linf', '25/255'),
    key=KEY,
    attacks=['fgsm'],
    check_health=False,
  )
  assert found.rows[0].clean_accuracy.value == 1 and found.rows[0].robust_accuracy.value == 0
  assert '| 25/255 |' in found.report()
  with pytest.raises(UserError, match='from 0 to 1 for 2 classes'):
    attacks.fgsm(ONE, IMAGES, LABELS + 2, eps=0.1)


@pytest.mark.parametrize('name', ['fgsm', 'pgd', 'apgd'])
@pytest.mark.parametrize('loss', ['ce', 'margin'])
def test_any_wrong_decision_of_several_is_a_success(name, loss):
  labels = np.asarray(MODEL(IMAGES) > 0).astype(np.int32)
  options = {'eps': 0.1} if name == 'fgsm' else OPTIONS
  adv = getattr(attacks, name)(MODEL, IMAGES, labels, output='sigmoid', loss=loss, **options)
  wrong = (np.asarray(MODEL(adv)) > 0) != labels
  assert wrong.any(axis=1).all()
  assert np.abs(np.asarray(adv) - IMAGES).max() <= 0.1 + 1e-7


def test_a_loss_of_ones_own_of_any_outputs():
  def model(images):
    flat = images.reshape(images.shape[0], -1)
    return {'box': flat[:, :4], 'score': flat @ WEIGHTS[:, 0]}

  def loss(outputs, labels):
    return jnp.sum((outputs['box'] - labels['box']) ** 2, axis=1)

  labels = {'box': np.full((5, 4), 0.25, np.float32)}
  for attack in (attacks.pgd, attacks.apgd):
    adv = attack(model, IMAGES, labels, loss=loss, **OPTIONS)
    moved = (adv - IMAGES).reshape(5, -1)
    np.testing.assert_allclose(moved[:, :4], 0.1, atol=1e-3)
  adv = attacks.fgsm(model, IMAGES, labels, loss=loss, eps=0.1)
  np.testing.assert_allclose((adv - IMAGES).reshape(5, -1)[:, :4], 0.1, atol=1e-6)


@pytest.mark.parametrize(
  ('model', 'options', 'words'),
  [
    (lambda x: {'logits': MODEL(x)}, {}, r"lambda images: model\(images\)\['logits'\]"),
    (lambda x: (MODEL(x), x), {}, r'tuple of 2; lambda images: model\(images\)\[0\]'),
    (lambda x: MODEL(x)[:, :, None], {}, 'or one logit of a sigmoid'),
    (MODEL, {'loss': lambda z, y: jnp.sum(z)}, 'leave the mean over the batch out'),
    (MODEL, {'loss': lambda z, y: z['box']}, 'called as loss'),
    (MODEL, {'loss': lambda z, y: z[:, 0], 'targets': LABELS + 1}, 'leave out targets'),
    (MODEL, {'output': 'sigmoid'}, r'labels \(B, K\)'),
    (MODEL, {'output': 'tanh'}, 'unknown output'),
  ],
)
def test_what_cannot_be_attacked_is_one_line(model, options, words):
  with pytest.raises(UserError, match=words) as caught:
    attacks.pgd(model, IMAGES, LABELS, **OPTIONS, **options)
  assert '\n' not in str(caught.value)


WITHIN = {
  'fgsm': {'eps': 0.1},
  'pgd': {'eps': 0.1, 'steps': 4, 'restarts': 2},
  'mi_fgsm': {'eps': 0.1, 'steps': 3},
  'apgd': {'eps': 0.1, 'steps': 5},
  'cw': {'steps': 4, 'search_steps': 2},
  'deepfool': {'steps': 3},
}


@pytest.mark.parametrize('name', WITHIN)
def test_inside_jit_an_attack_finds_what_it_finds_outside(name):
  """Weights, images, labels and key are all traced; part of the images is wrong from the start."""
  attack, options = getattr(attacks, name), WITHIN[name]
  labels = np.asarray(MODEL(IMAGES)).argmax(axis=1).astype(np.int32)
  labels[0] = (labels[0] + 1) % 3

  def inside(weights, images, labels, key):
    return attack(Partial(decisions, weights), images, labels, key=key, **options)

  found = jax.jit(inside)(WEIGHTS, IMAGES, labels, KEY)
  expected = attack(MODEL, IMAGES, labels, key=KEY, **options)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert (np.asarray(MODEL(found)).argmax(axis=1) != labels).sum() > 1


@pytest.mark.parametrize('name', ['auto_attack', 'fab', 'square'])
def test_what_works_on_the_host_says_so_under_jit(name):
  attack = getattr(attacks, name)
  with pytest.raises(UserError, match='cannot be traced'):
    jax.jit(lambda x: attack(MODEL, x, LABELS, key=KEY, eps=0.1))(IMAGES)
  with pytest.raises(UserError, match='cannot be traced'):
    jax.jit(lambda w: attack(Partial(decisions, w), IMAGES, LABELS, key=KEY, eps=0.1))(WEIGHTS)


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: attacks.apgd(MODEL, IMAGES, LABELS, num_targets=2, **OPTIONS), 'num_targets'),
    (
      lambda: attacks.fab(MODEL, IMAGES, LABELS, key=KEY, targets=LABELS + 1, num_targets=2),
      'num_targets',
    ),
    (
      lambda: attacks.deepfool(MODEL, IMAGES, LABELS, targets=LABELS + 1, num_classes=3),
      'num_classes',
    ),
    (lambda: attacks.named_attack('pgd', stepz=3), 'did you mean steps'),
    (lambda: attacks.named_attack('pgd', eps=0.1), 'the threat'),
  ],
)
def test_no_option_is_ignored(call, words):
  with pytest.raises(UserError, match=words):
    call()


def test_square_towards_a_target_takes_the_loss_it_is_given():
  labels = np.asarray(MODEL(IMAGES)).argmax(axis=1).astype(np.int32)
  targets = (labels + 1) % 3
  options = {'key': KEY, 'eps': 0.3, 'n_queries': 60, 'targets': targets}
  adv = attacks.square(MODEL, IMAGES, labels, loss='margin', **options)
  assert (np.asarray(MODEL(adv)).argmax(axis=1) == targets).mean() > 0.5
  logits = jnp.asarray([[3.0, 1.0, 2.0]])
  for loss, value in [('margin', 2.0), ('ce', np.log(np.exp([3, 2]).mean() / np.e))]:
    algorithm = Square(targeted=True, loss=loss)
    state = algorithm.init(
      MODEL, IMAGES[:1], jnp.array([0]), jnp.ones(1), jax.random.split(KEY, 1), jnp.array([1])
    )
    found = algorithm.step(Partial(lambda x, z=logits: z), state).loss
    np.testing.assert_allclose(found, [value], rtol=1e-6)


@pytest.mark.parametrize('norm', ['l2', 'l1'])
@pytest.mark.parametrize('shape', [(40, 1), (64, 8), (1, 40), (5, 5)])
def test_square_takes_images_of_any_proportions(norm, shape):
  images = np.random.default_rng(0).uniform(0.4, 0.6, (1, *shape, 1)).astype(np.float32)
  weights = jnp.asarray(np.random.default_rng(1).normal(size=(images[0].size, 3)), jnp.float32)
  model = Partial(decisions, weights)
  labels = np.asarray(model(images)).argmax(axis=1).astype(np.int32)
  adv = attacks.square(model, images, labels, key=KEY, norm=norm, eps=1.0, n_queries=8)
  assert float(attacks.distances(adv, images, norm)[0]) <= 1 + 1e-5
