"""Attacks as values, and what a new one takes: one frozen dataclass."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_toys import data, linear_model

from rest_jax import attacks, commands
from rest_jax.attacks import registry
from rest_jax.attacks.losses import fooled
from rest_jax.attacks.queries import logits_of
from rest_jax.errors import UserError

KEY = jax.random.key(0)
THREAT = attacks.Threat('linf', 0.3)


@attacks.register('to_grey', 'a toy')
@dataclasses.dataclass(frozen=True, kw_only=True)
class ToGrey(attacks.IterativeAttack):
  """Goes to grey, an equal part of the way at a step; asks for no gradient."""

  gradients = False

  steps: int = 4

  def init(self, model, images, labels, eps, keys, targets=None):
    del model
    return attacks.State.begin(images, labels, eps, keys, targets)

  def step(self, model, state):
    share = (state.iteration + 1).astype(jnp.float32) / self.steps
    way = (share * state.eps)[:, None, None, None]
    adv = state.images + jnp.clip(0.5 - state.images, -way, way)
    logits = logits_of(model, adv, state.keys)
    return dataclasses.replace(
      state,
      adv=adv,
      iteration=state.iteration + 1,
      success=fooled(logits, state.labels, state.targets, self.targeted),
    )


TOY = registry._TABLE.pop('to_grey')  # no other test is to see it


@pytest.fixture
def toy(monkeypatch):
  monkeypatch.setitem(registry._TABLE, 'to_grey', TOY)


def expected(images, eps):
  return images + np.clip(0.5 - images, -eps, eps)


def test_it_is_an_attack_like_the_others(toy):
  model = linear_model()
  images, labels = data(model, 12, wrong=2)
  found = ToGrey(steps=3).run(model, images, labels, key=KEY, eps=0.6)
  right = np.asarray(model(found.images)).argmax(1) == labels
  np.testing.assert_array_equal(np.asarray(found.images)[:2], images[:2])
  np.testing.assert_array_equal(found.queries[:2], 0)
  assert (found.queries[2:][right[2:]] == 3).all() and found.queries.max() <= 3
  np.testing.assert_allclose(
    np.asarray(found.images)[right], expected(images, 0.6)[right], atol=1e-6
  )
  inside = jax.jit(lambda x: ToGrey(steps=3).run(model, x, labels, key=KEY, eps=0.6).images)
  np.testing.assert_allclose(inside(images), found.images, atol=1e-6)
  assert 'to_grey' in attacks.list_attacks() and '| `to_grey` | linf, l2, l1 | a toy |' in (
    registry.table()
  )


def test_it_is_evaluated_and_reported_by_name_and_as_a_value(toy, tmp_path):
  model = linear_model()
  images, labels = data(model, 12, wrong=2)
  options = dict(threats=THREAT, key=KEY, check_health=False, batch_size=8)
  by_name = attacks.evaluate(model, images, labels, attacks=['to_grey'], **options)
  as_value = attacks.evaluate(
    model, images, labels, attacks=ToGrey(), only='black_box', output_dir=tmp_path, **options
  )
  assert by_name.rows == as_value.rows and by_name.rows[0].attack == 'to_grey'
  assert '| to_grey |' in (tmp_path / 'summary.md').read_text()
  records = as_value.records[attacks.RunName('to_grey', 'linf', 0.3)]
  assert all(0 < r.queries <= 4 for i, r in records.items() if i > 1)


def test_defend_py_names_it(toy, capsys):
  assert not commands.main(['defend', '--help'])
  printed = capsys.readouterr().out
  assert all(name in printed for name in attacks.list_attacks()) and 'to_grey' in printed


def test_a_value_is_the_named_attack_and_the_function():
  model = linear_model()
  images, labels = data(model, 6)
  value = attacks.APGD(loss='dlr_targeted', steps=4)
  assert hash(value) == hash(attacks.APGD(loss='dlr_targeted', steps=4)) and value.norm == 'linf'
  by_hand = attacks.apgd(
    model, images, labels, key=KEY, eps=0.02, loss='dlr_targeted', steps=4, norm='l2'
  )
  l2 = dataclasses.replace(value, norm='l2')
  found = l2.run(model, images, labels, key=KEY, eps=0.02)
  np.testing.assert_array_equal(found.images, by_hand)
  keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(6))
  for attack in (registry.as_attack(value), attacks.named_attack('apgd_t', steps=4)):
    assert attack.label == 'apgd_t' and not attack.black_box and not attack.minimum_norm
    adv, queries = attack.run(model, images, labels, key=keys, norm='l2', eps=0.02, targets=None)
    np.testing.assert_array_equal(adv, by_hand)
    np.testing.assert_array_equal(queries, found.queries)


@pytest.mark.parametrize(
  ('value', 'label', 'black_box', 'minimum_norm', 'norms'),
  [
    (attacks.PGD(), 'pgd', False, False, attacks.NORMS),
    (attacks.MIFGSM(), 'mi_fgsm', False, False, attacks.NORMS),
    (attacks.APGD(), 'apgd_ce', False, False, attacks.NORMS),
    (attacks.APGD(loss='margin'), 'apgd', False, False, attacks.NORMS),
    (attacks.FAB(), 'fab', False, True, attacks.NORMS),
    (attacks.FAB(num_targets=9), 'fab_t', False, True, attacks.NORMS),
    (attacks.Square(), 'square', True, False, attacks.NORMS),
    (attacks.CW(), 'cw', False, True, ('l2',)),
    (attacks.DeepFool(), 'deepfool', False, True, ('l2', 'linf')),
    (attacks.AutoAttack(version='plus'), 'auto_attack', False, False, attacks.NORMS),
  ],
)
def test_a_value_says_what_it_is(value, label, black_box, minimum_norm, norms):
  attack = registry.as_attack(value)
  assert (attack.label, attack.black_box, attack.minimum_norm) == (label, black_box, minimum_norm)
  assert attack.norms == norms and attacks.Attack('mine', value).options == attack.options


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: attacks.PGD(steps=0), 'steps is a whole number'),
    (lambda: attacks.PGD(step_size=0.1, rel_step=0.1), 'not both'),
    (lambda: attacks.AutoAttack(version='strong'), "unknown version 'strong'"),
    (lambda: attacks.named_attack('square', loss='dlr'), "unknown loss 'dlr'"),
    (lambda: attacks.named_attack('pgd', targeted=True), 'no option .targeted.'),
    (lambda: attacks.register('pgd', 'again'), "there is an attack 'pgd' already"),
    (lambda: registry.as_attacks(attacks.PGD), 'a value such as APGD'),
    (lambda: registry.as_attacks([attacks.PGD(), attacks.PGD(steps=3)]), 'two attacks'),
  ],
)
def test_bad_values(call, words):
  with pytest.raises(UserError, match=words) as caught:
    call()
  assert '\n' not in str(caught.value)


def test_every_function_is_documented_by_itself():
  for name in ('fgsm', 'pgd', 'bim', 'mi_fgsm', 'apgd', 'fab', 'square', 'cw', 'deepfool'):
    text = getattr(attacks, name).__doc__
    assert re.search(r'Args:.*Returns:.*Raises:', text, re.S), name
    assert not re.search(r'[Aa]s in `a?pgd', text), name


QUICK = {'square': {'n_queries': 200}, 'cw': {'steps': 20, 'search_steps': 4}, 'fgsm': {}}


@pytest.mark.parametrize('name', sorted(set(attacks.list_attacks()) - {'auto_attack'}))
def test_every_named_attack_heads_for_the_targets_that_are_given(name):
  """The classes that a name such as fab_t or apgd_t heads for by itself are left out then."""
  model = linear_model()
  images, labels = data(model, 8)
  targets = ((labels + 1) % 4).astype(np.int32)
  attack = attacks.named_attack(name, **QUICK.get(name, {'steps': 10}))
  norm, eps = ('linf', 0.5) if 'linf' in attack.norms else ('l2', 5.0)
  found = attacks.evaluate(
    *(model, images, labels),
    targets=targets,
    threats=attacks.Threat(norm, eps, targeted=True),
    key=KEY,
    attacks=[attack],
    check_health=False,
  )
  records = [record for run in found.records.values() for record in run.values()]
  assert {r.attack for r in records} == {name} and all(
    r.target == targets[r.index] for r in records
  )
  assert found.rows[0].robust_accuracy.value <= (0.5 if name in ('square', 'fgsm') else 0.1)


@pytest.mark.parametrize('name', ['fab_t', 'apgd_t'])
def test_a_number_of_targets_and_targets_are_too_much(name):
  model = linear_model()
  images, labels = data(model, 2)
  with pytest.raises(UserError, match='num_targets'):
    attacks.evaluate(
      *(model, images, labels),
      targets=(labels + 1) % 4,
      threats=attacks.Threat('linf', 0.1, targeted=True),
      key=KEY,
      attacks=attacks.named_attack(name, num_targets=2),
      check_health=False,
    )


def test_fab_t_is_fab_towards_nine_targets():
  model = linear_model()
  images, labels = data(model, 6)
  nine = attacks.FAB(num_targets=9, steps=5).run(model, images, labels, key=KEY, eps=0.3)
  named = registry.named_attack('fab_t', steps=5)
  assert named.label == registry.as_attack(attacks.FAB(num_targets=9)).label
  value = named.function(**named.options).run(model, images, labels, key=KEY, eps=0.3)
  np.testing.assert_array_equal(value.images, nine.images)
  np.testing.assert_array_equal(value.queries, nine.queries)
