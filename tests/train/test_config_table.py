"""Every key of the config: a bad value is refused in one line, another value does something."""

import itertools

import jax
import numpy as np
import pytest

from rest_jax import data
from rest_jax.errors import UserError
from rest_jax.models import registry
from rest_jax.train import command, parallel, pipeline
from rest_jax.train.config import FIELDS, check_config, default_config, known_keys, without_effect
from rest_jax.train.config_checks import USES
from rest_jax.train.task import build_task

NAN, INF = float('nan'), float('inf')
# Text that names something outside of the config, which only opening it can judge.
NAMES = (
  'data.name', 'data.dir', 'data.train_split', 'data.val_split', 'data.test_split', 'log.wandb'
)  # fmt: skip
BAD = {
  'seed': [-1, 2**31, 1.5, True],
  'model.name': ['rest_smal', '', 3],
  'model.overrides': [{'width': 3}, {'num_classes': 5}, {'bn_axis_name': 'x'}, 3],
  'model.dtype': ['float16', ''],
  'model.init': ['no_such_model', 'none.pth', 3],
  'model.as_init': [1, 'yes'],
  'data.image_size': [0, -8, 10**6, 64.0],
  'data.cache': [1, 'yes'],
  'data.workers': [-1, 0.5],
  'data.on_error': ['ignore'],
  'data.scaled_decoding': [1],
  'data.eval_batch_size': [-1, 3],
  'data.eval_resize': ['stretch'],
  'data.eval_crop_pct': [87.5, 0.0, -0.5, NAN, INF],
  'data.mean': [(123.7, 116.3, 103.5), (0.5,), (0.5, 0.5, NAN), (-0.1, 0.5, 0.5), ('0', '0', '0')],
  'data.std': [(58.4, 57.1, 57.4), (0.2, 0.0, 0.2), (0.2, 0.2), (INF, 1, 1), (-1, 1, 1)],
  'augment.crop_scale': [(0.5, 0.1), (0.0, 1.0), (0.5, 1.5), (0.1,), (NAN, 1.0)],
  'augment.crop_ratio': [(2.0, 1.0), (0.0, 1.0), (), (1.0, INF)],
  'augment.interpolation': ['nearest'],
  'augment.padding': [-1, 0.5],
  'augment.flip': [1],
  'augment.color_jitter': [(0.4,), (-0.1, 0.0, 0.0), (NAN, 0.0, 0.0)],
  'augment.rand_augment': ['rand-m9-xyz', 'augmix'],
  'augment.repeats': [0, -1],
  'augment.mixup': [-0.1, NAN, INF],
  'augment.cutmix': [-0.1, NAN, INF],
  'augment.switch_prob': [1.5, -0.1, NAN],
  'augment.mix_prob': [1.5, -0.1, NAN],
  'augment.erasing': [25.0, -0.1, NAN],
  'augment.label_smoothing': [1.0, -0.1, NAN],
  'augment.group_cam': [1.5, NAN],
  'augment.group_cam_groups': [0, -1],
  'augment.group_cam_layer': [3],
  'optim.name': ['adam'],
  'optim.lr': [0.0, -1e-3, NAN, INF],
  'optim.lr_batch': [-1, 2.5],
  'optim.weight_decay': [-0.1, NAN, INF],
  'optim.b1': [1.0, -0.1, NAN],
  'optim.b2': [1.0, -0.1, NAN],
  'optim.eps': [0.0, -1e-8, NAN],
  'optim.momentum': [1.0, -0.1, NAN],
  'optim.clip_norm': [-1.0, NAN, INF],
  'optim.layer_decay': [0.0, 1.5, -1.0, NAN, 0.5],  # tiny_net has no stages
  'optim.stage_decay': [0.0, 1.5, NAN, 0.5],
  'optim.power': [0.0, -1.0, NAN, INF],
  'optim.freeze': ['stem(', 'nothing', '.*'],
  'optim.schedule': ['poly', 'step'],
  'optim.step_epochs': [(3.0,)],
  'optim.warmup_epochs': [-1.0, NAN, INF],
  'optim.warmup_lr': [-1e-6, NAN, INF],
  'optim.min_lr': [-1e-6, NAN, INF, 0.5],
  'train.epochs': [0.0, -1.0, NAN, INF, 1e12],
  'train.batch_size': [0, -8, 6, 8.5],
  'train.accumulate': [0, -1, 3],
  'train.ema': [1.0, -0.1, NAN],
  'train.sync_bn': [1],
  'train.eval_every': [0.0, -1.0, NAN, INF],
  'train.patience': [-1, 1.5],
  'train.class_weights': ['square', 1],
  'train.checkpoint_every_steps': [-1, 0.5],
  'train.checkpoint_every_seconds': [-1.0, NAN, INF],
  'adversarial.kind': ['pdg'],
  'adversarial.norm': ['l0'],
  'adversarial.eps': [-0.1, NAN, INF],
  'adversarial.step_size': [-0.1, NAN, INF],
  'adversarial.steps': [0, -1],
  'adversarial.random_start': [1],
  'adversarial.beta': [-1.0, NAN, INF],
  'adversarial.replays': [0, -1],
  'adversarial.batch_norm': ['off'],
  'adversarial.eval_steps': [-1, 0.5],
  'denoise.noise': [-0.1, 2.0, NAN, INF, 0.1],  # with ImageNet's mean
  'denoise.eval_noise': [0.0, 8.0, NAN],
  'model.backbone': [3],
  'dense.canvases': [(), ((8,),), ((0, 8),), ((8, 8.5),), (8, 8)],
  'dense.short': [(), (0,), (8.5,)],
  'dense.long': [0, -1],
  'dense.jitter': [(2.0, 1.0), (0.0, 1.0), (1.0,), (1.0, INF)],
  'dense.crop_share': [(0.9, 0.5), (0.5, 1.5), (0.0, 1.0)],
  'dense.least_visible': [1.5, -0.1, NAN],
  'dense.most_of_a_class': [0.0, 1.5, NAN],
  'dense.photometric': [1],
  'dense.max_objects': [0, -1],
  'dense.test_short': [-1, 8.5],
  'dense.test_long': [-1, 8.5],
  'dense.test_scales': [(), (0.0,), (1.0, NAN)],
  'dense.test_flip': [1],
  'log.every': [0, -1],
  'log.tensorboard': [1],
  **{name: [3] for name in NAMES},
}
CASES = [(name, value) for name, values in BAD.items() for value in values]


