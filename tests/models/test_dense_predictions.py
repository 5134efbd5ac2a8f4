"""`rest-jax predict` of detectors and segmenters: lines, the table, pictures, what is refused."""

import csv
import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_toys import colour_detector, colour_segmenter, squares
from PIL import Image

from rest_jax import __main__ as command
from rest_jax.errors import UserError
from rest_jax.models import create_detector, dense_drawing, dense_model
from rest_jax.models.dense_config import DenseConfig
from rest_jax.models.dense_drawing import colour
from rest_jax.models.dense_model import Detector, Objects, kind_at

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(scope='module')
def models():
  return {'detector': colour_detector(), 'segmenter': colour_segmenter()}


@pytest.fixture
def run(models, monkeypatch):
  """The command with a toy of the kind that --model names."""
  real = dense_model.kind_at
  monkeypatch.setattr(dense_model, 'kind_at', lambda name: name if name in models else real(name))
  monkeypatch.setattr(dense_model, 'load_dense_model', models.__getitem__)
  return lambda *words: command.main(['predict', *map(str, words)])


@pytest.fixture
def folder(tmp_path):
  """Two pictures of one name, one without objects, one damaged."""
  place = tmp_path / 'pictures'
  place.mkdir()
  Image.fromarray(squares((8, 16, RED), (40, 40, BLUE))).save(place / 'a.png')
  Image.fromarray(squares((24, 8, BLUE))).save(place / 'a.bmp')
  Image.fromarray(squares()).save(place / 'empty.png')
  (place / 'damaged.png').write_bytes(b'no picture')
  return place


def rows_of(path):
  return list(csv.DictReader(io.StringIO(path.read_text())))


