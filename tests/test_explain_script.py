"""explain.py as a user starts it: pictures of every kind, a folder with bad files, bad input."""

import json
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from drawn_weights import drawn
from PIL import Image

from rest_jax import explain as library
from rest_jax.explain import run, saying
from rest_jax.models import predictions
from rest_jax.models.classifier import Classifier
from rest_jax.models.registry import create_model

ROOT = Path(__file__).parents[1]
# Runs explain.py and says what it took and which modules it imported that it must not.
WATCHED = r"""
import re, runpy, sys
try:
  runpy.run_path('explain.py', run_name='__main__')
finally:
  # Not ru_maxrss: that begins with what the process had that started this one.
  peak = re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())
  print('MEGABYTES', int(peak[1]) // 1024)
  print('IMPORTED', [m for m in ('tensorflow', 'torch', 'jaxlib') if m in sys.modules])
"""


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A tiny untrained model directory: 32 px, the central square, three classes."""
  place = tmp_path_factory.mktemp('model') / 'tiny'
  overrides = dict(width=4, depths=(1, 1, 1, 1))
  module = create_model('resnet18', 3, **overrides)
  variables = drawn(module, np.zeros((1, 32, 32, 3), np.float32))
  Classifier.create(
    'resnet18',
    variables,
    num_classes=3,
    overrides=overrides,
    class_names=('cat', 'dog', 'goldfish'),
    input_size=32,
  ).save(place)
  return place


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
  """A picture of 90 x 60 px."""
  path = tmp_path_factory.mktemp('photo') / 'photo.png'
  pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(path)
  return path


def explain(*args, status=0):
  """Runs the script in this process."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'argv', ['explain.py', *map(str, args)])
    with pytest.raises(SystemExit) as end:
      runpy.run_path(str(ROOT / 'explain.py'), run_name='__main__')
  assert end.value.code == status


def test_everything_for_one_picture(model, photo, tmp_path, capsys):
  flags = ('--curves', '--animate', '--sanity', '--layer', 'stage1', '--target', 'dog')
  methods = ('--method', 'grad_cam', 'gradient', '--query_batch', 8)
  explain('--image', photo, '--model', model, *methods, *flags, '--output', tmp_path)
  said = capsys.readouterr().out
  assert '-> ' in said and ': dog (' in said and (' predicted ' in said or 'as predicted' in said)
  folder = tmp_path / 'photo'
  summary = json.loads((folder / 'explanation.json').read_text())
  assert [e['method'] for e in summary['explanations']] == ['grad_cam', 'gradient']
  assert all(e['target']['class'] == 'dog' for e in summary['explanations'])
  assert [e['layer'] for e in summary['explanations']] == ['stage1', None]
  assert summary['layer'] == 'stage1' and summary['target'] == 'dog'
  assert summary['explanations'][0]['queries'] == 2 and len(summary['most_probable']) == 3
  probabilities = [entry['probability'] for entry in summary['most_probable']]
  assert probabilities == sorted(probabilities, reverse=True) and abs(sum(probabilities) - 1) < 1e-6
  assert summary['seen_by_the_model']['input_size'] == 32
  saliency = np.load(folder / 'grad_cam.npy')
  assert saliency.shape == (32, 32) and saliency.dtype == np.float32
  assert saliency.min() >= 0 and saliency.max() <= 1
  with Image.open(folder / 'grad_cam.png') as marked, Image.open(photo) as picture:
    assert marked.size == picture.size
    # The model saw the central square: the columns left of it are grey.
    pixels = np.asarray(marked)
    assert (pixels[:, :14] == pixels[:, :14, :1]).all()
    assert (pixels[20:40, 30:60] != pixels[20:40, 30:60, :1]).any()
  names = {path.name for path in folder.iterdir()}
  assert {'comparison.png', 'curves.png', 'sanity.png', 'grad_cam_insertion.gif'} <= names
  assert not any(name.startswith('.') for name in names)


def test_the_three_most_probable_classes(model, photo, tmp_path):
  explain(
    *('--image', photo, '--model', model, '--method', 'gradient', '--target', 'top3'),
    *('--output', tmp_path),
  )
  summary = json.loads((tmp_path / 'photo' / 'explanation.json').read_text())
  explained = [e['target']['index'] for e in summary['explanations']]
  assert explained == [entry['index'] for entry in summary['most_probable'][:3]]
  assert (tmp_path / 'photo' / 'gradient_top3.png').exists()
  maps = [np.load(tmp_path / 'photo' / e['map']) for e in summary['explanations']]
  assert not np.array_equal(maps[0], maps[1])
  # The library's own way gives the same picture.
  found = library.explain(Classifier.load(model), photo, 'gradient')
  found.save(tmp_path / 'again.png')
  with (
    Image.open(tmp_path / 'again.png') as again,
    Image.open(tmp_path / 'photo' / 'gradient_top1.png') as first,
  ):
    difference = np.asarray(again).astype(int) - np.asarray(first)
  assert np.abs(difference).max() <= 1


