"""Perturbations of one model on another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_toys import CLASSES, SHAPE, data, linear, linear_model
from jax.tree_util import Partial

from rest_jax import attacks
from rest_jax.attacks.transferability import TransferMatrix
from rest_jax.errors import UserError

THREAT = attacks.Threat('linf', 0.05)


def halves(seed=0):
  """Two linear models that look at different halves of an image, with the same labels."""
  rng = np.random.default_rng(seed)
  weights = rng.normal(size=(2, *SHAPE, CLASSES))
  weights[0, :3] = weights[1, 3:] = 0
  upper, lower = weights.reshape(2, -1, CLASSES).astype(np.float32)
  images = rng.random((60, *SHAPE), np.float32)
  answers = [(images.reshape(60, -1) @ w).argmax(axis=1) for w in (upper, lower)]
  agreed = answers[0] == answers[1]
  return (
    [Partial(linear, jnp.asarray(w)) for w in (upper, lower)],
    images[agreed],
    answers[0][agreed],
  )


def test_models_of_different_pixels_share_no_perturbation(key):
  (upper, lower), images, labels = halves()
  assert len(labels) > 5
  matrix = attacks.transfer_matrix(
    {'upper': upper, 'lower': lower},
    images,
    labels,
    threat=THREAT,
    key=key,
    batch_size=4,
    attack='fgsm',
  )
  np.testing.assert_array_equal(matrix.clean_accuracy, [1, 1])
  assert matrix.success[0, 1] == matrix.success[1, 0] == 0
  assert matrix.success[0, 0] > 0 and matrix.success[1, 1] > 0
  np.testing.assert_allclose(matrix.robust_accuracy, 1 - matrix.success)
  assert '| upper | ' in matrix.markdown() and '| 0.00% |' in matrix.markdown()


def test_to_itself_it_is_the_white_box_attack(key):
  model = linear_model()
  images, labels = data(model, 10, wrong=2)
  found = attacks.transfer(model, model, images, labels, threat=THREAT, key=key, batch_size=4)
  known = attacks.mi_fgsm(model, images, labels, key=key, eps=THREAT.eps)
  np.testing.assert_array_equal(found.images, known)
  fooled = np.asarray(model(known)).argmax(axis=1) != labels
  np.testing.assert_array_equal(found.correct, np.arange(10) >= 2)
  np.testing.assert_array_equal(found.fooled_target, fooled & found.correct)
  np.testing.assert_array_equal(found.fooled_source, found.fooled_target)
  assert found.rate.value == found.fooled_target.sum() / 8


def test_scaled_weights_are_fooled_alike(key):
  model = linear_model()
  images, labels = data(model, 6)
  double = Partial(linear, 2 * model.args[0])
  found = attacks.transfer(double, model, images, labels, threat=THREAT, key=key, attack='fgsm')
  np.testing.assert_array_equal(found.fooled_source, found.fooled_target)
  assert found.fooled_target.any()


def test_an_evaluation_takes_a_transfer_as_black_box(tmp_path):
  model, images, labels = linear_model(), *data(linear_model(), 8)

  def run(source):
    attack = attacks.transfer_attack(source, 'fgsm')
    return attacks.evaluate(
      model,
      images,
      labels,
      attacks=['pgd', attack],
      only='black_box',
      threats=THREAT,
      key=jax.random.key(0),
      output_dir=tmp_path,
      check_health=False,
    )

  found = run(model)
  records = found.records[attacks.RunName('transfer', 'linf', THREAT.eps)]
  assert any(record.success for record in records.values())
  assert all(record.queries == 0 for record in records.values())
  assert run(model).rows == found.rows
  with pytest.raises(UserError, match='other settings: attacks'):
    run(linear_model(1))  # perturbations of another model are another attack


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(models={}), 'needs models'),
    (dict(attack='deepfool'), 'does not transfer'),
    (dict(targets=np.zeros(4, int)), 'targeted threat'),
    (dict(batch_size=0), 'batch_size'),
    (dict(labels=np.full(4, CLASSES)), 'labels are from 0'),
    (dict(images=np.full((4, *SHAPE), 2.0)), r'in \[0, 1\]'),
    (dict(labels=np.zeros(0, int), images=np.zeros((0, *SHAPE))), 'no images'),
    (dict(key='seed'), 'key'),
  ],
)
def test_bad_input(changes, message, key):
  images, labels = data(linear_model(), 4)
  given = dict(models={'a': linear_model()}, images=images, labels=labels, threat=THREAT, key=key)
  given |= changes
  with pytest.raises(UserError, match=message):
    attacks.transfer_matrix(given.pop('models'), given.pop('images'), given.pop('labels'), **given)


def test_a_model_that_is_right_nowhere_has_a_dash():
  success = np.array([[0.99999, np.nan], [1, np.nan]])
  shown = TransferMatrix(('a', 'b'), np.array([1.0, 0]), np.ones((2, 2)), success).markdown()
  assert '| a | 99.999% | - |' in shown and '| b | 100.00% | - |' in shown