def test_a_detector_draws_and_writes_a_row_an_object(run, folder, tmp_path, capsys):
  assert (
    run(folder, '--model', 'detector', '--output', tmp_path / 'out', '--csv', tmp_path / 'c') == 2
  )
  out, err = capsys.readouterr()
  assert f'{folder / "a.png"}: 2 objects: ' in out and 'red (100.0 %)' in out
  assert f'{folder / "empty.png"}: 0 objects\n' in out
  errors = [line for line in err.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1 and 'damaged.png' in errors[0]
  rows = [r for r in rows_of(tmp_path / 'c') if r['file'].endswith('a.png')]
  assert list(rows[0]) == ['file', 'class', 'score', 'x1', 'y1', 'x2', 'y2']
  found = {r['class']: [float(r[edge]) for edge in ('x1', 'y1', 'x2', 'y2')] for r in rows}
  assert found == {'red': [8, 16, 24, 32], 'blue': [40, 40, 56, 56]}
  assert all(abs(float(r['score']) - 1 / (1 + np.exp(-10))) < 1e-5 for r in rows)
  drawn = sorted(p.name for p in (tmp_path / 'out').iterdir())
  assert drawn == ['a.bmp.png', 'a.png.png', 'empty.png']
  pixels = np.asarray(Image.open(tmp_path / 'out' / 'a.png.png'))
  assert pixels.shape == (512, 512, 3)  # enlarged eight times
  assert (pixels[24 * 8, 8 * 8] == colour(0)).all() and (pixels[48 * 8, 40 * 8] == colour(1)).all()


def test_a_score_leaves_out_what_is_under_it(run, folder, tmp_path, capsys):
  Image.fromarray(squares((8, 16, (198, 0, 0)))).save(folder / 'pale.png')  # a logit of 1.06
  for score, count in ((0.8, 0), (0.7, 1)):
    words = ('--model', 'detector', '--score', score, '--csv', tmp_path / 'c')
    assert not run(folder / 'pale.png', *words)
    assert len(rows_of(tmp_path / 'c')) == count
  assert sorted(p.name for p in tmp_path.iterdir()) == ['c', 'pictures']  # a table alone


def test_a_segmenter_tells_the_share_of_pixels(run, folder, tmp_path, capsys):
  words = ('--model', 'segmenter', '--output', tmp_path / 'out', '--csv', tmp_path / 'c')
  assert not run(folder / 'a.png', *words)
  rows = rows_of(tmp_path / 'c')
  assert [(r['class'], float(r['share'])) for r in rows] == [('red', 0.9375), ('blue', 0.0625)]
  assert f'{folder / "a.png"}: red (93.8 %), blue (6.2 %)' in capsys.readouterr().out
  pixels = np.asarray(Image.open(tmp_path / 'out' / 'a.png'))
  assert pixels.shape[0] == 512 and pixels.shape[1] > 512  # a legend beside it


def test_flags_of_another_kind_are_refused(run, folder, tmp_path):
  for words, message in (
    (('--model', 'detector', '--top', 3), '--top: for classifiers, and detector is a detector'),
    (('--model', 'detector', '--ema', '--batch_size', 4), '--ema and --batch_size: for class'),
    (('--model', 'segmenter', '--score', 0.5), '--score: for detectors, and segmenter is a seg'),
    (('--model', 'digit_scenes', '--output', tmp_path), '--output: for detectors and segmenters'),
    (('--model', 'digit_scenes', '--score', 0), '--score: for detectors and segmenters'),
    (('--model', 'detector', '--score', 2), '--score is a number from 0 to 1, not 2'),
    (('--model', 'detector', '--output', folder / 'a.png'), 'a file'),
    (('--model', 'gs://bucket/x'), 'gs://'),
  ):
    with pytest.raises(UserError, match=message) as error:
      run(folder, *words)
    assert '\n' not in str(error.value)


def test_pictures_are_not_written_over(run, folder):
  for output in (folder, folder / '..' / folder.name):
    with pytest.raises(UserError, match='would write over the picture'):
      run(folder / 'empty.png', '--model', 'detector', '--output', output)
  assert np.asarray(Image.open(folder / 'empty.png')).shape == (64, 64, 3)


def test_outputs_that_are_no_numbers_are_no_empty_picture(models):
  for model in models.values():
    broken = jax.tree.map(lambda leaf: jnp.asarray(leaf).at[0].set(jnp.nan), model)
    with pytest.raises(UserError, match='not finite'):
      broken.predict(squares())


def test_an_opened_picture_is_seen_as_its_file_is(models, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(squares((8, 16, RED))).save(tmp_path / 'a.png', exif=exif)
  for model in models.values():
    with Image.open(tmp_path / 'a.png') as opened:
      seen, *_ = model.view(opened)
    np.testing.assert_array_equal(seen, model.view(tmp_path / 'a.png')[0])


def test_what_would_be_another_question_is_refused(models):
  detector, canvas = models['detector'], squares((8, 16, RED))[None]
  for call, message in (
    (lambda: detector.predict(squares(), least_score=30), 'from 0 to 1, not 30'),
    (lambda: detector.predict(squares(), least_score=float('nan')), 'from 0 to 1, not nan'),
    (lambda: detector.predict(squares(), least_score='0.3'), 'from 0 to 1'),
    (lambda: detector.predict(np.zeros((0, 9, 3), np.uint8)), 'no pixels'),
    (lambda: detector(canvas.astype(np.float32)), 'divided by 255 first'),
    (lambda: detector(jnp.asarray(canvas, jnp.float32)), 'divided by 255 first'),
    (lambda: detector(canvas, np.array([[64, 65]])), 'the 64x64 of the canvas, got 64 to 65'),
    (lambda: detector(canvas, np.array([[0, 64]])), 'from 1'),
    (lambda: detector(canvas, np.array([[63.5, 64]])), 'whole numbers'),
  ):
    with pytest.raises(UserError, match=message):
      call()


def test_options_that_are_nonsense_are_named(tmp_path):
  config = DenseConfig('detector', 'retinanet_resnet18', 2)
  for options in ({'width': 'a'}, {'octaves': 0.5}, {'stages': [1, 9]}):
    wrong = dataclasses.replace(config, overrides=tuple(options.items()))
    (tmp_path / 'config.json').write_text(wrong.to_json())
    with pytest.raises(UserError, match=r'config\.json: ') as error:
      Detector.load(tmp_path)
    assert '\n' not in str(error.value)


def test_a_saved_detector_from_its_directory(folder, tmp_path, capsys):
  options = dict(stages=(1, 2), extra_levels=0, width=8, convs=1, octaves=1, candidates=20)
  backbone = dict(width=8, depths=(1, 1, 1, 1))
  module = create_detector('retinanet_resnet18', 2, backbone=backbone, **options)
  variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  config: Any = dict(short=0, long=0, canvases=((64, 64),), backbone=backbone, overrides=options)
  Detector.create('retinanet_resnet18', variables, ('red', 'blue'), **config).save(tmp_path / 'm')
  assert kind_at(tmp_path / 'm') == 'detector' and kind_at('digit_scenes') == ''
  words = ['predict', str(folder / 'a.png'), '--model', str(tmp_path / 'm'), '--score', '0.9']
  assert not command.main([*words, '--output', str(tmp_path / 'out')])
  assert 'a.png: 0 objects' in capsys.readouterr().out
  assert (tmp_path / 'out' / 'a.png').exists()


def test_captions_of_the_truth_have_no_score(monkeypatch):
  seen = []
  monkeypatch.setattr(
    dense_drawing, '_caption', lambda draw, box, text, *_: seen.append(text) or None
  )
  found = Objects(np.array([[1, 1, 9, 9]], np.float32), np.ones(1, np.float32), np.zeros(1, int))
  picture = np.zeros((16, 16, 3), np.uint8)
  for scored in (True, False):
    dense_drawing.draw_objects(picture, found, ('cat',), scored=scored)
  assert seen == ['cat 1.00', 'cat']
