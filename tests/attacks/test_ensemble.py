"""AutoAttack: a cascade whose every claim is checked on the images that it returns."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from rest_jax import attacks
from rest_jax.attacks import slots
from rest_jax.attacks.ensemble import MEMBERS, VERSIONS, member
from rest_jax.errors import UserError

ORDERS = {'linf': np.inf, 'l2': 2, 'l1': 1}
EPS = {'linf': 0.03, 'l2': 0.15, 'l1': 0.6}
BATCH = 8


def network(params, images):
  hidden = jax.nn.relu(images.reshape(-1, 32) @ params[0])
  return hidden @ params[1]


def problem(count: int = 12, classes: int = 5):
  """A random two-layer network, images, and its labels but for two images."""
  numbers = np.random.default_rng(0)
  shapes = ((4 * 4 * 2, 16), (16, classes))
  params = [jnp.asarray(numbers.normal(size=shape), jnp.float32) for shape in shapes]
  model = Partial(network, params)
  images = numbers.uniform(size=(count, 4, 4, 2)).astype(np.float32)
  labels = np.argmax(np.asarray(model(jnp.asarray(images))), axis=1)
  labels[:2] = (labels[:2] + 1) % classes
  return model, images, labels


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
  """Fewer steps than published, the same programs: the suite has minutes, not hours."""
  # The package's attribute of this name is the function.
  module = sys.modules['rest_jax.attacks.ensemble']
  apgd, fab, square = module.APGD, module.FAB, module.Square
  monkeypatch.setattr(module, 'APGD', lambda **k: apgd(steps=10, **k))
  monkeypatch.setattr(module, 'FAB', lambda **k: fab(steps=10, **k))
  monkeypatch.setattr(module, 'Square', lambda **k: square(n_queries=60, **k))


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_report_says_what_the_images_do(key, norm):
  model, images, labels = problem()
  report = attacks.auto_attack_report(
    model, images, labels, key=key, norm=norm, eps=EPS[norm], query_batch=BATCH
  )
  adv = np.asarray(report.images)
  moved = np.linalg.norm((adv.astype(float) - images).reshape(12, -1), ORDERS[norm], axis=1)
  assert moved.max() <= EPS[norm] and adv.min() >= 0 and adv.max() <= 1
  right = np.argmax(np.asarray(model(adv)), axis=1) == labels
  np.testing.assert_array_equal(right, report.robust)
  np.testing.assert_array_equal(moved > 0, report.correct & ~report.robust)
  np.testing.assert_array_equal([bool(name) for name in report.fooled_by], moved > 0)
  assert report.clean_accuracy == pytest.approx(10 / 12)
  assert 0 < report.robust_accuracy < report.clean_accuracy
  left = 10
  for record in report.records:
    assert record.attacked == left
    left -= record.fooled
    assert record.robust_accuracy == pytest.approx(left / 12)
    assert report.fooled_by.count(record.attack) == record.fooled
  assert [record.attack for record in report.records] == list(VERSIONS['standard'])
  assert all(record.rows >= record.steps > 0 < record.seconds for record in report.records)


def test_same_key_same_result_and_nothing_compiled_again(key):
  model, images, labels = problem()
  options = dict(key=key, eps=EPS['linf'], query_batch=BATCH)
  first = attacks.auto_attack(model, images, labels, **options)
  compiled = slots._segment._cache_size()
  np.testing.assert_array_equal(first, attacks.auto_attack(model, images, labels, **options))
  # Another radius, other weights and another number of images are data.
  other = jax.tree.map(lambda x: x * 1.5, model)
  attacks.auto_attack(other, images[:7], labels[:7], **{**options, 'eps': 0.01})
  assert slots._segment._cache_size() == compiled


def test_an_attack_alone_does_what_it_does_in_the_cascade(key):
  model, images, labels = problem()
  options = dict(key=key, eps=EPS['linf'], query_batch=BATCH)
  whole = attacks.auto_attack_report(model, images, labels, **options)
  alone = attacks.auto_attack_report(model, images, labels, attacks='apgd_ce', **options)
  hit = np.asarray([name == 'apgd_ce' for name in whole.fooled_by])
  np.testing.assert_array_equal(hit, alone.correct & ~alone.robust)
  np.testing.assert_array_equal(whole.images[hit], alone.images[hit])
  one = attacks.auto_attack_report(
    model, images[3:4], labels[3:4], **{**options, 'key': jax.random.split(key, 1)}
  )
  assert one.images.shape == (1, 4, 4, 2)
  assert one.robust[0] == whole.robust[3]


def test_nothing_to_attack_returns_at_once(key, monkeypatch):
  model, images, labels = problem()
  monkeypatch.setattr(slots, '_segment', None)
  wrong = (np.argmax(np.asarray(model(images)), axis=1) + 1) % 5
  report = attacks.auto_attack_report(model, images, wrong, key=key, eps=0.1, query_batch=BATCH)
  assert report.records == () and report.clean_accuracy == report.robust_accuracy == 0
  np.testing.assert_array_equal(report.images, images)
  still = attacks.auto_attack(model, images, labels, key=key, eps=0.0, query_batch=BATCH)
  np.testing.assert_array_equal(still, images)
  none = attacks.auto_attack(model, images[:0], labels[:0], key=key, eps=0.1, query_batch=BATCH)
  assert none.shape == (0, 4, 4, 2)


def test_rand_averages_over_draws(key):
  model, images, labels = problem()

  def noisy(images, key):
    return model(images) + 0.01 * jax.random.normal(key, (images.shape[0], 1))

  random = attacks.eot(noisy, 1, key)
  report = attacks.auto_attack_report(
    random, images, labels, key=key, eps=EPS['linf'], version='rand', query_batch=BATCH
  )
  assert [record.attack for record in report.records] == ['apgd_ce', 'apgd_dlr']
  assert report.robust_accuracy < report.clean_accuracy


def test_settings_of_the_versions():
  def settings(name, norm='linf', version='standard', classes=10):
    return [
      (run.algorithm.norm, run.restarts, run.num_targets)
      for run in member(name, norm, version, classes)
    ]

  assert settings('apgd_ce') == [('linf', 1, 0)]
  assert settings('apgd_t') == settings('fab_t') == [('linf', 1, 9)]
  assert settings('apgd_ce', version='plus') == [('linf', 5, 0)]
  assert settings('fab', version='plus') == [('linf', 1, 0), ('linf', 4, 0)]
  assert settings('apgd_ce', 'l1') == [('l1', 5, 0)]
  assert settings('apgd_t', 'l1') == [('l1', 1, 5)]
  assert settings('apgd_t', classes=4) == [('linf', 1, 3)]
  assert member('apgd_t', 'l1', 'standard', 10)[0].algorithm.large_radii
  assert not member('apgd_t', 'l1', 'plus', 10)[0].algorithm.large_radii
  joined = [member(name, 'l2', 'standard', 10)[0].algorithm for name in ('apgd_ce', 'apgd_t')]
  assert joined[0] == joined[1]  # one program
  alone = [member(n, 'l2', 'plus', 10, random=True)[0].algorithm.loss for n in MEMBERS[:3]]
  assert alone == ['ce', 'dlr', 'dlr_targeted']
  assert member('apgd_t', 'l2', 'standard', 3)[0].algorithm.loss == 'margin_targeted'
  assert member('apgd_dlr', 'l2', 'rand', 2)[0].algorithm.loss == 'margin'
  assert not member('square', 'l2', 'standard', 10)[0].algorithm.rescale
  assert set().union(*VERSIONS.values()) == set(MEMBERS)


def test_few_classes_are_attacked_too(key):
  model, images, labels = problem(classes=3)
  options = dict(key=key, eps=0.1, query_batch=BATCH, attacks=('apgd_t',))
  report = attacks.auto_attack_report(model, images, labels, **options)
  assert report.robust_accuracy < report.clean_accuracy


def test_bad_names_are_named(key):
  model, images, labels = problem()
  for options, text in (
    (dict(version='strong'), "unknown version 'strong'"),
    (dict(attacks=['apgd']), "unknown attack 'apgd'"),
    (dict(attacks=[]), 'no attacks; there are apgd_ce'),
    (dict(query_batch=0), 'query_batch is a whole number'),
  ):
    with pytest.raises(UserError, match=text):
      attacks.auto_attack(model, images, labels, key=key, eps=0.1, **options)
