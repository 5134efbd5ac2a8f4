"""Defences under attacks that know of them and under attacks that do not."""

import csv
import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defence_toys import data, fading, linear_model, noise, rounding
from seen_devices import devices

from rest_jax import attacks, defend
from rest_jax.attacks import Threat
from rest_jax.attacks.record import Record, RunName
from rest_jax.defend.evaluate import through
from rest_jax.defend.table import UNDEFENDED, Cell, make_row
from rest_jax.errors import UserError
from rest_jax.evaluation.intervals import mcnemar

pytestmark = pytest.mark.usefixtures('alone')
MODEL = linear_model()
IMAGES, LABELS = data(MODEL)
KEY = jax.random.key(0)
SMALL, LARGE = 0.01, 0.05
GRID = attacks.epsilon_grid('linf', [SMALL, LARGE])


class Counting:
  """FGSM that notes how often it was called, and stops where it is told to."""

  def __init__(self, stop_at=None):
    self.calls, self.left = 0, stop_at

  def __call__(self, model, images, labels, *, norm, eps, key):
    if self.left == 0:
      raise KeyboardInterrupt
    self.left = None if self.left is None else self.left - 1
    self.calls += 1
    return attacks.fgsm(model, images, labels, norm=norm, eps=eps, key=key)


def counting(stop_at=None):
  return attacks.Attack('fgsm', Counting(stop_at))


def evaluate(defences, **options):
  arguments = dict(threats=GRID, attack='fgsm', key=KEY, batch_size=8, check_health=False)
  return defend.evaluate_defences(MODEL, IMAGES, LABELS, defences, **(arguments | options))


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """A linear defence, an honest rounding, and one that hides its gradients; with checks."""
  defences = {
    'fading 0.5': fading(0.5),
    'rounding': rounding(0.95),
    'masked': rounding(0.95, differentiable=True),
  }
  place = tmp_path_factory.mktemp('found')
  return evaluate(defences, check_health=True, output_dir=place), place


def test_rows_come_with_the_undefended_model_first(found):
  rows = found[0].rows
  assert [row.defence for row in rows] == 2 * [UNDEFENDED, 'fading 0.5', 'rounding', 'masked']
  assert [row.eps for row in rows] == 4 * [SMALL] + 4 * [LARGE]
  assert all(row.images == len(LABELS) and row.clean_undefended.value == 22 / 24 for row in rows)


def test_fgsm_on_a_linear_model_is_exact_so_every_figure_is_known(found):
  # Of a linear model, the margin to each class falls by eps times the L1 norm of the weights'
  # difference, less what the pixel range takes; the fade changes no margin's sign at all.
  for eps in (SMALL, LARGE):
    adv = np.asarray(attacks.fgsm(MODEL, IMAGES, LABELS, norm='linf', eps=eps))
    held = (np.asarray(MODEL(adv)).argmax(axis=1) == LABELS).mean()
    for name in (UNDEFENDED, 'fading 0.5'):
      row = found[0].row(name, 'fgsm', eps)
      assert row.non_adaptive.value == held
    assert found[0].row(UNDEFENDED, 'fgsm', eps).adaptive.value == held
    # Fading shrinks the logits, not their order, so its gradient's sign may differ, no more.
    assert abs(found[0].row('fading 0.5', 'fgsm', eps).adaptive.value - held) <= 2 / 24


def test_masked_gradients_are_flagged_and_honest_ones_are_not(found):
  masked = found[0].row('masked', 'fgsm', LARGE)
  assert masked.masked_gradients and 'zero_gradients' in masked.raised
  assert any('zero_gradients' in reason for reason in masked.reasons)
  assert masked.adaptive.value > masked.non_adaptive.value
  assert masked.worst.value <= min(masked.adaptive.value, masked.non_adaptive.value)
  for name in (UNDEFENDED, 'fading 0.5', 'rounding'):
    row = found[0].row(name, 'fgsm', LARGE)
    assert not any('zero_gradients' in reason for reason in row.reasons)
  assert not found[0].row('fading 0.5', 'fgsm', LARGE).masked_gradients
  # BPDA makes of the same rounding a model that the adaptive attack breaks.
  assert found[0].row('rounding', 'fgsm', LARGE).adaptive.value < masked.adaptive.value


