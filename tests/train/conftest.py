"""A small model, a small config and a small folder of images for the training tests."""

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image

from rest_jax.models.layers import BatchNorm
from rest_jax.train import evaluate, loop
from rest_jax.train.config import default_config
from rest_jax.train.task import build_task

CLASSES = ('blue', 'green', 'red')


class TinyNet(nn.Module):
  """Convolution, optional batch norm, dropout, mean, linear layer; the interface of a backbone."""

  num_classes: int = 3
  norm: bool = True
  drop_rate: float = 0.0
  bn_axis_name: str | None = None

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = nn.Conv(8, (3, 3), strides=2, use_bias=False, name='conv')(x)
    if self.norm:
      x = BatchNorm(axis_name=self.bn_axis_name, name='norm')(x, train)
    x = nn.relu(x).mean((1, 2))
    x = nn.Dropout(self.drop_rate, deterministic=not train)(x)
    return nn.Dense(self.num_classes, name='head')(x)


@pytest.fixture(scope='session')
def tiny_net():
  """The class of the small model."""
  return TinyNet


@pytest.fixture
def config():
  """The default config, with batches of 8 images of 8 pixels and plain augmentation."""
  config = default_config()
  config.data.image_size = 8
  config.train.batch_size = 8
  config.optim.lr = 1e-2
  config.optim.clip_norm = 1.0
  return config


@pytest.fixture
def batch():
  """Eight random images of 8 pixels with labels 0..2."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
  return {'image': images, 'label': np.arange(8, dtype=np.int32) % 3}


@pytest.fixture
def zero_totals():
  """Sums that an evaluation starts from."""
  return evaluate.zero_totals()


@pytest.fixture(scope='session')
def image_folder(tmp_path_factory):
  """A folder of 48 training and 20 test images of 32 pixels in three classes told by colour."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for split, count in (('train', 48), ('test', 20)):
    for index in range(count):
      label = index % 3
      pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
      pixels[..., 2 - label] += 120
      place = root / split / CLASSES[label] / f'{index:03d}.png'
      place.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(place)
  return root


@pytest.fixture(scope='session')
def build_once():
  """`build_task` that gives runs of one config, and one that goes on, what is compiled already."""
  built = {}

  def build(config, plan, mesh, class_names, class_weights=None):
    devices = tuple(device.id for device in mesh.devices.flat)
    key = (config.to_json(), repr(plan), devices, tuple(class_names), repr(class_weights))
    if key not in built:
      built[key] = build_task(config, plan, mesh, class_names, class_weights)
    return built[key]

  return build


@pytest.fixture
def shared_tasks(build_once, monkeypatch):
  """The loop builds its compiled parts once a config."""
  monkeypatch.setattr(loop, 'build_task', build_once)
