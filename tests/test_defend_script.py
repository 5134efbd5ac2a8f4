"""defend.py as a user starts it: a whole run, going on, and bad input."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn_weights import drawn
from PIL import Image

from rest_jax.models.classifier import Classifier
from rest_jax.models.registry import create_model

ROOT = Path(__file__).parents[1]
CLASSES = ('blue', 'red')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A tiny untrained model directory: 32 px, two classes."""
  place = tmp_path_factory.mktemp('model') / 'tiny'
  overrides = dict(width=4, depths=(1, 1, 1, 1))
  module = create_model('resnet18', 2, **overrides)
  variables = drawn(module, np.zeros((1, 32, 32, 3), np.float32))
  Classifier.create(
    'resnet18',
    variables,
    num_classes=2,
    overrides=overrides,
    class_names=CLASSES,
    input_size=32,
  ).save(place)
  return place


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder of pictures in two classes: reddish and bluish ones."""
  root, rng = tmp_path_factory.mktemp('data') / 'colours', np.random.default_rng(0)
  for split in ('train', 'test'):
    for name in CLASSES:
      place = root / split / name
      place.mkdir(parents=True)
      for number in range(4):
        pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        pixels[..., 0 if name == 'red' else 2] += 120
        Image.fromarray(pixels).save(place / f'{number}.png')
  return root


def defend(*args, status=0):
  """Runs the script in this process."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'argv', ['defend.py', *map(str, args)])
    with pytest.raises(SystemExit) as end:
      runpy.run_path(str(ROOT / 'defend.py'), run_name='__main__')
  assert end.value.code == status


def test_a_whole_run_and_the_same_again(model, folder, tmp_path, capsys):
  arguments = (
    *('--attack', 'fgsm', '--eps', '4/255', '8/255', '--model', model, '--data', folder),
    *('--defense', 'bit_depth', '--study', 'noise', '--output', tmp_path),
    *('--batch_size', 4),
  )
  defend(*arguments)
  printed = capsys.readouterr().out.splitlines()
  assert printed[0] == f'8 images of 2 classes from {folder} (test): blue, red'
  assert printed[1] == f'1 defence, 1 attack, 8 images of {folder}'
  assert 'robust' in printed[2] and 'report.html' in printed[-1]
  results = json.loads((tmp_path / 'results.json').read_text())
  assert [r['defence'] for r in results['rows']] == 2 * ['undefended', 'bit_depth 0.5']
  for row in results['rows']:
    assert row['images'] == 8 and row['worst']['value'] <= row['non_adaptive']['value']
    assert row['worst']['value'] <= row['adaptive']['value']
    assert row['worst']['low'] <= row['worst']['value'] <= row['worst']['high']
  assert set(results['health']) == {'undefended', 'bit_depth 0.5'}
  assert {r['denoiser'] for r in results['study']} >= {'bit_depth'}
  assert results['images'] == 8 and results['conclusion'] and results['spectra']
  lines = list(csv.DictReader((tmp_path / 'results.csv').read_text().splitlines()))
  assert [float(line['worst']) for line in lines] == [r['worst']['value'] for r in results['rows']]
  page = (tmp_path / 'report.html').read_text()
  # Bars, radii, examples and three of the study, all within the page.
  assert page.count('<img src="data:image/png;base64,') == 6 and 'http' not in page
  for name in ('bit_depth 0.5', 'The attacker', 'Noise alone', 'What the columns mean'):
    assert name in page
  text = (tmp_path / 'report.md').read_text()
  assert text.count('](figures/') == 6
  assert not [p for p in tmp_path.rglob('.*') if p.is_file()]
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.jsonl')}
  # What was transferred, three of the evaluation, two of health checks, two of the study.
  assert len(before) == 8
  defend(*arguments)
  again = json.loads((tmp_path / 'results.json').read_text())
  assert again['rows'] == results['rows'] and again['study'] == results['study']
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.jsonl')} == before
  capsys.readouterr()
  defend(*arguments, '--seed', 1, status=2)
  error = capsys.readouterr().err
  assert error == (f'error: {tmp_path} holds results with another seed; give another --output\n')


def test_more_images_and_other_batches_go_on(model, folder, tmp_path):
  arguments = ('--attack', 'fgsm', '--eps', '8/255', '--model', model, '--data', folder)
  arguments += ('--defense', 'bit_depth', '--no-adaptive', '--output')
  defend(*arguments, tmp_path / 'grown', '--limit', 2)
  first = {path: path.read_text() for path in tmp_path.rglob('*.jsonl')}
  defend(*arguments, tmp_path / 'grown', '--limit', 6, '--batch_size', 3)
  for path, text in first.items():
    assert path.read_text().startswith(text)  # nothing of it was done again
  defend(*arguments, tmp_path / 'fresh', '--limit', 6)
  grown, fresh = (
    json.loads((tmp_path / name / 'results.json').read_text()) for name in ('grown', 'fresh')
  )
  assert grown['rows'] == fresh['rows'] and grown['rows'][0]['images'] == 6
  assert grown['health'] == fresh['health']


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (('--data', 'digit_scenes'), ('digit_scenes', 'blue, red', 'choose a model of this data set')),
    (('--data', 'nowhere_at_all'), ('nowhere_at_all',)),
    (('--model', 'digit_scene'), ('digit_scene', 'digit_scenes')),
    (('--defense', 'non_local@stage11'), ('--defense non_local@stage11', 'stage1')),
    (('--eps', '100', '--norm', 'l2'), ('eps 100 in l2 is beyond 55.4256',)),
    (('--output', '/proc/there'), ('/proc/there',)),
    (('--attack', 'pdg'), ("'pdg'", 'pgd')),
  ],
)
def test_bad_input_is_one_line_and_status_2(model, folder, tmp_path, capsys, args, words):
  given = {'--model': model, '--data': folder, '--output': tmp_path, '--defense': 'none'}
  given |= dict(zip(args[::2], args[1::2], strict=True))
  defend(*[part for pair in given.items() for part in pair], status=2)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), lines
  assert all(word in lines[0] for word in words), lines[0]


def test_from_the_shell_an_error_is_one_line_without_a_traceback():
  done = subprocess.run(
    [sys.executable, 'defend.py', '--eps', '2'],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith('error: --eps is 2, beyond 1') and done.stderr.count('\n') == 1


def test_help(capsys):
  defend('--help')
  assert '--no-adaptive' in capsys.readouterr().out
