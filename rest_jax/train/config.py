"""The experiment configuration: every key, its default and what it means.

A config file in `configs/` starts from `default_config()` and changes what it wants; the command
line changes single values (`--config.optim.lr=1e-3`). `check_config` refuses keys and types that
are not in the table below, so a misspelt key is never silently ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeAlias

from ml_collections import config_dict

from rest_jax.errors import UserError, did_you_mean
from rest_jax.paths import expanded, model_name
from rest_jax.train.config_checks import check_values, never_reached, unused

# A ConfigDict, or a group of one. Not its real type: a checker would take every value of it for any
# of the types that a ConfigDict can hold.
Config: TypeAlias = Any

# group -> key -> (default, meaning). A default that is a type is an optional value: None unless
# set. An empty tuple, 0 and 0.0 switch a part off where the meaning says so.
FIELDS: dict[str, dict[str, tuple[Any, str]]] = {
  'model': {
    'name': ('rest_lite', 'a name of list_models(), list_detectors() or list_segmenters()'),
    'overrides': ({}, 'arguments for create_model, for example widths or drop_path_rate'),
    'backbone': ({}, 'of a detector or segmenter: attributes of its backbone, such as bn_frozen'),
    'dtype': ('float32', "computing type, 'float32' or 'bfloat16'; parameters stay float32"),
    'as_init': (
      False,
      'name, overrides, mean, std, size and crop are those of model.init unless given',
    ),
    'init': (
      '',
      'weights to start from: zoo name, model directory, .pth or hf://owner/name; empty: random',
    ),
  },
  'data': {
    'name': ('digit_scenes', 'digit_scenes, a TFDS name, or a folder of images'),
    'dir': (str, 'where TFDS data sets are prepared; TFDS decides when not set'),
    'train_split': ('train', "split to train on: TFDS's name, or that of a folder"),
    'val_split': ('', 'split that chooses the best epoch; empty: validation, else the test split'),
    'test_split': ('test', 'split to judge by: once at the end where another one chooses'),
    'image_size': (64, 'side of the square training and test images, pixels'),
    'cache': (False, 'decode the training images once and keep them in memory'),
    'workers': (0, 'processes that read and augment; 0 reads in this process'),
    'on_error': ('fatal', "an image that cannot be read: 'fatal', or 'skip' takes the next one"),
    'scaled_decoding': (False, 'decode large JPEGs smaller where the crop allows; not bit-exact'),
    'eval_batch_size': (0, 'global batch of the evaluation; 0 is the training batch'),
    'eval_resize': ('squash', "test images: 'squash', or 'resize_crop' (keeps proportions)"),
    'eval_crop_pct': (0.875, 'resize_crop: crop side / side of the resized image'),
    'mean': ((0.485, 0.456, 0.406), 'channel means of images in [0, 1]'),
    'std': ((0.229, 0.224, 0.225), 'channel standard deviations of images in [0, 1]'),
  },
  'augment': {
    'crop_scale': ((), 'random resized crop: least and largest area fraction; () is off'),
    'crop_ratio': ((3 / 4, 4 / 3), 'random resized crop: least and largest width/height'),
    'interpolation': ('bilinear', "resizing: 'bilinear' or 'bicubic'"),
    'padding': (0, 'black pixels around an image, from which a crop of its size is cut; 0 is off'),
    'flip': (False, 'mirror half of the images'),
    'color_jitter': ((), 'strengths of brightness, contrast, saturation; () is off'),
    'rand_augment': ('', "RandAugment in timm's notation, 'rand-m9-mstd0.5-inc1'; empty is off"),
    'repeats': (1, 'repeated augmentation: views of an image in a batch, of fewer images'),
    'mixup': (0.0, 'alpha of mixup; 0 is off'),
    'cutmix': (0.0, 'alpha of cutmix; 0 is off'),
    'switch_prob': (0.5, 'chance of cutmix where mixup and cutmix are both on'),
    'mix_prob': (1.0, 'chance that a batch is mixed at all'),
    'erasing': (0.0, 'chance that a rectangle of an image is replaced by noise'),
    'label_smoothing': (0.0, 'probability mass spread over all classes'),
    'group_cam': (0.0, 'share of a batch blurred outside its salient pixels; 0 is off'),
    'group_cam_groups': (32, 'groups of channels of that saliency'),
    'group_cam_layer': ('', "its layer, such as 'stage3'; empty: explain's default"),
  },
  'optim': {
    'name': ('adamw', "'adamw' or 'sgd'"),
    'lr': (1e-3, 'highest learning rate, reached after the warm-up'),
    'lr_batch': (0, 'lr is for this batch and scales with batch_size; 0: lr as it is'),
    'weight_decay': (0.05, 'on matrices and kernels; never on vectors (norms, biases)'),
    'b1': (0.9, 'AdamW: decay of the first moment'),
    'b2': (0.999, 'AdamW: decay of the second moment'),
    'eps': (1e-8, 'AdamW: added to the root of the second moment'),
    'momentum': (0.9, 'SGD: momentum'),
    'clip_norm': (0.0, 'largest global norm of the gradient; 0 is off'),
    'layer_decay': (1.0, 'factor of the learning rate from each layer to the one below; 1: off'),
    'stage_decay': (1.0, 'factor of the learning rate from each stage to the one below; 1: off'),
    'freeze': ('', "regex from the start of parameters' paths; '(?!head/)' is a linear probe"),
    'schedule': ('cosine', "after the warm-up: 'cosine', 'linear', 'step' or 'constant'"),
    'power': (1.0, "schedule 'linear': power of what is left, mmsegmentation's 'poly'"),
    'step_epochs': ((), "schedule 'step': epochs from which the rate is a tenth of before"),
    'warmup_epochs': (0.0, 'epochs of linear warm-up'),
    'warmup_lr': (1e-6, 'learning rate of the very first step'),
    'min_lr': (0.0, 'learning rate that the cosine or the line ends at'),
  },
  'train': {
    'epochs': (10.0, 'passes over the training images'),
    'batch_size': (128, 'images a step, over all devices and processes'),
    'accumulate': (1, 'micro-batches a step; divides the memory, not the result'),
    'ema': (0.0, 'decay of a moving average of the weights, released if better; 0 is off'),
    'sync_bn': (False, 'batch norm over all devices instead of each device by itself'),
    'eval_every': (1.0, 'epochs between evaluations on the test split'),
    'patience': (0, 'evaluations without a better one after which the run ends; 0: all epochs'),
    'class_weights': ('', "weights of the classes in the loss: '' or 'balanced' (rare ones more)"),
    'checkpoint_every_steps': (0, 'steps between checkpoints; 0: at evaluations only'),
    'checkpoint_every_seconds': (300.0, 'and after so many seconds; 0 is off'),
  },
  'adversarial': {
    'kind': ('', "training loss: 'pgd', 'trades', 'mart', 'free', 'fast'; empty: none of them"),
    'norm': ('linf', "of the perturbation: 'linf', 'l2' or 'l1'"),
    'eps': (8 / 255, 'radius of the ball, for images in [0, 1]; 8/255 is understood'),
    'step_size': (0.0, "of the ascent; 0: the kind's own, see rest_jax/train/adversarial.py"),
    'steps': (10, "steps of the ascent for 'pgd', 'trades' and 'mart'"),
    'random_start': (True, "'pgd': starts at random in the ball, else at the image"),
    'beta': (0.0, 'weight of the KL divergence; 0: 6 for trades, 5 for mart, as published'),
    'replays': (4, "'free': updates from each batch, m in the paper"),
    'batch_norm': ('eval', "the network while it is attacked: 'eval', or 'train' (and dropout)"),
    'eval_steps': (0, 'steps of the PGD attack in evaluations; 0: clean accuracy only'),
  },
  'denoise': {
    'noise': (0.0, 'above 0 trains images to images: largest deviation of the noise to take out'),
    'eval_noise': (8 / 255, 'deviation of the noise in evaluations; images are in [0, 1]'),
  },
  'dense': {
    'canvases': (((800, 1344), (1344, 800)), 'height and width of batches; each compiles once'),
    'short': ((640, 672, 704, 736, 768, 800), 'shorter sides of training pictures to draw from'),
    'long': (1333, 'most of the longer side of training pictures'),
    'jitter': ((1.0, 1.0), 'range of a factor on that size; 0.5 to 2 in the papers for pixels'),
    'crop_share': ((1.0, 1.0), 'boxes: range of the share of each side that is kept'),
    'least_visible': (0.0, 'boxes: objects of which less is left by a crop are ignored'),
    'most_of_a_class': (0.75, 'pixels: a crop of which one class fills more is drawn anew'),
    'photometric': (False, 'pixels: brightness, contrast, saturation and hue at random'),
    'max_objects': (100, 'boxes: room for objects of a picture'),
    'test_short': (800, 'shorter side of test pictures; 0 leaves their size'),
    'test_long': (1333, 'most of the longer side of test pictures; 0 for any'),
    'test_scales': ((1.0,), 'pixels: factors of the size at which test pictures are looked at'),
    'test_flip': (False, 'pixels: look at the mirror images of test pictures too'),
  },
  'log': {
    'every': (20, 'steps between lines of metrics.jsonl'),
    'tensorboard': (False, 'write TensorBoard files too (needs tensorboardX)'),
    'wandb': ('', 'Weights & Biases project to log to; empty is off (needs wandb)'),
  },
}
SEED_HELP = 'of the weights, the order of the images and every augmentation'
OPEN = ('model.overrides', 'model.backbone')  # groups that take any key
OPEN_PREFIXES = tuple(f'{name}.' for name in OPEN)
# What may differ when a run is continued: it changes no bit of the result.
FREE_KEYS = (
  'data.dir',
  'data.cache',
  'data.workers',
  'data.on_error',
  'log.',
  'train.checkpoint_every_',
)


def default_config() -> Config:
  """Returns a ConfigDict with every key at its default; keys can be changed, not added.

  Groups: model, data, augment, optim, train, adversarial, denoise, dense, log; and `seed`.
  `describe()` prints the meaning of each key.
  """
  config = config_dict.ConfigDict({'seed': 0})
  for group, fields in FIELDS.items():
    values = {key: config_dict.placeholder(v) if v is str else v for key, (v, _) in fields.items()}
    config[group] = config_dict.ConfigDict(values)
  return config


def describe() -> str:
  """Returns one line a key: name, default, meaning; the `--help` of train.py shows it."""
  lines = [f'  --config.seed=0\n      {SEED_HELP}']
  for group, fields in FIELDS.items():
    for key, (value, meaning) in fields.items():
      shown = None if value is str else value
      lines.append(f'  --config.{group}.{key}={shown}\n      {meaning}')
  return '\n'.join(lines)


def known_keys() -> list[str]:
  """Returns all dotted keys, for example 'optim.lr'."""
  return ['seed'] + [f'{group}.{key}' for group, fields in FIELDS.items() for key in fields]


def check_key(name: str) -> None:
  """Refuses a dotted key that the table does not have.

  Raises:
    UserError: names the nearest known keys.
  """
  known = known_keys()
  if name in known or name in FIELDS or name.startswith(OPEN_PREFIXES):
    return
  by_leaf = [key for key in known if key.split('.')[-1] == name.split('.')[-1]]
  advice = did_you_mean(
    name, by_leaf or known, by_leaf or 'train.py --help lists all keys', cutoff=0.5
  )
  raise UserError(f'unknown config key {name!r}; {advice}')


# Keys that are places on this machine, or names that may be such.
_PLACES = ('data.dir', 'data.name', 'model.init')


def place_paths(config: Config) -> None:
  """Expands the paths of a config in place; the word None switches off what a text switches on.

  Raises:
    UserError: a path that is none, such as gs://bucket; the key is named.
  """
  for group, fields in FIELDS.items():
    for key, (default, _) in fields.items():
      if default in (str, '') and config[group][key] == 'None':
        config[group][key] = None if default is str else ''
  for name in _PLACES:
    group, key = name.split('.')
    value = config[group][key]
    unset = '' if name == 'model.init' else None
    if isinstance(value, str) and value != unset:
      expand = model_name if name == 'model.init' else expanded
      config[group][key] = expand(value, f'config.{name}')


def check_config(config: Config) -> None:
  """Refuses unknown keys, wrong types and values that make no sense.

  Args:
    config: as from a config file's `get_config()`.

  Raises:
    UserError: names the key, what it has and what it needs.
  """
  if not isinstance(config, config_dict.ConfigDict):
    raise UserError(f'get_config() returned {type(config).__name__}, not a ConfigDict')
  flat = flatten(config.to_dict())
  for name in flat:
    check_key(name)
  for name in known_keys():
    if name not in flat:
      raise UserError(f'config key {name!r} is missing; start from default_config()')
    _check_type(name, flat[name])
  check_values(flat)


def _check_type(name: str, value: Any) -> None:
  group, _, key = name.rpartition('.')
  default = FIELDS[group][key][0] if group else 0
  optional = default is str
  wanted = str if optional else type(default)
  fits = isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))
  fits = fits or (wanted is float and type(value) is int) or (optional and value is None)
  fits = fits or (wanted is tuple and isinstance(value, list))
  if not fits:
    raise UserError(
      f'config key {name!r} is {value!r} ({type(value).__name__}); '
      f'it takes {wanted.__name__}, for example {None if optional else default!r}'
    )


def without_effect(config: Config, names: Iterable[str] | None = None) -> dict[str, str]:
  """Keys that nothing looks at, such as optim.momentum beside optim.name='adamw'.

  Args:
    config: a checked config.
    names: the keys asked about; by default those that differ from their defaults.

  Returns:
    {key: what it needs beside it to have an effect}.
  """
  flat, defaults = flatten(config.to_dict()), flatten(default_config().to_dict())
  if names is None:
    names = [name for name in flat if flat[name] != defaults.get(name)]
  return unused(flat, list(names))


def out_of_reach(config: Config) -> list[str]:
  """What a checked config plans for after the end of the run, a sentence each."""
  return never_reached(flatten(config.to_dict()))


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns {dotted key: value}; those of `OPEN` stay one value."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    name = prefix + key
    if isinstance(value, dict) and name not in OPEN:
      flat |= flatten(value, name + '.')
    else:
      flat[name] = value
  return flat


def differing_keys(config: dict[str, Any], saved: dict[str, Any]) -> list[str]:
  """Returns the dotted keys in which two resolved configs differ, logging and speed apart.

  A key that is younger than the saved config counts there with its default, which is off.
  """
  defaults = flatten(json.loads(json.dumps(default_config().to_dict())))
  mine, theirs = flatten(json.loads(json.dumps(config))), defaults | flatten(saved)
  names = sorted(mine.keys() | theirs.keys())
  missing = object()
  return [
    name
    for name in names
    if mine.get(name, missing) != theirs.get(name, missing) and not name.startswith(FREE_KEYS)
  ]