def changed(config, name, value):
  group, _, key = name.rpartition('.')
  place = config[group] if group else config
  if key in ('overrides', 'backbone') and isinstance(value, dict):
    config.model[key] = value
    return config
  with place.ignore_type():
    place[key] = value
  return config


@pytest.fixture
def small(config, tiny_net, monkeypatch):
  monkeypatch.setitem(registry._BUILDERS, 'tiny_net', tiny_net)
  config.model.name = 'tiny_net'
  return config


def test_no_key_is_forgotten():
  assert set(BAD) == set(ALTERNATIVES) == set(known_keys())


@pytest.mark.parametrize(('name', 'value'), CASES, ids=lambda x: str(x)[:30])
def test_a_bad_value_is_refused_before_any_data_is_opened(small, name, value):
  with pytest.raises(UserError) as caught:
    check_config(changed(small, name, value))
    pipeline.check_start(small, parallel.make_mesh())
  text = str(caught.value)
  assert name in text and '\n' not in text


# Another value for each key, and what has to be on for it to do anything.
PGD, MIXED = {'adversarial.kind': 'pgd'}, {'augment.mixup': 0.2, 'augment.cutmix': 1.0}
SGD = {'optim.name': 'sgd'}
RESNET = {
  'model.name': 'resnet18_cifar', 'data.image_size': 32,
  'model.overrides': {'width': 4, 'depths': (1, 1, 1, 1)},
}  # fmt: skip
CAM = {
  'augment.group_cam': 0.5, 'augment.group_cam_groups': 2, 'augment.group_cam_layer': 'conv'
}  # fmt: skip
NOISE = {
  'denoise.noise': 0.1, 'data.mean': (0.0, 0.0, 0.0), 'data.std': (1.0, 1.0, 1.0),
  'model.name': 'denoising_autoencoder',
}  # fmt: skip
ALTERNATIVES = {
  'seed': (1, {}),
  'model.name': ('resnet18_cifar', {'data.image_size': 32}),
  'model.overrides': ({'norm': False}, {}),
  'model.dtype': ('bfloat16', RESNET),
  'model.init': ('digit_scenes', {}),
  'model.as_init': (True, {}),
  'data.name': ('other', {}),
  'data.dir': ('place', {}),
  'data.train_split': ('part', {}),
  'data.val_split': ('part', {}),
  'data.test_split': ('part', {}),
  'data.image_size': (16, {}),
  'data.cache': (True, {}),
  'data.workers': (2, {}),
  'data.on_error': ('skip', {}),
  'data.scaled_decoding': (True, {}),
  'data.eval_batch_size': (16, {}),
  'data.eval_resize': ('resize_crop', {}),
  'data.eval_crop_pct': (0.5, {'data.eval_resize': 'resize_crop'}),
  'data.mean': ((0.1, 0.2, 0.3), {}),
  'data.std': ((0.1, 0.2, 0.3), {}),
  'augment.crop_scale': ((0.5, 1.0), {}),
  'augment.crop_ratio': ((1.0, 1.0), {'augment.crop_scale': (0.5, 1.0)}),
  'augment.interpolation': ('bicubic', {}),
  'augment.padding': (4, {}),
  'augment.flip': (True, {}),
  'augment.color_jitter': ((0.1, 0.1, 0.1), {}),
  'augment.rand_augment': ('rand-m9', {}),
  'augment.repeats': (2, {}),
  'augment.mixup': (0.5, {}),
  'augment.cutmix': (0.5, {}),
  'augment.switch_prob': (0.1, MIXED),
  'augment.mix_prob': (0.1, MIXED),
  'augment.erasing': (0.5, {}),
  'augment.label_smoothing': (0.1, {}),
  'augment.group_cam': (0.25, CAM),
  'augment.group_cam_groups': (4, CAM),
  'augment.group_cam_layer': ('norm', CAM),
  'optim.name': ('sgd', {}),
  'optim.lr': (0.5, {}),
  'optim.lr_batch': (64, {}),
  'optim.weight_decay': (0.5, {}),
  'optim.b1': (0.5, {}),
  'optim.b2': (0.5, {}),
  'optim.eps': (0.5, {}),
  'optim.momentum': (0.5, SGD),
  'optim.clip_norm': (0.5, {}),
  'optim.layer_decay': (0.5, RESNET),
  'optim.stage_decay': (0.5, RESNET),
  'optim.power': (2.0, {'optim.schedule': 'linear'}),
  'optim.freeze': ('conv', {}),
  'optim.schedule': ('constant', {}),
  'optim.step_epochs': ((2.0,), {'optim.schedule': 'step', 'optim.step_epochs': (3.0,)}),
  'optim.warmup_epochs': (2.0, {}),
  'optim.warmup_lr': (1e-4, {'optim.warmup_epochs': 2.0}),
  'optim.min_lr': (1e-4, {}),
  'train.epochs': (5.0, {}),
  'train.batch_size': (16, {}),
  'train.accumulate': (2, {}),
  'train.ema': (0.5, {}),
  'train.sync_bn': (True, {}),
  'train.eval_every': (2.0, {}),
  'train.patience': (3, {}),
  'train.class_weights': ('balanced', {}),
  'train.checkpoint_every_steps': (5, {}),
  'train.checkpoint_every_seconds': (5.0, {}),
  'adversarial.kind': ('pgd', {}),
  'adversarial.norm': ('l2', PGD),
  'adversarial.eps': (0.01, PGD),
  'adversarial.step_size': (0.01, PGD),
  'adversarial.steps': (3, PGD),
  'adversarial.random_start': (False, PGD),
  'adversarial.beta': (2.0, {'adversarial.kind': 'trades'}),
  'adversarial.replays': (2, {'adversarial.kind': 'free'}),
  'adversarial.batch_norm': ('train', PGD),
  'adversarial.eval_steps': (2, {}),
  'denoise.noise': (0.2, NOISE),
  'denoise.eval_noise': (0.2, NOISE),
  'model.backbone': ({'bn_frozen': True}, {}),
  'dense.canvases': (((8, 8), (8, 16)), {}),
  'dense.short': ((8,), {}),
  'dense.long': (16, {}),
  'dense.jitter': ((0.5, 2.0), {}),
  'dense.crop_share': ((0.5, 1.0), {}),
  'dense.least_visible': (0.5, {}),
  'dense.most_of_a_class': (0.5, {}),
  'dense.photometric': (True, {}),
  'dense.max_objects': (5, {}),
  'dense.test_short': (8, {}),
  'dense.test_long': (16, {}),
  'dense.test_scales': ((0.5, 1.0), {}),
  'dense.test_flip': (True, {}),
  'log.every': (3, {}),
  'log.tensorboard': (True, {}),
  'log.wandb': ('project', {}),
}
# What these do is seen in whole runs: tests of the loop, of metrics, of weights to start from; and
# of dense tasks in test_dense.py.
ELSEWHERE = ('model.init', 'model.backbone', 'dense.', 'train.checkpoint_every_', 'log.')
ELSEWHERE += ('model.as_init', 'train.patience', 'train.class_weights')


