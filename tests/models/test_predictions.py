"""Pictures to class names: every kind of picture, folders, bad files, the table, the command."""

import csv
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from rest_jax import __main__ as command
from rest_jax import explain
from rest_jax.errors import UserError
from rest_jax.models import predictions
from rest_jax.models.classifier import Classifier
from rest_jax.models.model_config import ModelConfig

NAMES = ('=red', 'green', 'blue, deep')


class Colours(nn.Module):
  """Logits: ten times the mean of each channel."""

  num_classes: int = 3

  @nn.compact
  def __call__(self, x, train: bool = False):
    return 10 * jnp.mean(x, axis=(1, 2))[:, : self.num_classes]


def make(classes=3):
  config = ModelConfig('colours', classes, mean=(0.0,) * 3, std=(1.0,) * 3, input_size=32)
  return Classifier(Colours(classes), {}, config, NAMES[:classes])


@pytest.fixture(scope='module')
def classifier():
  return make()


def picture(red, green, blue, size=(40, 50)):
  return Image.new('RGB', size, (red, green, blue))


@pytest.fixture
def folder(tmp_path):
  """Three pictures, red, green and blue, and what is none."""
  for name, colour in (('a.png', (255, 0, 0)), ('b.png', (0, 255, 0)), ('c.png', (0, 0, 255))):
    picture(*colour).save(tmp_path / name)
  (tmp_path / 'notes.txt').write_text('none')
  return tmp_path


def test_one_logit_is_a_yes_or_no_wherever_it_is_read(folder):
  """As explain reads it: `predict`, its table, and the pixels of a picture alike."""
  single, path = make(1), folder / 'b.png'  # no red: a logit of 0
  (found,) = single.predict(path)
  assert found.probabilities == (0.5,) and '50.0 %' in str(found)
  assert predictions.to_csv([found]).splitlines()[1].endswith(',0.5')
  (red,) = single.predict(folder / 'a.png')
  explained = explain.tap(single).probabilities(single(single.preprocess(picture(255, 0, 0))))
  np.testing.assert_allclose(red.probabilities, explained[0], rtol=1e-6)


def test_classes_beside_a_sure_one_are_in_the_order_of_their_logits():
  """The probabilities of all others are 0 then."""
  config = ModelConfig('colours', 3, mean=(0.0,) * 3, std=(0.01,) * 3, input_size=32)
  sure = Classifier(Colours(), {}, config, NAMES)  # logits of 1000, 4 and 392
  (found,) = sure.predict(picture(255, 1, 100))
  assert found.classes == (0, 2, 1) and found.probabilities == (1, 0, 0)


def test_every_kind_of_picture(classifier, folder):
  path = folder / 'b.png'
  green = picture(0, 255, 0)
  rows = jnp.asarray(np.asarray(green))  # not one picture after another
  for given in (path, str(path), green, np.asarray(green), [green], np.asarray(green)[None], rows):
    (found,) = classifier.predict(given, top=2)
    assert found.class_names[0] == 'green' and found.classes[0] == 1
    expected = jax.nn.softmax(jnp.array([0.0, 10.0, 0.0]))
    np.testing.assert_allclose(found.probabilities, [expected[1], expected[0]], rtol=1e-5)
    assert found.file == (str(path) if isinstance(given, str | Path) else '')


def test_folders_patterns_and_lists_keep_their_order(classifier, folder):
  for given in (folder, str(folder), str(folder / '*.png')):
    assert [p.classes[0] for p in classifier.predict(given)] == [0, 1, 2]
  names = [str(folder / name) for name in ('c.png', 'a.png')]
  for column in (np.array(names), np.array(names, object)):  # of a table
    assert [p.classes[0] for p in classifier.predict(column)] == [2, 0]
  mixed = [picture(0, 0, 255), folder, folder / 'a.png']
  assert [p.classes[0] for p in classifier.predict(mixed)] == [2, 0, 1, 2, 0]


def test_batches_of_one_shape_compile_once(classifier, folder):
  before = predictions._best._cache_size()
  found = classifier.predict([folder / n for n in ('a.png', 'b.png', 'c.png')] * 3, batch_size=4)
  assert [p.classes[0] for p in found] == [0, 1, 2] * 3
  assert all(len(p.classes) == 3 for p in found)  # fewer than five classes: all
  assert predictions._best._cache_size() <= before + 1


def test_a_picture_lies_as_a_person_sees_it(classifier, tmp_path):
  tall = Image.new('RGB', (40, 80), (255, 0, 0))
  tall.paste((0, 0, 255), (0, 40, 40, 80))
  exif = Image.Exif()
  exif[0x0112] = 6
  tall.save(tmp_path / 'x.png', exif=exif)
  (turned,) = classifier.predict(tmp_path / 'x.png')
  (plain,) = classifier.predict(tall.rotate(-90, expand=True))
  assert turned.probabilities == plain.probabilities


