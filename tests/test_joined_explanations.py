"""Records of explanations from several runs: joined, kept, compared image by image."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rest_jax.errors import UserError
from rest_jax.evaluation.intervals import Interval, bootstrap
from rest_jax.evaluation.records import Records

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import explanations, fine_steps

SETTINGS = {'data': 'photos.csv', 'seed': 0}
MODEL = {'weights': 'w', 'probe': [], 'code': 'c'}


def run(folder, cases, settings=SETTINGS):
  """Records as an evaluation writes them: {case: insertion of the images from 0 on}."""
  records = Records(folder / 'results.jsonl', settings, model=MODEL)
  for case, values in cases.items():
    rest = {name: [0.5] * len(values) for name in ('deletion', 'drop', 'road')}
    records.add(case, list(range(len(values))), {'insertion': values, **rest})
  return folder


def test_runs_are_joined_and_an_evaluation_goes_on_from_them(tmp_path):
  one = run(tmp_path / 'one', {'centre': [0.1, 0.2], 'grad_cam': [0.3]})
  two = run(tmp_path / 'two', {'centre': [0.9, 0.9, 0.9], 'rise': [1 / 3]})
  kept, folder = tmp_path / 'all.jsonl.gz', tmp_path / 'all'
  assert explanations.main([str(one), str(two), '--join', str(kept)]) == 0
  assert explanations.main([str(kept), '--join', str(folder)]) == 0
  records = Records(folder / 'results.jsonl', SETTINGS, model=MODEL)
  assert records.column('centre', 'insertion', range(3)) == [0.1, 0.2, 0.9]  # the first run's
  assert records.column('rise', 'insertion', [0]) == [0.333333]
  assert sorted(records.cases) == ['centre', 'grad_cam', 'rise']


def test_runs_of_other_settings_are_refused(tmp_path):
  one, two = run(tmp_path / 'one', {}), run(tmp_path / 'two', {}, SETTINGS | {'seed': 1})
  with pytest.raises(UserError, match=r'two/results\.jsonl is of another model or other settings'):
    explanations.main([str(one), str(two)])
  with pytest.raises(UserError, match=r'cannot read the records .*three'):
    explanations.main([str(one), str(tmp_path / 'three')])
  (two / 'results.jsonl').write_text(json.dumps({'format': 2})[:-1])
  with pytest.raises(UserError, match='cannot read the records'):
    explanations.main([str(two)])


def test_methods_are_compared_on_the_images_that_both_have(tmp_path, capsys):
  cases = {'group_cam': [0.5, 0.6, None, 0.9], 'grad_cam': [0.25, 0.35, 0.4], 'rise': [0.7]}
  cases |= {'eigen_cam': [None], 'grad_cam:sanity': [0.1]}
  place = run(tmp_path / 'run', cases)
  found = explanations.differences(explanations.joined([place / 'results.jsonl'])[1], 'group_cam')
  assert list(found) == ['grad_cam', 'rise', 'eigen_cam']
  interval, count = found['grad_cam']['insertion']
  assert count == 2 and interval == pytest.approx((0.25, 0.25, 0.25))
  assert found['eigen_cam']['insertion'][1] == 0
  assert explanations.main([str(place), '--method', 'group_cam']) == 0
  out = capsys.readouterr().out
  assert '| Grad-CAM | **+0.250** [+0.250, +0.250] | +0.000 [+0.000, +0.000] |' in out
  assert '| RISE | -0.200 [-0.200, -0.200] |' in out and '| EigenCAM | –' in out
  assert 'fine steps' not in out
  with pytest.raises(UserError, match='no records of score_cam; there are group_cam, grad_cam'):
    explanations.main([str(place), '--method', 'score_cam'])


def test_measures_in_fine_steps_are_compared_where_there_are_some(tmp_path, capsys):
  place = run(tmp_path / 'run', {'group_cam': [0.5, 0.6], 'grad_cam': [0.3, 0.4]})
  records = Records(place / 'results.jsonl', SETTINGS, model=MODEL)
  for case, value in (('group_cam', 0.75), ('grad_cam', 0.5)):
    records.add(f'{case}:fine', [0], {'insertion_fine': [value], 'deletion_fine': [0.25]})
  assert explanations.main([str(place), '--method', 'group_cam']) == 0
  head, _, *lines = capsys.readouterr().out.splitlines()
  assert [cell.strip() for cell in head.split('|')][2:6] == [
    'insertion AUC ↑',
    'deletion AUC ↓',
    'insertion AUC (fine steps) ↑',
    'deletion AUC (fine steps) ↓',
  ]
  assert '| **+0.250** [+0.250, +0.250] | +0.000' in lines[0] and lines[0].endswith('| 1–2 |')


def test_the_mean_in_fine_steps_over_all_images_from_a_part_of_them():
  """By hand: the coarse mean over all, plus the mean gap of images 0 and 2; no gap is no spread."""
  coarse = {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8}
  found = fine_steps.two_phase(coarse, {0: 0.25, 2: 0.63, 9: 5.0})
  assert found.gap == pytest.approx((0.04, 0.03, 0.05)) and found.count == 2
  assert found.mean.value == pytest.approx(0.5 + 0.04)
  same = fine_steps.two_phase(coarse, {i: value + 0.1 for i, value in coarse.items() if i < 2})
  plain = bootstrap(np.array([*coarse.values()]))
  assert same.mean == pytest.approx([end + 0.1 for end in plain])
  with pytest.raises(UserError, match='1 images are measured in both steps'):
    fine_steps.two_phase(coarse, {3: 0.5})


def test_its_interval_covers_the_mean_of_all_images():
  """200 draws of a population, 100 images in coarse and 20 in fine steps."""
  random, hits = np.random.default_rng(0), 0
  for _ in range(200):
    coarse = random.normal(0.5, 0.2, 100)
    fine = coarse + random.normal(0.01, 0.1, 100)
    few = {i: fine[i] for i in range(20)}
    _, low, high = fine_steps.two_phase(dict(enumerate(coarse)), few).mean
    hits += low <= 0.51 <= high
  assert 180 <= hits <= 198


def test_a_table_of_fine_steps(tmp_path, capsys):
  place = run(tmp_path / 'run', {'group_cam': [0.5, 0.6, 0.7], 'grad_cam': [0.3, 0.4, 0.5]})
  records = Records(place / 'results.jsonl', SETTINGS, model=MODEL)
  for case, value in (('group_cam', 0.05), ('grad_cam', 0.01)):
    coarse = records.column(case, 'insertion', range(2))
    fine = [old + value for old in coarse]
    records.add(f'{case}:fine', [0, 1], {'insertion_fine': fine, 'deletion_fine': [0.5, 0.5]})
  assert fine_steps.main([str(place), '--method', 'group_cam']) == 0
  out = capsys.readouterr().out.splitlines()
  assert '| Group-CAM | 0.650 [0.550, 0.750] | +0.0500 [+0.0500, +0.0500] | – |' in out[2]
  assert (
    '| 0.410 [0.310, 0.510] | +0.0100' in out[3] and '| **+0.240** [+0.240, +0.240] |' in out[3]
  )
  assert out[3].endswith('| +0.000 [+0.000, +0.000] | 2 |')
  below = explanations.cell('deletion_fine', Interval(-0.004, -0.008, -0.0001))
  assert below == '**-0.004** [-0.008, -0.000]'  # an end below 0 keeps its sign
  with pytest.raises(UserError, match='no records of rise in fine steps; there are group_cam, gra'):
    fine_steps.main([str(place), '--method', 'rise'])
