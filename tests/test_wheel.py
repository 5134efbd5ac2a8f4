"""What a stranger gets: the wheel in an environment of its own, in an empty directory."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(
  '.git', '.venv', 'work', 'build', '*.egg-info', '__pycache__', '.*'
)

CONFIG = """
from rest_jax.train import default_config

def get_config():
  config = default_config()
  config.model.name = 'resnet20'
  config.model.overrides = {'depth': 8}
  config.data.name = 'photographs'
  config.data.image_size = 32
  config.train.batch_size = 8
  config.train.epochs = 1.0
  return config
"""
# One process, for JAX starts once. What each prints stands between lines of its own.
COMMANDS = """
import sys
from rest_jax.commands import main
for line in sys.stdin.read().splitlines():
  print(f'> {line}', flush=True)
  assert not main(line.split()), line
"""
LINES = """\
train --config my.py --output run
train --mode evaluate --model run --data photographs --output judged
predict photographs/test/r --model run --csv found.csv
explain --image photographs/test/r/0.png --model run --method grad_cam --output explained
defend --attack fgsm --model run --data photographs --defense gaussian --limit 2 --batch_size 2 \
--strength 0.5 --output defended
models resnet20
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  place = tmp_path_factory.mktemp('wheel')
  source = place / 'source'
  shutil.copytree(ROOT, source, symlinks=True, ignore=LEFT_OUT)  # a build writes beside its source
  pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet']
  subprocess.run([*pip, 'wheel', '--no-deps', '-w', place, source], check=True)
  (found,) = place.glob('*.whl')
  return found


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory):
  """Has the wheel, and of this environment the packages that it needs."""
  place = tmp_path_factory.mktemp('environment') / 'env'
  subprocess.run([sys.executable, '-m', 'venv', '--without-pip', place], check=True)
  python = place / 'bin' / 'python'
  pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet', '--python', python]
  subprocess.run([*pip, 'install', '--no-deps', wheel], check=True)
  paths = {sysconfig.get_path('purelib'), *(p for p in sys.path if p.endswith('site-packages'))}
  (own,) = place.glob('lib/python*/site-packages')
  (own / 'others.pth').write_text('\n'.join(sorted(paths)) + '\n')
  return place


def test_the_wheel_is_small_and_whole(wheel):
  assert wheel.stat().st_size < 17_000_000
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
  assert {'rest_jax/configs/rest_small.py', 'rest_jax/configs/common/imagenet.py'} <= names
  assert {'rest_jax/zoo/cifar10/model.safetensors', 'rest_jax/py.typed'} <= names
  assert not [name for name in names if name.startswith(('tests/', 'configs', 'benchmarks/'))]


@pytest.fixture
def folder(tmp_path):
  """An empty directory with photographs: noise in two colours, a class each."""
  rng = np.random.default_rng(0)
  for index in range(24):
    pixels = rng.integers(0, 120, (32, 40, 3), dtype=np.uint8)
    pixels[..., index % 2] += 120
    place = tmp_path / 'photographs' / ('train' if index >= 8 else 'test') / 'rg'[index % 2]
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(place / f'{index}.png')
  (tmp_path / 'my.py').write_text(CONFIG)
  return tmp_path


def test_every_command_of_an_installed_package(environment, folder):
  quiet = {
    'PYTHONPATH': '',
    'PYTHONNOUSERSITE': '1',
    'XLA_FLAGS': os.environ['REST_JAX_QUICK_FLAGS'],
    'HOME': str(folder),
  }
  run = lambda words, **options: subprocess.run(  # noqa: E731
    words, cwd=folder, env=os.environ | quiet, text=True, capture_output=True, **options
  )
  version = run([environment / 'bin' / 'rest-jax', '--version'])
  assert version.stdout.startswith('rest_jax ') and version.returncode == 0, version.stderr
  python = environment / 'bin' / 'python'
  where = run([python, '-c', 'import rest_jax; print(rest_jax.__file__)'])
  assert Path(where.stdout.strip()).is_relative_to(environment)
  done = run([python, '-c', COMMANDS], input=LINES)
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'Finished 2 steps' in done.stdout and 'test top-1' in done.stdout
  assert (folder / 'found.csv').read_text().count('\n') == 5
  assert (folder / 'judged' / 'report.md').is_file()
  assert list((folder / 'explained').glob('**/*.png'))
  assert (folder / 'defended' / 'report.html').is_file()
  assert '334,072' in done.stdout
  # A config of the package by its name, which needs nothing that is here.
  refused = run([environment / 'bin' / 'rest-jax', 'train', '--config', 'rest_smal'])
  assert refused.returncode == 2 and 'configs/rest_small.py' in refused.stderr
