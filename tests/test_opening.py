"""What is judged: one rule for the classes, the split and the sample in all three scripts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from drawn_weights import drawn
from PIL import Image

from rest_jax.defend import command as defend_command
from rest_jax.defend import run as defend_run
from rest_jax.errors import UserError
from rest_jax.explain import command as explain_command
from rest_jax.explain import study
from rest_jax.models.classifier import Classifier
from rest_jax.models.registry import create_model
from rest_jax.opening import matched, open_judged, open_training, read_examples, take_part
from rest_jax.train import validation_command

COLOURS = ('blue', 'green', 'red')
OVERRIDES = {'width': 8, 'depths': (1, 1, 1, 1)}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A model directory of three colours, not trained."""
  place = tmp_path_factory.mktemp('model') / 'colours'
  module = create_model('resnet18', 3, **OVERRIDES)
  image = np.zeros((1, 32, 32, 3), np.float32)
  variables = drawn(module, image)
  Classifier.create(
    'resnet18',
    variables,
    num_classes=3,
    overrides=OVERRIDES,
    class_names=COLOURS,
    input_size=32,
    resize='squash',
  ).save(place)
  return str(place)


def folder(root, names, each=4):
  rng = np.random.default_rng(0)
  for name in names:
    (root / name).mkdir(parents=True)
    for number in range(each):
      pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(root / name / f'{number}.png')
  return str(root)


def train_script(model, data, output, *more):
  argv = ['train.py', '--mode', 'evaluate', '--model', model, '--data', data, '--output', output]
  validation_command.main([*argv, *more])


def explain_script(model, data, output, *more):
  argv = ['explain.py', '--evaluate', '--model', model, '--data', data, '--output', output, *more]
  parsed = explain_command.parse([*argv, '--method', 'grad_cam', '--layer', 'stage1'], '')
  assert parsed is not None
  study.open_study(parsed)


def defend_script(model, data, output, *more):
  argv = ['defend.py', '--attack', 'fgsm', '--model', model, '--data', data, '--output', output]
  parsed = defend_command.parse([*argv, '--defense', 'none', *more], '')
  assert parsed is not None
  defend_run.run(parsed)


SCRIPTS = {'train.py': train_script, 'explain.py': explain_script, 'defend.py': defend_script}


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize(
  ('names', 'more', 'words'),
  [
    (('lion', 'tiger', 'zebra'), (), "lion, tiger, zebra are none of the model's; choose a model"),
    (('blue', 'green', 'red', 'tiger'), (), "tiger is none of the model's"),
    (('0', '1'), (), 'the data has 2, the model 3 classes'),
    (COLOURS, ('--split', 'nonsense'), "no split 'nonsense'; it has all, test, train"),
    (('PetImages/blue', 'PetImages/green'), (), 'has a single class, PetImages: give'),
  ],
)
def test_all_scripts_refuse_the_same(script, names, more, words, model, tmp_path):
  data = folder(tmp_path / 'data', names)
  with pytest.raises(UserError) as caught:
    SCRIPTS[script](model, data, str(tmp_path / 'out'), *more)
  assert words in str(caught.value) and '\n' not in str(caught.value)
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('names', [('red', 'blue'), ('red', 'green', 'blue'), ('0', '1', '2')])
def test_logits_have_the_numbers_of_the_labels(model, tmp_path, names):
  """By name in any order, a part among itself, numbers as they are."""
  whole = Classifier.load(model)
  judged = open_judged(folder(tmp_path / 'data', names), None, whole, model)
  images, labels, _ = read_examples(judged.sample, judged.classifier, 0, len(judged.sample))
  assert judged.data.class_names == tuple(sorted(names))
  wanted = sorted(names) if names[0] == 'red' else list(COLOURS)
  assert list(judged.classifier.class_names) == wanted
  columns = [COLOURS.index(name) for name in wanted]
  np.testing.assert_array_equal(judged.classifier(images), np.asarray(whole(images))[:, columns])
  assert judged.classifier.num_classes == len(wanted) and labels.max() == len(wanted) - 1
  part = 'judged on these of the 3 classes'
  assert (part in judged.line) == (part in judged.where) == (len(names) < 3)