@pytest.mark.parametrize('orientation', range(1, 9))
def test_an_opened_picture_is_turned_once(classifier, orientation, tmp_path):
  """As its file is, whether it was opened, decoded, or read by us and is already upright."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png', exif=exif)
  seen = classifier.views(tmp_path / 'a.png')[0].look()
  with Image.open(tmp_path / 'a.png') as opened:
    for given in (opened, opened.convert('RGB'), seen.picture, predictions.read(opened)):
      again = classifier.views(given)[0].look()
      np.testing.assert_array_equal(again.pixels, seen.pixels)
      np.testing.assert_array_equal(classifier.preprocess(given)[0], seen.pixels)
  assert seen.picture.size == ((40, 60) if orientation >= 5 else (60, 40))


def test_of_a_long_picture_is_said_how_little_counts(classifier, folder):
  picture(0, 255, 0, (40, 400)).save(folder / 'long.png')
  usual, long = classifier.predict([folder / 'b.png', folder / 'long.png'], top=1)
  assert str(usual).endswith('b.png: green (100.0 %)')
  assert str(long).endswith('green (100.0 %), from the central 7.9 % of the picture')
  seen = classifier.views(folder / 'long.png')[0].look()
  assert 0.07 < long.seen == seen.share < 0.08 and seen.pixels.shape == (32, 32, 3)


@pytest.mark.parametrize(
  'given, options, words',
  [
    ([], {}, 'the list is empty'),
    (7, {}, 'not int'),
    (np.zeros((2, 3), np.float32), {}, 'uint8 array'),
    (np.zeros((0, 4, 4, 3), np.uint8), {}, 'the list is empty'),
    ({'a.png': picture(1, 2, 3)}, {}, 'not dict'),
    ('absent.png', {}, 'absent.png'),
    (picture(1, 2, 3), dict(top=0), 'top is a whole number from 1, not 0'),
    (picture(1, 2, 3), dict(batch_size=True), 'batch_size is a whole number'),
  ],
)
def test_bad_input_is_one_line(given, options, words, classifier):
  with pytest.raises(UserError) as error:
    classifier.predict(given, **options)
  assert words in str(error.value) and '\n' not in str(error.value)


def test_a_model_that_decides_nothing():
  with pytest.raises(UserError, match='no classes'):
    make(0).predict(picture(1, 2, 3))


def test_the_table(classifier, folder):
  found = classifier.predict(folder, top=2)
  rows = list(csv.DictReader(io.StringIO(predictions.to_csv(found))))
  assert [row['class1'] for row in rows] == ["'=red", 'green', 'blue, deep']
  assert rows[0]['number1'] == '0' and float(rows[0]['probability1']) > 0.99
  assert rows[2]['file'] == str(folder / 'c.png')
  assert predictions.to_csv([]) == 'file\n'
  assert str(found[0]).endswith('a.png: =red (100.0 %), green (0.0 %)')


@pytest.fixture
def run(classifier, monkeypatch):
  """The command with a model that needs no weights."""
  opened = []

  def open_classifier(*words):
    opened.append(words)
    return classifier

  monkeypatch.setattr('rest_jax.opening.open_classifier', open_classifier)

  def call(*words):
    return command.main(['predict', *map(str, words)]), opened

  return call


def test_command(run, folder, capsys):
  (folder / 'd.png').write_bytes(b'no picture')
  status, opened = run(folder, '--csv', folder / 'sub' / 'out.csv', '--top', 1)
  out, err = capsys.readouterr()
  assert status == 2 and opened == [('efficientnet_lite0', None, False)]
  assert out.count('\n') == 3 and 'b.png: green (100.0 %)' in out
  said, *errors = err.splitlines()
  assert 'passed over' in said and len(errors) == 1
  assert errors[0].startswith('error: ') and 'd.png' in errors[0]
  assert (folder / 'sub' / 'out.csv').read_text().count('\n') == 4
  assert run(folder / 'a.png')[0] in (0, None)


def test_a_table_does_not_take_the_place_of_a_picture(run, folder):
  before = (folder / 'a.png').read_bytes()
  with pytest.raises(UserError, match='would write over that picture'):
    run(folder, '--csv', folder / '..' / folder.name / 'a.png')
  assert (folder / 'a.png').read_bytes() == before


def test_odd_names(run, folder, capsys):
  (folder / 'a.png').rename(folder / '=1\n\x1bcaf\udce9.png')
  assert run(folder / '=1\n\x1bcaf\udce9.png', '--csv', folder / 'out.csv')[0] in (0, None)
  assert '=1\\n\\x1bcaf\\xe9.png: ' in capsys.readouterr().out
  assert '=1\\n\\x1bcaf\\xe9.png,' in (folder / 'out.csv').read_text(encoding='utf-8')


def test_command_refuses_before_any_work(run, folder):
  (folder / 'file').touch()
  for words, message in (
    ((folder, '--top', 0), '--top is a whole number from 1'),
    ((folder, '--csv', folder), 'is a folder'),
    ((folder, '--csv', folder / 'file' / 'x.csv'), 'cannot write'),
    ((folder / '*.jpg',), 'no file matches'),
  ):
    with pytest.raises(UserError, match=message.replace('*', r'\*')):
      run(*words)
  assert run(folder / 'a.png')[1] == [('efficientnet_lite0', None, False)]  # opened here alone


def test_commands_have_names(capsys):
  assert command.main([]) == 0
  assert 'predict' in capsys.readouterr().out
  with pytest.raises(UserError, match='did you mean predict'):
    command.main(['predikt'])
