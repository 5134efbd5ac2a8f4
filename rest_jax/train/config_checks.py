"""What the values of a config may be, and which of them nothing looks at.

`check_values` needs no model and no data; `pipeline.check_start` then builds the model, still
before any data is opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rest_jax.errors import UserError
from rest_jax.inputs import radius
from rest_jax.models.dense_registry import kind_of

RADII = ('adversarial.eps', 'adversarial.step_size')  # lengths in units of [0, 1]

MAX_SIDE = 8192  # pixels
MAX_EPOCHS = 1_000_000


class Rule(NamedTuple):
  """What a value may be: a test, and the words for it."""

  fits: Callable[[Any], bool]
  words: str


def _one_of(*choices: str) -> Rule:
  shown = ', '.join(choice or "''" for choice in choices)
  return Rule(lambda value: value in choices, f'one of {shown}')


def _within(words: str, fits: Callable[[Any], bool]) -> Rule:
  return Rule(fits, f'a number {words}')


def _numbers(counts: Sequence[int], words: str, fits: Callable[[Any], bool]) -> Rule:
  def check(values):
    numbers = all(type(value) in (int, float) for value in values)
    return numbers and len(values) in counts and all(map(math.isfinite, values)) and fits(values)

  return Rule(check, words)


def _are_canvases(value: Any) -> bool:
  """Whether a value is a tuple of pairs of whole numbers above 0."""
  return bool(value) and all(
    isinstance(pair, tuple | list)
    and len(pair) == 2
    and all(type(side) is int and 0 < side <= MAX_SIDE for side in pair)
    for pair in value
  )


_POSITIVE = _within('above 0', lambda x: x > 0)
_SHARE = _within('from 0 to 1', lambda x: 0 <= x <= 1)
_BELOW_ONE = _within('from 0 to below 1', lambda x: 0 <= x < 1)
_UP_TO_ONE = _within('above 0 and at most 1', lambda x: 0 < x <= 1)
_RISING = 'least and largest, above 0'

RULES: dict[str, Rule] = {
  'seed': Rule(lambda x: 0 <= x < 2**31, 'a whole number from 0 to 2147483647'),
  'model.dtype': _one_of('float32', 'bfloat16'),
  'data.image_size': Rule(
    lambda x: 0 < x <= MAX_SIDE, f'a whole number above 0, at most {MAX_SIDE}'
  ),
  'data.on_error': _one_of('fatal', 'skip'),
  'data.eval_resize': _one_of('squash', 'resize_crop'),
  'data.eval_crop_pct': _within('above 0 and at most 1, a share', lambda x: 0 < x <= 1),
  'data.mean': _numbers(
    [3],
    '3 numbers from 0 to 1; those of 0 to 255 are divided by 255',
    lambda v: 0 <= min(v) <= max(v) <= 1,
  ),
  'data.std': _numbers(
    [3],
    '3 numbers above 0, at most 1; those of 0 to 255 are divided by 255',
    lambda v: 0 < min(v) <= max(v) <= 1,
  ),
  'augment.crop_scale': _numbers(
    [0, 2], f'0 or 2 numbers: {_RISING}, at most 1', lambda v: not v or 0 < v[0] <= v[1] <= 1
  ),
  'augment.crop_ratio': _numbers([2], f'2 numbers: {_RISING}', lambda v: 0 < v[0] <= v[1]),
  'augment.interpolation': _one_of('bilinear', 'bicubic'),
  'augment.color_jitter': _numbers(
    [0, 3], '0 or 3 numbers of 0 or more', lambda v: min(v, default=0) >= 0
  ),
  'augment.repeats': _POSITIVE,
  'augment.switch_prob': _SHARE,
  'augment.mix_prob': _SHARE,
  'augment.erasing': _SHARE,
  'augment.label_smoothing': _BELOW_ONE,
  'augment.group_cam': _SHARE,
  'augment.group_cam_groups': _POSITIVE,
  'optim.name': _one_of('adamw', 'sgd'),
  'optim.lr': _POSITIVE,
  'optim.b1': _BELOW_ONE,
  'optim.b2': _BELOW_ONE,
  'optim.eps': _POSITIVE,
  'optim.momentum': _BELOW_ONE,
  'optim.layer_decay': _UP_TO_ONE,
  'optim.stage_decay': _UP_TO_ONE,
  'optim.power': _POSITIVE,
  'optim.schedule': _one_of('cosine', 'linear', 'step', 'constant'),
  'optim.step_epochs': _numbers(
    range(1000), 'rising epochs above 0', lambda v: min(v, default=1) > 0
  ),
  'train.epochs': Rule(lambda x: 0 < x <= MAX_EPOCHS, f'a number above 0, at most {MAX_EPOCHS}'),
  'train.batch_size': _POSITIVE,
  'train.accumulate': _POSITIVE,
  'train.ema': _BELOW_ONE,
  'train.eval_every': _POSITIVE,
  'train.class_weights': _one_of('', 'balanced'),
  'adversarial.kind': _one_of('', 'pgd', 'trades', 'mart', 'free', 'fast'),
  'adversarial.norm': _one_of('linf', 'l2', 'l1'),
  'adversarial.steps': _POSITIVE,
  'adversarial.replays': _POSITIVE,
  'adversarial.batch_norm': _one_of('eval', 'train'),
  'denoise.noise': _SHARE,
  'denoise.eval_noise': _UP_TO_ONE,
  'dense.canvases': Rule(_are_canvases, 'one or more (height, width) in pixels'),
  'dense.short': Rule(
    lambda v: bool(v) and all(type(x) is int and x > 0 for x in v), 'whole numbers above 0'
  ),
  'dense.long': _POSITIVE,
  'dense.jitter': _numbers([2], f'2 numbers: {_RISING}', lambda v: 0 < v[0] <= v[1]),
  'dense.crop_share': _numbers(
    [2], f'2 numbers: {_RISING}, at most 1', lambda v: 0 < v[0] <= v[1] <= 1
  ),
  'dense.least_visible': _SHARE,
  'dense.most_of_a_class': _UP_TO_ONE,
  'dense.max_objects': _POSITIVE,
  'dense.test_scales': _numbers(range(1, 100), 'numbers above 0', lambda v: min(v) > 0),
  'log.every': _POSITIVE,
}
_ANY_NUMBER = Rule(lambda x: x >= 0, 'a number of 0 or more')


def check_values(flat: dict[str, Any]) -> None:
  """Refuses values that make no sense, alone or together.

  Args:
    flat: {dotted key: value} of a config whose keys and types are right.

  Raises:
    UserError: names the key, what it has and what it takes.
  """
  for name, value in flat.items():
    number = type(value) in (int, float)
    rule = RULES.get(name, _ANY_NUMBER if number else None)
    if rule and ((number and not math.isfinite(value)) or not rule.fits(value)):
      raise UserError(f'config key {name!r} is {value!r}; it takes {rule.words}')
  for name in RADII:
    radius(flat[name], flat['adversarial.norm'], what=f'config key {name!r}')
  _check_policy(flat['augment.rand_augment'])
  _check_together(flat)


def _check_policy(policy: str) -> None:
  if policy:
    from rest_jax.data import rand_augment

    try:
      rand_augment.parse(policy)
    except UserError as error:
      raise UserError(f"config key 'augment.rand_augment': {error}") from error


def _check_together(flat: dict[str, Any]) -> None:
  """Refuses what no single key shows to be wrong."""
  try:
    re.compile(flat['optim.freeze'])
  except re.error as error:
    raise UserError(f"config key 'optim.freeze' is no regular expression: {error}") from error
  marks = flat['optim.step_epochs']
  if (flat['optim.schedule'] == 'step') != bool(marks) or list(marks) != sorted(marks):
    raise UserError(
      "optim.schedule='step' and optim.step_epochs, rising epochs such as (15.0,), go together; "
      f'got {flat["optim.schedule"]!r} and {marks!r}'
    )
  if flat['optim.layer_decay'] != 1 and flat['optim.stage_decay'] != 1:
    raise UserError(
      'optim.layer_decay and optim.stage_decay both lower the rates towards the stem: set one'
    )
  if flat['optim.min_lr'] > flat['optim.lr']:
    raise UserError(
      f'optim.min_lr={flat["optim.min_lr"]}, where the cosine ends, is above '
      f'optim.lr={flat["optim.lr"]}, where it begins'
    )
  if flat['train.batch_size'] % flat['train.accumulate']:
    raise UserError(
      f'train.batch_size {flat["train.batch_size"]} does not divide into '
      f'{flat["train.accumulate"]} micro-batch(es) (train.accumulate)'
    )
  if flat['augment.padding'] and flat['augment.crop_scale']:
    raise UserError('augment.padding and augment.crop_scale both crop at random; set one of them')
  if kind_of(flat['model.name']):
    _check_dense(flat)
  _check_adversarial(flat)
  if flat['denoise.noise']:
    _check_denoising(flat)


def _check_adversarial(flat: dict[str, Any]) -> None:
  softened = [f'augment.{key}' for key in ('mixup', 'cutmix', 'label_smoothing')]
  softened = [name for name in softened if flat[name]]
  if flat['adversarial.kind'] == 'mart' and softened:
    raise UserError(
      f"adversarial.kind='mart' is defined for plain labels; set {' and '.join(softened)} to 0"
    )
  if flat['adversarial.kind'] in ('trades', 'mart') and flat['train.class_weights']:
    raise UserError(
      f'train.class_weights weighs cross-entropy, which adversarial.kind='
      f'{flat["adversarial.kind"]!r} is not; set it to the empty text'
    )
  if flat['adversarial.kind'] == 'free' and flat['adversarial.norm'] == 'l1':
    raise UserError("adversarial.kind='free' takes adversarial.norm 'linf' or 'l2', not 'l1'")


# What happens to images, labels and pixels of a classifier, and its value where it is off.
_NOT_DENSE = {
  **dict.fromkeys(('augment.crop_scale', 'augment.color_jitter'), ()),
  **dict.fromkeys(('augment.padding', 'augment.mixup', 'augment.cutmix', 'augment.erasing'), 0),
  **dict.fromkeys(('augment.label_smoothing', 'augment.group_cam', 'denoise.noise'), 0),
  'train.class_weights': '',
  **dict.fromkeys(('augment.rand_augment', 'adversarial.kind', 'train.class_weights'), ''),
  **dict.fromkeys(('adversarial.eval_steps',), 0),
  **dict.fromkeys(('data.cache', 'data.scaled_decoding'), False),
  'augment.repeats': 1,
  'data.on_error': 'fatal',
}


def _check_dense(flat: dict[str, Any]) -> None:
  """What is for classifiers has no place where boxes or pixels are learnt."""
  kind = kind_of(flat['model.name'])
  if flat['model.as_init']:
    raise UserError(
      f'model.as_init trains the classifier of model.init itself, not a {kind} '
      f'({flat["model.name"]}); leave it out: model.init alone gives the backbone its weights'
    )
  names = [name for name, off in _NOT_DENSE.items() if (flat[name] or off) != off]
  if names:
    raise UserError(
      f'{" and ".join(names)}: not for a {kind} ({flat["model.name"]}), '
      'whose augmentation is in the group dense; leave it out'
    )


def _check_denoising(flat: dict[str, Any]) -> None:
  """Labels and what is done to them have no place where images are the targets."""
  names = ('augment.mixup', 'augment.cutmix', 'augment.label_smoothing', 'augment.group_cam')
  names += ('train.class_weights',)
  names = [n for n in (*names, 'adversarial.kind', 'adversarial.eval_steps') if flat[n]]
  if names:
    raise UserError(f'denoise.noise trains on images alone; switch off {" and ".join(names)}')
  mean, std = tuple(flat['data.mean']), tuple(flat['data.std'])
  if mean != (0, 0, 0) or std != (1, 1, 1):
    raise UserError(
      'denoise.noise trains a model from pixels to pixels; set data.mean to (0.0, 0.0, 0.0) and '
      f'data.std to (1.0, 1.0, 1.0), not {mean} and {std}'
    )


class Use(NamedTuple):
  """When a key is looked at: a test of the config, and the words for it."""

  used: Callable[[dict[str, Any]], bool]
  words: str


def _is(name: str, *values: Any) -> Use:
  return Use(lambda flat: flat[name] in values, f'{name} {" or ".join(map(repr, values))}')


def _on(*names: str, every: bool = False) -> Use:
  how = all if every else any
  return Use(
    lambda flat: how(bool(flat[name]) for name in names), (' and ' if every else ' or ').join(names)
  )


def _kind(*kinds: str) -> Use:
  return Use(lambda flat: kind_of(flat['model.name']) in kinds, f'a {" or a ".join(kinds)}')


_DENSE, _BOXES, _PIXELS = _kind('detector', 'segmenter'), _kind('detector'), _kind('segmenter')
_IMAGES = Use(lambda flat: not kind_of(flat['model.name']), 'a classifier')
_CROPPED = _is('data.eval_resize', 'resize_crop')
_ATTACK = _on('adversarial.kind', 'adversarial.eval_steps')
# Keys that do something only beside others; every other key always does.
USES: dict[str, Use] = {
  # Detectors and segmenters have canvases and sizes of their own, in the group dense.
  **dict.fromkeys(('data.image_size', 'data.eval_resize', 'augment.interpolation'), _IMAGES),
  'data.eval_crop_pct': Use(
    lambda flat: _IMAGES.used(flat) and _CROPPED.used(flat),
    f'{_IMAGES.words} with {_CROPPED.words}',
  ),
  'augment.crop_ratio': _on('augment.crop_scale'),
  'augment.switch_prob': _on('augment.mixup', 'augment.cutmix', every=True),
  'augment.mix_prob': _on('augment.mixup', 'augment.cutmix'),
  'augment.group_cam_groups': _on('augment.group_cam'),
  'augment.group_cam_layer': _on('augment.group_cam'),
  'optim.b1': _is('optim.name', 'adamw'),
  'optim.b2': _is('optim.name', 'adamw'),
  'optim.eps': _is('optim.name', 'adamw'),
  'optim.momentum': _is('optim.name', 'sgd'),
  'optim.warmup_lr': _on('optim.warmup_epochs'),
  'optim.power': _is('optim.schedule', 'linear'),
  'optim.min_lr': _is('optim.schedule', 'cosine', 'linear'),
  'adversarial.norm': _ATTACK,
  'adversarial.eps': _ATTACK,
  'adversarial.step_size': _on('adversarial.kind'),
  'adversarial.steps': _is('adversarial.kind', 'pgd', 'trades', 'mart'),
  'adversarial.random_start': _is('adversarial.kind', 'pgd'),
  'adversarial.beta': _is('adversarial.kind', 'trades', 'mart'),
  'adversarial.replays': _is('adversarial.kind', 'free'),
  'adversarial.batch_norm': _is('adversarial.kind', 'pgd', 'fast', 'trades', 'mart'),
  'denoise.eval_noise': _on('denoise.noise'),
  'model.backbone': _DENSE,
  **dict.fromkeys(('dense.canvases', 'dense.short', 'dense.long', 'dense.jitter'), _DENSE),
  **dict.fromkeys(('dense.test_short', 'dense.test_long'), _DENSE),
  **dict.fromkeys(('dense.crop_share', 'dense.least_visible', 'dense.max_objects'), _BOXES),
  **dict.fromkeys(('dense.most_of_a_class', 'dense.photometric'), _PIXELS),
  **dict.fromkeys(('dense.test_scales', 'dense.test_flip'), _PIXELS),
}


def never_reached(flat: dict[str, Any]) -> list[str]:
  """What the learning rate would do after the end of the run, a sentence each.

  Args:
    flat: {dotted key: value} of a checked config.
  """
  epochs, warmup, marks = (
    flat[name] for name in ('train.epochs', 'optim.warmup_epochs', 'optim.step_epochs')
  )
  found = []
  if warmup >= epochs:
    found.append(
      f'optim.warmup_epochs={warmup:g} is no shorter than train.epochs={epochs:g}: the learning '
      'rate only rises, to the end of the run'
    )
  if marks and min(marks) >= epochs:
    found.append(
      f'optim.step_epochs={tuple(marks)} lie behind train.epochs={epochs:g}: the learning rate '
      'never falls'
    )
  return found


def unused(flat: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
  """Which of some keys do nothing in a config.

  Args:
    flat: {dotted key: value}.
    names: the keys asked about.

  Returns:
    {key: what it needs beside it}.
  """
  return {name: USES[name].words for name in names if name in USES and not USES[name].used(flat)}
