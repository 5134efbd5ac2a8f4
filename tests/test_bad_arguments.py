"""Bad arguments of every script where nothing is prepared yet: one line, nothing is touched."""

import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rest_jax.data import digit_scenes
from rest_jax.models.classifier import Classifier
from rest_jax.models.registry import create_model

ROOT = Path(__file__).parents[1]

DEFEND = [
  (('--attack', 'pdg'), "'pdg'"),
  (('--norm', 'l0'), "'l0'"),
  (('--eps', '8'), '8/255'),
  (('--norm', 'l2', '--eps', '200'), 'eps 200 in l2 is beyond'),
  (('--steps', '0'), '--steps is 0'),
  (('--attack', 'square', '--steps', '5'), '--steps: square takes no steps'),
  (('--model', 'nowhere'), 'nowhere'),
  (('--model', 'TWO'), 'cat, dog'),
  (('--data', 'nowhere_at_all'), 'nowhere_at_all'),
  (('--split', 'nonsense'), "no split 'nonsense'; it has train, test"),
  (('--limit', '0'), '--limit is 0'),
  (('--defense', 'gausian'), 'gaussian'),
  (('--defense', 'non_local@stage11'), '--defense non_local@stage11'),
  (('--strength', '2'), '--strength is 2'),
  (('--strength', '0.1', '--strength', '0.2'), '--strength is given 2 times'),
  (('--strength', '0.1', '--defense', 'none'), '--strength is that of defences'),
  (('--draws', '3', '--defense', 'jpeg'), '--draws is for random defences (resize_pad)'),
  (('--study', 'sound'), "'sound'"),
  (('--seed', '-1'), '--seed is -1'),
  (('--batch_size', '0'), '--batch_size is 0'),
  (('--output', '/proc/there'), '/proc/there'),
  (('jpeg',), "'jpeg'"),
]
EXPLAIN = [
  ((), 'nothing to explain'),
  (('--image', 'nowhere.png'), 'nowhere.png'),
  (('--evaluate', '--image', 'x.png'), '--evaluate measures a data set'),
  (('--evaluate', '--method', 'group_cm'), 'group_cam'),
  (('--evaluate', '--layer', 'stage11'), "'stage11'"),
  (('--evaluate', '--variant', 'newest'), "'newest'"),
  (('--evaluate', '--groups', '0'), '--groups is 0'),
  (('--evaluate', '--groups', '1000'), '--groups 1000: the default layer has 64 channels'),
  (('--evaluate', '--model', 'nowhere'), 'nowhere'),
  (('--evaluate', '--model', 'TWO'), 'cat, dog'),
  (('--evaluate', '--data', 'nowhere_at_all'), 'nowhere_at_all'),
  (('--evaluate', '--split', 'nonsense'), "'nonsense'"),
  (('--evaluate', '--limit', '0'), '--limit is 0'),
  (('--evaluate', '--target', 'dog'), '--target'),
  (('--evaluate', '--seed', '-1'), '--seed is -1'),
  (('--evaluate', '--batch_size', '0'), '--batch_size is 0'),
  (('--evaluate', '--query_batch', '0'), '--query_batch is 0'),
  (('--evaluate', '--output', '/proc/there'), '/proc/there'),
]
TRAIN = [
  (('--config.optim.lrr=1',), 'optim.lr'),
  (('--config.model.name=rest_smal',), 'rest_small'),
  (('--config.model.overrides={"depth": (1, 1, 1, 1)}',), 'depths'),
  (('--config.model.init=nowhere',), 'nowhere'),
  (('--config.optim.freeze=nothing_like_it',), 'nothing_like_it'),
  (('--batch_size=7',), 'train.batch_size 7'),
  (('--config.data.eval_batch_size=6',), 'data.eval_batch_size 6'),
  (('--config.data.image_size=8',), '8'),
  (('--config.data.name=nowhere_at_all',), 'nowhere_at_all'),
  (('--config.data.test_split=nonsense',), "no split 'nonsense'; it has train, test"),
  (('--epochs=-1',), 'epochs'),
  (('--output=/proc/there',), '/proc/there'),
  (('stray',), "'stray'"),
]
JUDGE = [
  ((), '--model'),
  (('--model=digit_scene',), 'digit_scenes'),
  (('--model=TWO',), 'cat, dog'),
  (('--model=digit_scenes', '--ema'), 'ema are for checkpoints'),
  (('--model=digit_scenes', '--split=nonsense'), "'nonsense'"),
  (('--model=digit_scenes', '--crop_pct=3'), 'crop_pct'),
  (('--model=digit_scenes', '--image_size=8'), 'image_size'),
  (('--model=digit_scenes', '--batch_size=6'), 'batch_size 6'),
  (('--model=digit_scenes', '--data=nowhere_at_all'), 'nowhere_at_all'),
  (('--model=digit_scenes', '--output=/proc/there'), '/proc/there'),
  (('--model=digit_scenes', 'stray'), "'stray'"),
]
CASES = [
  *(('defend.py', args, words) for args, words in DEFEND),
  *(('explain.py', args, words) for args, words in EXPLAIN),
  *(('train.py', args, words) for args, words in TRAIN),
  *(('train.py', ('--mode=evaluate', *args), words) for args, words in JUDGE),
]


@pytest.fixture(scope='module')
def two_classes(tmp_path_factory):
  """A model of two classes, 'TWO' in the tables; digit_scenes has ten."""
  options = dict(width=4, depths=(1, 1, 1, 1))
  module = create_model('resnet18', 2, **options)
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), image)
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  place = tmp_path_factory.mktemp('model') / 'two'
  Classifier.create(
    'resnet18', variables, num_classes=2, overrides=options, class_names=('cat', 'dog')
  ).save(place)
  return str(place)


@pytest.fixture
def nothing(tmp_path, monkeypatch):
  """An empty home and an empty directory to work in, which are looked at again at the end."""
  home, here = tmp_path / 'home', tmp_path / 'here'
  for place in (home, here):
    place.mkdir()
  monkeypatch.setenv('HOME', str(home))
  monkeypatch.delenv('TFDS_DATA_DIR')
  monkeypatch.chdir(here)
  # It would take minutes before the check below says so.
  monkeypatch.setattr(digit_scenes, 'prepare', lambda root: pytest.fail('data are prepared'))
  yield tmp_path
  files = [path for path in tmp_path.rglob('*') if path.is_file()]
  assert not files and not list(home.iterdir()), files


@pytest.mark.parametrize(
  ('script', 'args', 'words'), CASES, ids=[' '.join((s, *a)) for s, a, _ in CASES]
)
def test_one_line_status_2_and_nothing_prepared(
  nothing, two_classes, monkeypatch, capsys, script, args, words
):
  args = [arg.replace('TWO', two_classes) for arg in args]
  if script == 'train.py' and '--mode=evaluate' not in args:
    args = ['--config', str(ROOT / 'configs' / 'digit_scenes.py'), *args]
  monkeypatch.setattr(sys, 'argv', [script, *args])
  with pytest.raises(SystemExit) as end:
    runpy.run_path(str(ROOT / script), run_name='__main__')
  said = capsys.readouterr()
  assert end.value.code == 2 and said.out == ''
  lines = said.err.splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: ') and words in lines[0], said.err