def test_a_variant_of_one_method_takes_the_others_with_it(model, photo, tmp_path):
  methods = ('--method', 'group_cam', 'score_cam', '--variant', 'latest', '--layer', 'stage1')
  explain('--image', photo, '--model', model, *methods, '--output', tmp_path)
  assert (tmp_path / 'photo' / 'score_cam.npy').exists()


def test_no_file_of_an_earlier_run_stays_beside_those_of_a_new_one(model, photo, tmp_path):
  about = ('--image', photo, '--model', model, '--output', tmp_path)
  explain(*about, '--method', 'gradient', 'grad_cam', '--target', 'top2', '--curves', '--sanity')
  folder = tmp_path / 'photo'
  names = {path.name for path in folder.iterdir()}
  assert {'sanity_top1.png', 'sanity_top2.png', 'comparison_top2.png', 'gradient_top2.npy'} <= names
  strips = [(folder / f'sanity_top{n}.png').read_bytes() for n in (1, 2)]
  assert strips[0] != strips[1]
  mine = {'notes.txt', 'gradient_of_mine.png', 'comparison.jpg', 'gradient_top.png'}
  for name in mine:
    (folder / name).touch()
  explain(*about, '--method', 'gradient', '--target', 'dog')
  new = {'gradient.png', 'gradient.npy', 'explanation.json'}
  assert {path.name for path in folder.iterdir()} == new | mine
  before = (folder / 'gradient.png').stat().st_ino
  explain(*about, '--method', 'gradient', '--target', 'dog')
  assert {path.name for path in folder.iterdir()} == new | mine
  assert (folder / 'gradient.png').stat().st_ino != before


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')  # this test's own
def test_a_folder_with_bad_files_and_a_huge_picture(model, photo, tmp_path):
  folder, output = tmp_path / 'pictures', tmp_path / 'out'
  folder.mkdir()
  good = np.asarray(Image.open(photo))
  Image.fromarray(good).convert('L').save(folder / 'grey.png')
  Image.fromarray(good).convert('RGBA').save(folder / 'alpha.png')
  Image.fromarray(good).convert('CMYK').save(folder / 'cmyk.jpg')
  Image.fromarray(good[:3].repeat(60, 1)).save(folder / 'long.png')
  Image.new('RGB', (12000, 8000), (40, 90, 60)).save(folder / 'huge.jpg')
  (folder / 'corrupt.png').write_bytes(photo.read_bytes()[:2000])
  (folder / 'empty.jpg').write_bytes(b'')
  (folder / 'text.png').write_text('not a picture')
  Image.new('RGB', (1, 1)).save(folder / 'one.png')
  arguments = ('--image', folder, '--model', model, '--method', 'gradient', '--output', output)
  done = subprocess.run(
    [sys.executable, '-c', WATCHED, *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'error::UserWarning'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 2
  lines = done.stderr.splitlines()
  assert len(lines) == 6 and lines[-1] == '4 of 9 pictures failed', done.stderr
  assert lines[0].startswith('1 of 9 pictures has an alpha channel')
  reasons = {'corrupt.png': 'damaged', 'empty.jpg': 'empty', 'text.png': 'not a picture'}
  for name, reason in (reasons | {'one.png': 'single pixel'}).items():
    line = next(line for line in lines if name in line)
    assert line.startswith('error: ') and reason in line
  made = {path.parent.name for path in output.glob('*/gradient.png')}
  assert made == {'grey', 'alpha', 'cmyk', 'long'}
  summary = json.loads((output / 'huge' / 'explanation.json').read_text())
  assert summary['explanations'][0]['overlay'] == 'gradient.jpg'  # a PNG would be of 100 megabytes
  with Image.open(output / 'huge' / 'gradient.jpg') as image:
    assert image.size == (12000, 8000)
  said = dict(line.split(' ', 1) for line in done.stdout.splitlines()[-2:])
  assert int(said['MEGABYTES']) < 2500  # the picture itself takes 288, and a copy as much
  assert said['IMPORTED'] == "['jaxlib']"


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (('--target', 'goldfsh'), ("no class 'goldfsh'", 'goldfish')),
    (('--layer', 'stage11'), ("no layer 'stage11'", 'stage1')),
    (('--method', 'group_cm'), ("'group_cm'", 'group_cam')),
    (('--model', 'digit_scene'), ('digit_scene', 'digit_scenes')),
    (('--variant', 'newest'), ("'newest'",)),
    (('--limit', '5'), ('--limit', '--evaluate')),
    (('--image', 'nowhere/*.png'), ('nowhere/*.png',)),
    (('--output', '/proc/there'), ('/proc/there', '--output')),
    (('--imag', 'x.png'), ('--imag', '--image')),
  ],
)
def test_bad_input_is_one_line_and_status_2(model, photo, tmp_path, capsys, args, words):
  given = {'--image': photo, '--model': model, '--output': tmp_path, args[0]: args[1]}
  explain(*[part for pair in given.items() for part in pair], status=2)
  captured = capsys.readouterr()
  lines = captured.err.splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), captured.err
  assert all(word in lines[0] for word in words), lines[0]