@pytest.fixture
def opened(monkeypatch):
  """What the data module is asked for, in place of data."""
  asked = []
  for function in ('load', 'train_iterator', 'eval_batches'):
    monkeypatch.setattr(data, function, lambda *a, **k: asked.append((a, sorted(k.items()))))
  return asked


def consequences(config, opened):
  """What a config makes: arguments of the data module, the plan, rates, both steps as programs."""
  opened.clear()
  mesh, source = parallel.make_mesh(jax.devices()[:1]), range(100)
  pipeline.load_sources(config)
  pipeline.train_batches(config, source)
  pipeline.test_batches(config, source)
  plan = pipeline.make_plan(config, 100, mesh)
  yield repr(opened), repr((plan.total, sorted(plan.evaluations)))
  task, size = build_task(config, plan, mesh, 'abc'), config.data.image_size
  rows = config.train.batch_size
  batch = {
    'image': jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8),
    'label': jax.ShapeDtypeStruct((rows,), np.int32),
  }
  yield program(task.train_step, task.template, batch)
  variables = {'params': task.template.params, 'batch_stats': task.template.batch_stats}
  from rest_jax.train.evaluate import zero_totals

  totals = zero_totals(bool(config.adversarial.eval_steps), bool(config.denoise.noise))
  mask = {'mask': jax.ShapeDtypeStruct((rows,), bool)}
  yield program(task.eval_step, variables, batch | mask, totals)