def test_files_hold_what_was_found(found):
  evaluation, place = found
  stored = json.loads((place / 'evaluation.json').read_text())
  assert len(stored['rows']) == 8 and stored['rows'][1]['defence'] == 'fading 0.5'
  assert stored['rows'][1]['worst']['value'] == evaluation.rows[1].worst.value
  table = (place / 'evaluation.md').read_text()
  assert table.count('\n| fgsm |') == 8 and 'signs of masked gradients' in table
  lines = list(csv.DictReader(io.StringIO(evaluation.to_csv())))
  assert float(lines[0]['worst']) == evaluation.rows[0].worst.value
  assert lines[0]['gain_p'] == '' and lines[7]['masked_gradients'] == '1'
  assert {check.name for check in evaluation.health['masked'] if check.raised} == set(
    evaluation.rows[3].raised
  )


def test_it_goes_on_where_it_was_stopped(tmp_path):
  defences = {'rounding': rounding(0.95)}
  first = counting(stop_at=8)
  with pytest.raises(KeyboardInterrupt):
    evaluate(defences, attack=first, output_dir=tmp_path)
  second = counting()
  resumed = evaluate(defences, attack=second, output_dir=tmp_path)
  whole = counting()
  fresh = evaluate(defences, attack=whole)
  assert resumed.rows == fresh.rows
  assert first.function.calls + second.function.calls == whole.function.calls
  third = counting()
  again = evaluate(defences | {'fading': fading()}, attack=third, output_dir=tmp_path)
  assert again.rows[1:2] != again.rows[2:3] and 0 < third.function.calls <= 6  # fading alone
  more = evaluate(defences, attack=counting(), output_dir=tmp_path)
  assert more.rows == fresh.rows


def test_one_device_finds_what_four_do():
  """A smooth defence, a rounding and a random one; six images at a time are eight of four."""
  defences = {'fading': fading(), 'rounding': rounding(0.95), 'noise': noise()}
  with devices(4):
    four = evaluate(defences, threats=GRID[1:], batch_size=6)
  one = evaluate(defences, threats=GRID[1:], batch_size=6)
  assert four.rows == one.rows and len(one.rows) == 4


def test_results_of_another_model_or_key_are_not_mixed(tmp_path):
  evaluate({}, output_dir=tmp_path, attack=counting())
  with pytest.raises(UserError, match='another model'):
    defend.evaluate_defences(
      linear_model(3), *data(linear_model(3)), {}, threats=GRID, attack=counting(), key=KEY,
      output_dir=tmp_path, batch_size=10,
    )  # fmt: skip
  with pytest.raises(UserError, match='seed'):
    evaluate({}, output_dir=tmp_path, attack=counting(), key=jax.random.key(1))


def test_a_defence_of_the_same_values_with_another_gradient_is_not_resumed(tmp_path):
  quantise = lambda x: jnp.round(x * 8) / 8  # noqa: E731
  evaluate({'own': quantise}, output_dir=tmp_path, attack=counting())
  with pytest.raises(UserError, match=r'another model|made_on'):
    evaluate({'own': attacks.bpda(quantise)}, output_dir=tmp_path, attack=counting())


def test_batches_do_not_matter_and_chance_is_the_keys(tmp_path):
  defences = {'noise': noise(1.0), 'both': (fading(0.2), noise(1.0))}
  options = dict(attack=counting(), threats=GRID[1], draws=2)
  first = evaluate(defences, **options)
  assert evaluate(defences, **options).rows == first.rows
  values = [row.worst.value for row in evaluate(defences, **options, batch_size=24).rows]
  assert values == [row.worst.value for row in first.rows]


def test_a_model_with_its_defence_inside():
  other = linear_model(5)
  found = evaluate({'other': defend.Defended(other)}, threats=GRID[1])
  row = found.row('other', 'fgsm', LARGE)
  clean = (np.asarray(other(jnp.asarray(IMAGES))).argmax(axis=1) == LABELS).mean()
  assert row.clean.value == clean and row.adaptive is not None
  assert row.worst.value <= row.adaptive.value


def test_without_the_adaptive_attack_only_the_other_is_judged():
  row = evaluate({'fading': fading()}, adaptive=False, threats=GRID[1]).rows[1]
  assert row.adaptive is None and row.worst == row.non_adaptive and not row.masked_gradients


def record(index, correct=True, success=False):
  return Record(
    index=index, label=0, target=None, clean=0 if correct else 1, adversarial=0, clean_loss=0.0,
    loss=0.0, distance=0.1, queries=1, attack='pgd', norm='linf', eps=0.1, seed='', inside=True,
    success=success, confirmed=True, reused=None, pixels='',
  )  # fmt: skip