# Formulas, line breaks, letters that no font here has, bytes that are no UTF-8, names of folders.
ODD = (
  '$5 and $6.png',
  '$.png',
  'a\nb.png',
  '狗🐶.png',
  'caf\udce9.png',
  '...png',
  '.. .png',
  'CON.png',
)


def test_odd_names(model, photo, tmp_path, capsys):
  files = [tmp_path / name for name in ODD]
  for file in files:
    file.write_bytes(photo.read_bytes())
  arguments = ('--model', model, '--method', 'gradient', 'grad_cam', '--output', tmp_path / 'out')
  explain('--image', *files, *arguments)
  said = [line for line in capsys.readouterr().out.splitlines() if ' -> ' in line]
  assert len(said) == len(ODD) and any('caf\\xe9.png: ' in line for line in said)
  made = {
    path.parent.relative_to(tmp_path / 'out') for path in tmp_path.glob('out/*/comparison.png')
  }
  assert len(made) == len(ODD) and all(len(place.parts) == 1 for place in made)
  pictures = [
    json.loads(path.read_text(encoding='utf-8'))['picture']
    for path in tmp_path.glob('out/*/explanation.json')
  ]
  assert sorted(pictures) == sorted(map(str, files))
  assert {path.name for path in (tmp_path / 'out').iterdir()} == {str(place) for place in made}


def test_one_picture_that_fails_anyhow_does_not_stop_the_others(
  model, photo, tmp_path, capsys, monkeypatch
):
  files = [tmp_path / f'{name}.png' for name in 'abc']
  for file in files:
    file.write_bytes(photo.read_bytes())
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'b').touch()  # where the results of b.png would go
  actual = predictions.read

  def read(path):
    if getattr(path, 'name', '') == 'a.png':
      raise MemoryError('of a decoder')
    return actual(path)

  monkeypatch.setattr(predictions, 'read', read)
  arguments = ('--model', model, '--method', 'gradient', '--output', tmp_path / 'out')
  explain('--image', *files, *arguments, status=2)
  captured = capsys.readouterr()
  lines = captured.err.splitlines()
  assert len(lines) == 3 and lines[-1] == '2 of 3 pictures failed'
  assert 'a.png: MemoryError: of a decoder' in lines[0] and 'cannot write' in lines[1]
  assert 'c.png: ' in captured.out and (tmp_path / 'out' / 'c' / 'gradient.png').exists()


def test_a_model_whose_logits_are_no_numbers(photo, tmp_path, capsys, monkeypatch):
  class Broken:
    class_names = ('cat', 'dog')

  item = run.Item(photo, tmp_path, None, None, np.zeros((4, 4, 3), np.float32))
  logits = np.array([[0, 1], [np.nan, 0], [2, 3], [np.inf, 0]], np.float32)
  monkeypatch.setattr(run, 'logits_once', lambda *_: logits)
  setup = run.Setup(None, Broken(), (), None, 4, 1)
  progress = run.Progress(3, 1)
  items = [item._replace(file=Path(f'{name}.png')) for name in 'abc']
  kept, pixels, found = run._decided(items, setup, progress)
  assert [i.file.name for i in kept] == ['a.png', 'c.png'] and pixels.shape == (4, 4, 4, 3)
  np.testing.assert_array_equal(found, [[0, 1], [2, 3], [2, 3], [2, 3]])
  said = capsys.readouterr().err
  assert said.startswith('error: b.png: 1 of 2 logits that the model gives for it are not finite')
  assert progress.failed == 1 and said.count('\n') == 1


def test_a_model_that_ends_in_a_softmax(model, photo, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(run, 'logits_once', lambda *_: np.array([[0.2, 0.3, 0.5]], np.float32))
  about = ('--image', photo, '--model', model, '--method', 'gradient', '--output', tmp_path)
  explain(*about, status=2)
  said = capsys.readouterr().err
  assert said.startswith('error: the outputs look like probabilities') and said.count('\n') == 1


def test_progress_of_one_picture_off_a_terminal(monkeypatch, capsys):
  monkeypatch.setattr(saying, '_TICK', 0.001)
  monkeypatch.setattr(saying, '_SILENCE', 0.002)
  progress, said = saying.Progress(1, 2), threading.Event()
  printed = progress._print

  def note(line):
    printed(line)
    if '1 of 2' in line:
      said.set()

  monkeypatch.setattr(progress, '_print', note)
  with progress.ticking():
    progress.doing('group_cam')
    progress.made(1)
    assert said.wait(60)
  assert 'group_cam: 1 of 2 maps after 0s' in capsys.readouterr().out


def test_progress_of_one_picture_on_a_terminal(monkeypatch, capsys):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  progress = saying.Progress(1, 2)
  with progress.ticking():
    progress.doing('group_cam')
    progress.made(2)
    progress.done('a line')
  captured = capsys.readouterr()
  assert captured.out == 'a line\n' and 'group_cam: 2/2' in captured.err


def test_one_missing_file_is_an_error(model, capsys, tmp_path):
  explain('--image', 'none.png', '--model', model, '--output', tmp_path, status=2)
  assert capsys.readouterr().err == 'error: cannot read none.png: no such file or directory\n'


def test_help(capsys):
  explain('--help')
  assert '--animate' in capsys.readouterr().out