def test_a_part_is_a_classifier_under_transformations(model):
  whole = Classifier.load(model)
  part = take_part(whole, (2, 0), ('red', 'blue'))
  images = np.random.default_rng(1).random((2, 32, 32, 3), np.float32)
  logits = jax.jit(lambda classifier, images: classifier(images))(part, images)
  np.testing.assert_allclose(logits, np.asarray(whole(images))[:, [2, 0]], rtol=1e-5, atol=1e-5)
  assert len(jax.tree.leaves(part)) == len(jax.tree.leaves(whole))
  with pytest.raises(UserError, match='not saved'):
    part.save('anywhere')
  with pytest.raises(UserError, match='has no classes'):
    matched(take_part(whole, (), ()), ('a', 'b'), 'data', 'net')


def test_a_larger_limit_goes_on_where_a_smaller_one_ended(model, tmp_path):
  data, whole = folder(tmp_path / 'data', COLOURS), Classifier.load(model)
  small, large = (open_judged(data, None, whole, model, limit=n) for n in (5, 9))
  few = read_examples(small.sample, whole, 0, 5)
  many = read_examples(large.sample, whole, 0, 9)
  np.testing.assert_array_equal(few[0], many[0][:5])
  np.testing.assert_array_equal(few[1], many[1][:5])
  assert np.bincount(many[1]).tolist() == [3, 3, 3]
  assert small.line.startswith(
    f'5 of 12 images of 3 classes from {data} (all), 1 to 2 of each class, seed 0: blue, green, red'
  )


def test_evaluation_of_a_sample_and_of_all(model, tmp_path, capsys):
  data = folder(tmp_path / 'data', COLOURS)
  train_script(model, data, str(tmp_path / 'out'), '--batch_size', '12')
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith(f'12 images of 3 classes from {data} (all): blue, green, red')
  assert f'on 12 images of {data} (all): top-1' in lines[-1]
  train_script(model, data, str(tmp_path / 'out'), '--batch_size', '12', '--limit', '6')
  assert f'on 6 images of {data} (all), 2 of each class, seed 0: top-1' in capsys.readouterr().out
  with pytest.raises(UserError, match='--crop_pct is for --resize resize_crop'):
    train_script(model, data, str(tmp_path / 'out'), '--crop_pct', '0.9')


def test_the_training_split_for_what_is_fitted(model, tmp_path):
  whole = Classifier.load(model)
  data = folder(tmp_path / 'data', COLOURS)
  part, source = open_training(data, None, whole, model)
  assert part.class_names == COLOURS and len(source) == 9
  with pytest.raises(UserError, match="none of the model's"):
    open_training(folder(tmp_path / 'others', ('a', 'b', 'c')), None, whole, model)


@pytest.mark.parametrize('names', [('1', '2', '3'), ('10', '2', '7'), ('003', '001', '007')])
def test_numbers_of_a_list_are_classes_that_are_numbered_otherwise(model, tmp_path, names):
  """Folders may be called 1 to 102; a list of them has no class 0."""
  whole = dataclasses.replace(Classifier.load(model), class_names=names)
  place = Path(folder(tmp_path / 'data', names, each=2))
  rows = [f'{name}/{i}.png,{int(name)}\n' for i in range(2) for name in names]
  (place / 'labels.csv').write_text(f'file,label\n{"".join(rows)}')
  judged = open_judged(str(place / 'labels.csv'), None, whole, model)
  part, source = open_training(str(place / 'labels.csv'), None, whole, model)
  for own, images in ((judged.classifier, judged.data.images), (part, source)):
    assert own.class_names == names and set(images.labels) == {0, 1, 2}
    for path, label in zip(images.files, images.labels, strict=True):
      assert Path(path).parent.name == names[label]
  (place / 'labels.csv').write_text(
    f'file,label\n{"".join(rows)}'.replace(f',{int(names[0])}', ',5')
  )
  with pytest.raises(UserError, match=f'has the label 5, .* called {names[0]}, {names[1]}'):
    open_judged(str(place / 'labels.csv'), None, whole, model)