def cell(non_adaptive, adaptive):
  run = RunName('pgd', 'linf', 0.1)
  both = [
    {run: {i: record(i, success=bool(s)) for i, s in enumerate(fooled)}}
    for fooled in (non_adaptive, adaptive)
  ]
  return Cell(*both)


def test_the_worst_of_both_is_taken_image_by_image():
  row = make_row(
    'd', 'pgd', 'linf', 0.1, cell([1, 0, 0, 0], [0, 1, 0, 0]), cell([1] * 4, [1] * 4), (), 0.95
  )
  assert (row.non_adaptive.value, row.adaptive.value, row.worst.value) == (0.75, 0.75, 0.5)
  assert row.gain == 0.5 and row.gain_p == 0.5 and not row.masked_gradients


def test_a_weaker_adaptive_attack_is_flagged_when_chance_is_ruled_out():
  def flagged(count):
    fooled = [1] * count + [0] * (20 - count)
    row = make_row('d', 'pgd', 'linf', 0.1, cell(fooled, [0] * 20), cell(fooled, fooled), (), 0.95)
    return row.masked_gradients

  # One-sided, n images all on one side: 2**-n; 2**-4 = 0.0625, 2**-5 = 0.031.
  assert [flagged(count) for count in (0, 4, 5)] == [False, False, True]


@pytest.mark.parametrize(
  ('counts', 'two_sided', 'p'),
  [
    ((0, 0), True, 1.0),
    ((5, 0), True, 2 * 2**-5),
    ((5, 0), False, 2**-5),
    ((0, 5), False, 1.0),
    ((3, 1), False, 5 / 16),  # C(4,3) + C(4,4) of 16
    ((3, 3), True, 1.0),
  ],
)
def test_mcnemar_by_hand(counts, two_sided, p):
  assert mcnemar(*counts, two_sided=two_sided) == pytest.approx(p)


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    (dict(threats=Threat('l2', 10.5)), r'beyond 10.3923, .* 108 values'),
    (dict(threats=Threat('l1', 109.0)), 'beyond 108,'),
    (dict(threats=[]), 'threats are one or more'),
    (dict(threats=Threat('linf', 0.1, targeted=True)), 'untargeted'),
    (dict(attack='pdg'), "unknown attack 'pdg'"),
    (dict(batch_size=0), 'batch_size is a whole number from 1'),
    (dict(key=3), 'key is one PRNG key'),
  ],
)
def test_bad_input(options, words):
  with pytest.raises(UserError, match=words) as caught:
    evaluate({}, **options)
  assert '\n' not in str(caught.value)


def test_bad_labels_of_defences(tmp_path):
  for label in (UNDEFENDED, 'a/b', ''):
    with pytest.raises(UserError, match='label of a defence'):
      evaluate({label: fading()})
  with pytest.raises(UserError, match='punctuation'):
    evaluate({'a b': fading(), 'a_b': fading()}, output_dir=tmp_path)


def test_a_row_is_data():
  row = make_row('d', 'pgd', 'linf', 0.1, cell([1], [1]), cell([1], [1]), (), 0.95)
  values = row.to_json()
  assert json.loads(json.dumps(values))['worst'] == {'value': 0.0, 'low': 0.0, 'high': 0.975}
  # Which images withstood stands in their own records.
  assert set(values) | {'withstood'} == {field.name for field in dataclasses.fields(row)}


def test_a_minimum_norm_attack_runs_once_for_all_radii(tmp_path):
  found = evaluate({'fading': fading(0.0)}, attack='deepfool', output_dir=tmp_path)
  for eps in (SMALL, LARGE):
    plain, same = found.row(UNDEFENDED, 'deepfool', eps), found.row('fading', 'deepfool', eps)
    # Strength 0 is the model itself, so both attacks find what they found without a defence.
    assert plain.worst == same.non_adaptive == same.adaptive
    # DeepFool is exact on linear models, where FGSM is too, up to the pixel range.
    exact = evaluate({}, threats=Threat('linf', eps)).rows[0].worst.value
    assert abs(plain.worst.value - exact) <= 1 / 24
  assert found.rows[0].worst.value > found.rows[-1].worst.value
  assert len(list((tmp_path / 'transferred' / 'deepfool').glob('*/*.npz'))) == 3  # batches of 8


def test_auto_attack_takes_its_version_for_random_models():
  def chosen(random, **options):
    attack = attacks.named_attack('auto_attack', **options)
    return through(attack, random).options.get('version')

  assert chosen(False) is None and chosen(True) == 'rand'
  assert chosen(True, version='plus') == 'plus'
