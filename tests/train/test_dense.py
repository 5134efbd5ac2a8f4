"""Detectors and segmenters through the loop that trains classifiers."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from rest_jax.data.dense_augment import SegmentationAugment
from rest_jax.data.dense_sources import load_dense
from rest_jax.errors import UserError
from rest_jax.metrics import AveragePrecision
from rest_jax.models.classifier import Classifier
from rest_jax.models.dense_model import Detector, Segmenter
from rest_jax.train import (
  dense,
  dense_evaluate,
  dense_opening,
  dense_validation,
  loop,
  measured,
  release,
)
from rest_jax.train.config import check_config, default_config, without_effect
from rest_jax.train.loop import train
from rest_jax.train.optim import warmup_linear
from rest_jax.train.parallel import make_mesh
from rest_jax.train.pipeline import check_start, make_plan
from rest_jax.train.run import Run
from rest_jax.train.task import build_task

SIDE = 32
RED, GREEN = (220, 30, 30), (30, 220, 30)


def draw(rng):
  """A grey picture with a red and a green square, and where they are."""
  image = np.full((SIDE, SIDE, 3), 100, np.uint8)
  boxes = []
  for half, colour in enumerate((RED, GREEN)):
    side = int(rng.integers(8, 14))
    top, left = int(rng.integers(SIDE - side)), half * 16 + int(rng.integers(17 - side))
    image[top : top + side, left : left + side] = colour
    boxes.append([left, top, side, side])
  return image, boxes


@pytest.fixture(scope='module')
def squares(tmp_path_factory):
  """Sixteen pictures of two squares to train on and four to test, as COCO and as pixels."""
  root, rng = tmp_path_factory.mktemp('squares'), np.random.default_rng(0)
  (root / 'annotations').mkdir()
  (root / 'classes.txt').write_text('ground\nred\ngreen\n')
  for split, count in (('train', 16), ('test', 4)):
    (root / split).mkdir()
    (root / f'{split}annot').mkdir()
    images, annotations = [], []
    for i in range(count):
      image, boxes = draw(rng)
      Image.fromarray(image).save(root / split / f'{i}.png')
      classes = np.zeros((SIDE, SIDE), np.uint8)
      images.append({'id': i, 'file_name': f'{i}.png', 'width': SIDE, 'height': SIDE})
      for label, (x, y, w, h) in enumerate(boxes):
        classes[y : y + h, x : x + w] = label + 1
        annotations.append(
          {'id': len(annotations), 'image_id': i, 'category_id': label + 1, 'iscrowd': 0}
          | {'bbox': [x, y, w, h], 'area': w * h}
        )
      Image.fromarray(classes).save(root / f'{split}annot' / f'{i}.png')
    text = {'images': images, 'annotations': annotations}
    text['categories'] = [{'id': 1, 'name': 'red'}, {'id': 2, 'name': 'green'}]
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(text))
  return root


def experiment(root, name, **overrides):
  config = default_config()
  config.model.name = name
  config.model.backbone = dict(width=8, depths=(1, 1, 1, 1))
  config.model.overrides = overrides
  config.data.name = str(root)
  config.dense.canvases = ((SIDE, SIDE),)
  config.dense.short, config.dense.long = (SIDE,), SIDE
  config.dense.test_short, config.dense.test_long = 0, 0
  config.dense.max_objects = 4
  config.optim.clip_norm = 1.0
  config.train.batch_size = 4
  config.train.epochs = 1.5  # six steps
  config.train.eval_every = 1.5
  config.train.checkpoint_every_steps = 3
  return config


@pytest.fixture(scope='module')
def detection(squares):
  options = dict(stages=(1, 2), extra_levels=0, width=8, convs=1, octaves=1, candidates=20)
  config = experiment(squares, 'retinanet_resnet18', **options, max_detections=8)
  config.train.sync_bn = True  # so that one device gives what four do
  return config


@pytest.fixture(scope='module')
def trained(detection, build_once, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('detector')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'build_task', build_once)
    return workdir, train(detection, workdir)


def test_a_detector_leaves_a_model_that_finds_what_was_measured(trained, squares):
  workdir, results = trained
  assert results['finished'] and results['best']['count'] == 4
  assert {'AP', 'AP50', 'AP75'} <= set(results['best'])
  detector = Detector.load(workdir)
  assert detector.class_names == ('red', 'green') and detector.config.canvases == ((SIDE, SIDE),)
  judge = AveragePrecision(detector.class_names)
  for example in load_dense(str(squares), 'boxes').test:
    found = detector.predict(example['image'])
    assert found.masks is None and (found.scores[:-1] >= found.scores[1:]).all()
    judge.add(example, {'boxes': found.boxes, 'scores': found.scores, 'labels': found.labels})
  for name, value in judge.figures()['box'].items():
    if name != 'classes':
      np.testing.assert_allclose(results['best'][name], value, atol=1e-6)
  card = (workdir / 'model' / 'README.md').read_text()
  assert 'box AP' in card and 'classes judged' in card and f'{SIDE}x{SIDE} px' in card
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert any('train/box_loss' in line for line in lines) and any(
    'test/AP' in line for line in lines
  )


@pytest.mark.usefixtures('shared_tasks')
def test_a_stopped_run_goes_on_to_the_same_bits(trained, detection, tmp_path, monkeypatch):
  real, seen = loop.Run.save, []

  def stop(self):
    real(self)
    seen.append(self.step)
    if self.step == 3:
      raise KeyboardInterrupt

  monkeypatch.setattr(loop.Run, 'save', stop)
  with pytest.raises(KeyboardInterrupt):
    train(detection, tmp_path)
  monkeypatch.setattr(loop.Run, 'save', real)
  train(detection, tmp_path)
  one, other = (load_file(d / 'model' / 'model.safetensors') for d in (tmp_path, trained[0]))
  assert seen == [3] and one.keys() == other.keys()
  assert all((one[name] == value).all() for name, value in other.items())


def test_one_device_gives_what_four_do(trained, detection, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, 'make_mesh', lambda: make_mesh(jax.devices()[:1]))
  one = train(detection, tmp_path)
  weights = [load_file(d / 'model' / 'model.safetensors') for d in (tmp_path, trained[0])]
  for name, value in weights[0].items():
    np.testing.assert_allclose(value, weights[1][name], atol=2e-4, err_msg=name)
  assert abs(one['best']['AP'] - trained[1]['best']['AP']) < 0.05


def test_a_segmenter_leaves_a_model_of_what_was_measured(squares, tmp_path):
  config = experiment(squares, 'semantic_fpn_resnet18', fpn_width=8, width=8)
  config.dense.test_scales, config.dense.test_flip = (1.0, 1.5), True
  results = train(config, tmp_path)
  best = results['best']
  assert best['count'] == 4 and set(best['classes']) == {'ground', 'red', 'green'}
  assert 0 <= best['miou'] <= best['mean_accuracy'] <= 1
  segmenter = Segmenter.load(tmp_path)
  assert (segmenter.config.scales, segmenter.config.mirrored) == ((1.0, 1.5), True)
  for given in (
    {},
    {'scales': ['1', '1.5'], 'mirrored': True},
    {'scales': ['1'], 'mirrored': False},
  ):
    judged = evaluated(tmp_path, squares, **given)
    same = [judged[name] == best[name] for name in ('miou', 'accuracy', 'mean_accuracy')]
    assert all(same) == (given.get('mirrored', True))
    text = 'at 1, 1.5 times that, mirror images too'
    assert (text in judged['view']) == given.get('mirrored', True)
    assert judged['judged'] == best['judged'] == 3
    assert judged['view'] in (tmp_path / 'judged/report.md').read_text()
  classes = segmenter.predict(squares / 'test' / '0.png')
  assert classes.shape == (SIDE, SIDE) and set(np.unique(classes)) <= {0, 1, 2}
  with pytest.raises(UserError, match='describes a segmenter, not a detector'):
    Detector.load(tmp_path)


def evaluated(model, data, **options):
  """What `--mode evaluate` measures."""
  names = ('data_dir', 'split', 'limit', 'batch_size', 'scales', 'mirrored', 'architecture', 'ema')
  given = dict.fromkeys((*names, 'image_size', 'resize', 'crop_pct', 'interpolation'))
  given |= {'model': str(model), 'data': str(data), 'seed': 0, 'output': model / 'judged'}
  dense_validation.judge(given | options)
  return json.loads((model / 'judged/results.json').read_text())


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    ({'scales': ['1']}, '--scales: for segmenters'),
    ({'mirrored': False}, '--mirrored: for segmenters'),
    ({'batch_size': 3}, 'batch_size 3 does not divide'),
  ],
)
def test_views_that_a_detector_has_not_are_refused(trained, squares, given, words):
  with pytest.raises(UserError, match=words):
    evaluated(trained[0], squares, **given)


def test_a_sample_is_called_one_wherever_its_figures_stand(squares):
  asked = SimpleNamespace(
    config=SimpleNamespace(kind='segmenter'), class_names=('ground', 'red', 'green')
  )
  given = {'data': str(squares), 'data_dir': None, 'split': None, 'seed': 3, 'model': 'own'}
  source, where = dense_opening.pictures(asked, given | {'limit': 2})
  assert len(source) == 2 and where.endswith('(test), 2 of its 4, seed 3')
  source, where = dense_opening.pictures(asked, given | {'limit': 4})
  assert len(source) == 4 and where.endswith('(test)')


@pytest.mark.parametrize('scales', [[], ['0'], ['x'], ['nan'], ['-1', '1']])
def test_scales_that_are_none_are_one_line(scales):
  with pytest.raises(UserError, match=r'--scales .*it takes such as') as error:
    dense_opening._scales(scales)
  assert '\n' not in str(error.value)


def test_a_model_of_another_kind_is_told_apart(trained):
  with pytest.raises(UserError, match='Detector'):
    Classifier.load(trained[0])
  with pytest.raises(UserError, match='does not describe a detector'):
    Detector.load('digit_scenes')


def test_weights_of_a_classifier_become_the_backbone():
  backbone = {'params/stem/conv1/kernel': np.ones((3, 3)), 'params/head/bias': np.ones(10)}
  expected = {'params/backbone/stem/conv1/kernel': (3, 3), 'params/fpn/kernel': (1, 1)}
  taken, left = dense.backbone_weights(backbone, expected)
  assert list(taken) == ['params/backbone/stem/conv1/kernel'] and left == ['params/head/bias']


@pytest.mark.parametrize(
  'change, words',
  [
    ({'augment.mixup': 0.2}, 'augment.mixup: not for a detector'),
    ({'adversarial.kind': 'pgd', 'data.cache': True}, 'adversarial.kind and data.cache'),
    ({'train.class_weights': 'balanced'}, 'train.class_weights: not for a detector'),
    ({'model.as_init': True}, 'model.as_init trains the classifier of model.init'),
    ({'dense.canvases': ((32,),)}, 'height, width'),
    ({'dense.short': (0,)}, 'whole numbers above 0'),
    ({'dense.crop_share': (0.5, 1.5)}, 'at most 1'),
    ({'model.overrides': {'axis_name': 'batch'}}, "'axis_name' is not an option"),
    ({'model.backbone': {'colour': 3}}, 'colour'),
    ({'model.name': 'retinanet_nothing'}, 'unknown detector'),
    ({'optim.freeze': 'nothing'}, 'matches no parameter'),
    ({'optim.layer_decay': 0.8, 'optim.stage_decay': 0.9}, 'set one'),
  ],
)
def test_bad_configs_are_one_line_before_any_data(detection, change, words):
  config = detection.copy_and_resolve_references()
  config.data.name = '/nowhere'
  for name, value in change.items():
    group, key = name.split('.')
    config[group][key] = type(config)(value) if isinstance(value, dict) else value
  with pytest.raises(UserError, match=words) as error:
    check_config(config)
    check_start(config, make_mesh(jax.devices()[:1]))
  assert '\n' not in str(error.value)


CHANGES = {
  'canvases': ((SIDE, 2 * SIDE),),
  'short': (16,),
  'long': 40,
  'jitter': (0.5, 2.0),
  'crop_share': (0.5, 1.0),
  'least_visible': 0.5,
  'most_of_a_class': 0.5,
  'photometric': True,
  'max_objects': 5,
  'test_short': 16,
  'test_long': 40,
  'test_scales': (0.5, 1.0),
  'test_flip': True,
}


def consequences(config, monkeypatch):
  """What batches, views and the evaluation are made of."""
  asked = []
  for name in ('judge_detector', 'judge_segmenter'):
    monkeypatch.setattr(dense_evaluate, name, lambda *a, **k: asked.append(k))
  sources = dense.load_sources(config)
  mesh = make_mesh(jax.devices()[:1])
  build_task(config, make_plan(config, 16, mesh), mesh, sources.class_names).measure(
    {}, sources.test
  )
  iterator = dense.train_batches(config, sources.train)
  return repr((asked, iterator._batches, dense.test_batches(config, sources.test)))


@pytest.fixture(scope='module')
def unchanged(detection, squares):
  """Configs of both kinds, each with its consequences."""
  configs = detection, experiment(squares, 'semantic_fpn_resnet18', fpn_width=8, width=8)
  with pytest.MonkeyPatch.context() as patch:
    return [(config, consequences(config, patch)) for config in configs]


@pytest.mark.parametrize('key', CHANGES)
def test_every_key_of_the_group_does_something_or_is_said_to_do_nothing(
  unchanged, monkeypatch, key
):
  assert set(CHANGES) == set(default_config().dense)
  used = 0
  for config, before in unchanged:
    other = config.copy_and_resolve_references()
    other.dense[key] = CHANGES[key]
    idle = without_effect(other, [f'dense.{key}'])
    assert (before == consequences(other, monkeypatch)) == bool(idle)
    used += not idle
  assert used


# Another value of what is there for the images of classifiers, or for all.
IMAGES = {
  'data.image_size': 16,
  'data.cache': True,
  'data.workers': 2,
  'data.on_error': 'skip',
  'data.scaled_decoding': True,
  'data.eval_batch_size': 8,
  'data.eval_resize': 'resize_crop',
  'data.eval_crop_pct': 0.5,
  'augment.crop_scale': (0.5, 1.0),
  'augment.crop_ratio': (1.0, 1.0),
  'augment.interpolation': 'bicubic',
  'augment.padding': 4,
  'augment.flip': True,
  'augment.color_jitter': (0.1, 0.1, 0.1),
  'augment.rand_augment': 'rand-m9',
  'augment.repeats': 2,
  'augment.mixup': 0.2,
  'augment.cutmix': 1.0,
  'augment.switch_prob': 0.1,
  'augment.mix_prob': 0.5,
  'augment.erasing': 0.5,
  'augment.label_smoothing': 0.1,
  'augment.group_cam': 0.5,
  'augment.group_cam_groups': 4,
  'augment.group_cam_layer': 'stage3',
}
# Places of the data, and what is done to pixels on the device.
ELSEWHERE = {f'data.{n}' for n in ('name', 'dir', 'train_split', 'val_split', 'test_split')}
ELSEWHERE |= {'data.mean', 'data.std'}


@pytest.mark.parametrize('name', IMAGES)
def test_a_key_of_images_does_something_or_is_refused_or_said_to_do_nothing(
  unchanged, monkeypatch, name
):
  known = {f'{group}.{key}' for group in ('data', 'augment') for key in default_config()[group]}
  assert known == set(IMAGES) | ELSEWHERE
  for config, before in unchanged:
    other = config.copy_and_resolve_references()
    group, key = name.split('.')
    other[group][key] = IMAGES[name]
    try:
      check_config(other)
    except UserError as error:
      assert f'{name}: not for a' in str(error)
      continue
    idle = without_effect(other, [name])
    assert idle or name == 'data.workers' or before != consequences(other, monkeypatch)
    assert not idle or before == consequences(other, monkeypatch)


def test_more_objects_than_there_is_room_for_are_refused_when_the_data_are_opened(detection):
  """Two in each picture of the squares; a segmenter counts none."""
  config = detection.copy_and_resolve_references()
  for room in (2, 3):
    config.dense.max_objects = room
    assert len(dense.load_sources(config).train) == 16
  config.dense.max_objects = 1
  words = r'\(train\): the picture 0 has 2 objects, room is for 1; set dense.max_objects=2$'
  with pytest.raises(UserError, match=words):
    dense.load_sources(config)
  config.model.name = 'semantic_fpn_resnet18'
  assert len(dense.load_sources(config).train) == 16


def test_a_segmenter_draws_from_all_of_its_shorter_sides():
  example = {'image': np.zeros((60, 80, 3), np.uint8), 'segmentation': np.zeros((60, 80), np.uint8)}
  options = dict(long=999, ratio=(1.0, 1.0), square=999, photometric=False)
  for short in ((48,), (30, 48, 90)):
    draw = SegmentationAugment(short=short, **options)
    views = [draw(dict(example), np.random.default_rng(i)) for i in range(30)]
    assert {view['image'].shape[0] for view in views} == set(short)
  one = SegmentationAugment(short=48, **options | {'ratio': (0.5, 2.0)})
  same = SegmentationAugment(short=(48,), **options | {'ratio': (0.5, 2.0)})
  for i in range(3):
    found = [draw(dict(example), np.random.default_rng(i))['image'] for draw in (one, same)]
    np.testing.assert_array_equal(*found)
  with pytest.raises(UserError, match='short, long and square'):
    SegmentationAugment(short=())


def test_a_line_down_is_mmsegmentations_poly_of_power_one():
  rate = warmup_linear(1.0, total=10, warmup=2, start=0.1, floor=0.0)
  np.testing.assert_allclose([rate(s) for s in (0, 1, 2, 6, 9)], [0.1, 0.55, 1.0, 0.5, 0.125])


@pytest.mark.parametrize(
  ('measures', 'kept', 'since'),
  [
    ([np.nan, np.nan, np.nan], 2, 2),
    ([np.nan, 0.1, np.nan], 1, 1),
    ([0.2, 0.1, 0.3], 2, 0),
    ([0.2, np.nan, 0.1], 0, 2),
  ],
)
def test_where_no_measure_is_a_number_the_latest_weights_are_kept(measures, kept, since):
  """And patience counts on: it was no better."""
  seen: list[int] = []
  run: Any = object.__new__(Run)
  run._best, run._meta = None, {}
  run._sources = SimpleNamespace(validation=None)
  run.recorder = SimpleNamespace(evaluation=lambda *_: None, restart_clock=lambda _: None)
  run._checkpoints = SimpleNamespace(save_best=lambda *_: seen.append(run.step))
  run._release = lambda _: None
  run.state = SimpleNamespace(ema=None)
  run._plan, run._config = (
    SimpleNamespace(total=9),
    SimpleNamespace(train=SimpleNamespace(patience=0)),
  )
  for step, value in enumerate(measures):
    run.step = step
    run._measure_both = lambda value=value: ({'AP': value, 'AP50': value}, None)
    run.evaluate()
  assert seen[-1] == kept and run._best['step'] == kept and run._meta['since_best'] == since


def test_no_card_and_no_line_says_nan():
  nothing = dict.fromkeys(('AP', 'AP50', 'AP75', 'mask_AP', 'mask_AP50'), float('nan'))
  pixels = dict.fromkeys(('miou', 'accuracy', 'mean_accuracy'), float('nan'))
  for result in (nothing, pixels):
    own = result | {'count': 2, 'step': 1, 'epoch': 1.0}
    table = release._table(release.Results(own, own, 1.0, True, 'data', classes=2))
    shown = [*table, measured.short(own), measured.line(own, own), measured.values(own, 2)]
    assert 'over 1 of 2 classes' in measured.short(own | {'judged': 1, 'classes': {'a': 1, 'b': 2}})
    assert not any('nan' in line for line in shown) and '| - |' in table[2]
