"""The command that writes a model directory with measured Wiener gains."""

import numpy as np
import pytest
from PIL import Image

from rest_jax import data
from rest_jax.defend import measure_gains
from rest_jax.errors import UserError
from rest_jax.models import model_dir
from rest_jax.models.classifier import Classifier
from rest_jax.models.registry import create_model

OPTIONS = dict(width=4, depths=(1, 1, 1, 1))


@pytest.fixture
def folder(tmp_path):
  """Six pictures of two classes, and a classifier of them."""
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for label in ('cat', 'dog'):
      place = tmp_path / 'pictures' / split / label
      place.mkdir(parents=True)
      for index in range(3):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f'{index}.png')
  specs = model_dir.abstract_tensors(create_model('resnet18', 2, **OPTIONS))
  flat = {n: rng.uniform(size=s.shape).astype(s.dtype) for n, s in specs.items()}
  Classifier.create(
    'resnet18',
    model_dir.unflatten(flat),
    num_classes=2,
    overrides=OPTIONS,
    class_names=data.load(tmp_path / 'pictures').class_names,
    input_size=32,
  ).save(tmp_path / 'model')
  return tmp_path


def run(folder, *more):
  words = ('--model', folder / 'model', '--data', folder / 'pictures', '--output', folder / 'out')
  measure_gains.main(['measure_gains', *map(str, words), *more])


def test_a_directory_with_gains(folder, capsys):
  run(folder, '--steps', '1', '--batch_size', '4', '--bands', '3', '--stages', '1', '2')
  assert 'from 6 images' in capsys.readouterr().out
  measured = Classifier.load(folder / 'out')
  assert measured.module.compression.strategy == 'wiener'
  stats = model_dir.flatten(measured.variables)
  gains = np.concatenate([stats[f'batch_stats/compress{i}/gain'].ravel() for i in (1, 2)])
  assert ((gains > 0) & (gains <= 1)).all() and (gains < 1).any()
  card = (folder / 'out' / 'README.md').read_text()
  assert 'measured on 6 training images' in card and 'linf 8/255' in card


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--eps', 'much'], '--eps is a radius, a number from 0'),
    (['--norm', 'l3'], "unknown norm 'l3'"),
    (['--eps', '-1'], '--eps is a radius, a number from 0'),
    (['--bands', '0'], 'bands is a whole number of 1 to 64'),
    (['--stages', '7'], 'stages of 1 to 4'),
    (['--limit', '0'], '--limit is 0'),
    (['--modle', 'x'], 'did you mean --model'),
  ],
)
def test_bad_flags(tmp_path, words, message):
  with pytest.raises(UserError, match=message):
    run(tmp_path, *words)