def program(function, *args):
  return function.lower(*args).as_text()  # with its constants, such as data.std


class Kept:
  """What a generator gives, for whoever asks again; it goes no further than it was asked for."""

  def __init__(self, source):
    self.source, self.seen = source, []

  def __iter__(self):
    for place in itertools.count():
      if place == len(self.seen):
        self.seen.append(next(self.source))
      yield self.seen[place]


BEFORE = {}  # by what is set beside: the consequences that a key's other value is held against


@pytest.mark.parametrize('name', [n for n in known_keys() if not n.startswith(ELSEWHERE)])
def test_another_value_does_something(small, opened, name):
  value, beside = ALTERNATIVES[name]
  for key, setting in beside.items():
    changed(small, key, setting)
  check_config(small)
  assert name not in without_effect(small, [name])
  other = changed(small.copy_and_resolve_references(), name, value)
  check_config(other)
  # Lazily: what is read from disk or planned shows most keys, and tracing takes a while.
  before = BEFORE.setdefault(repr(beside), Kept(consequences(small, opened)))
  one, two = iter(before), consequences(other, opened)
  assert any(next(one) != next(two) for _ in range(3)), f'{name} does nothing'


@pytest.mark.parametrize('name', USES)
def test_a_key_that_would_do_nothing_is_refused_on_the_command_line(name, tmp_path, monkeypatch):
  """And named at the start of a run where a config file has it."""
  source = 'from rest_jax.train.config import default_config\n'
  (tmp_path / 'c.py').write_text(
    f'{source}def get_config():\n  config = default_config()\n  config.optim.name = {off(name)!r}\n'
    f'  config.model.name = {model(name)!r}\n'
    f'  config.optim.schedule = {"constant"!r}\n  return config\n'
  )
  value = ALTERNATIVES[name][0]
  words = ['train.py', f'--config={tmp_path / "c.py"}', f'--config.{name}={value}']
  with pytest.raises(UserError, match=rf'--config.{name} has no effect here: it is for '):
    command.parse(words, '')
  config = default_config()
  config.optim.update(name=off(name), schedule='constant')
  config.model.name = model(name)
  assert list(without_effect(changed(config, name, value))) == [name]


def off(name):
  return 'adamw' if name == 'optim.momentum' else 'sgd'


def model(name):
  """Of a kind that does not look at the key."""
  return 'retinanet_resnet18' if USES[name].words == 'a classifier' else 'rest_lite'


def test_every_use_names_keys():
  for name, use in USES.items():
    known = any(
      key in use.words for key in (*known_keys(), 'a detector', 'a segmenter', 'a classifier')
    )
    assert name in known_keys() and known, name
  assert {name.split('.')[0] for name in USES} <= set(FIELDS)
