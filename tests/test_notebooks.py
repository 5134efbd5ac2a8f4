"""The notebooks run from their first cell to the last, and hold what a notebook must."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures('alone')
ROOT = Path(__file__).parents[1]
ADDRESS = runpy.run_path(str(ROOT / 'notebooks' / 'set_address.py'))
# Cells tagged 'install' have a test of their own; what is tagged 'parameters' is followed by these.
SMALLER = {'explain.ipynb': {'METHODS': ('group_cam', 'grad_cam')}}


def cells(name):
  notebook = json.loads((ROOT / 'notebooks' / name).read_text(encoding='utf-8'))
  assert (notebook['nbformat'], notebook['metadata']['kernelspec']['name']) == (4, 'python3')
  return notebook['cells']


def execute(name, **parameters):
  """Runs the code cells in one namespace, as a kernel does; they use no magics."""
  space = {'__name__': '__main__'}
  for number, cell in enumerate(cells(name)):
    tags = cell['metadata'].get('tags', [])
    if cell['cell_type'] != 'code' or 'install' in tags:
      continue
    exec(compile(''.join(cell['source']), f'{name}, cell {number}', 'exec'), space)
    if 'parameters' in tags:
      space |= SMALLER.get(name, {}) | parameters
  return space


def test_explain_notebook(capsys):
  space = execute('explain.ipynb')
  assert space['name'] == '6'  # the scene shows a six
  assert set(space['maps']) == set(SMALLER['explain.ipynb']['METHODS'])
  for maps in space['maps'].values():
    assert maps.shape == (1, 64, 64) and maps.min() >= 0 and maps.max() <= 1
  assert space['check'].rows[-1].layer == 'stem'
  assert space['own'].maps.shape == space['halves'].maps.shape == (1, 64, 64)
  assert np.isfinite(space['halves'].maps).all()
  assert 'conv1' in capsys.readouterr().out


@pytest.fixture
def photographs(tmp_path):
  """A folder of noise in three colours, a class each: 48 images to train on, 18 to test."""
  rng = np.random.default_rng(0)
  for index in range(66):
    pixels = rng.integers(0, 120, (32, 40, 3), dtype=np.uint8)
    pixels[..., index % 3] += 120
    place = tmp_path / 'images' / ('train' if index < 48 else 'test') / 'rgb'[index % 3]
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(place / f'{index}.png')
  return tmp_path / 'images'


def test_train_notebook(photographs, tmp_path, capsys):
  model = {'MODEL': 'resnet18', 'OVERRIDES': {'width': 4, 'depths': (1, 1, 1, 1)}}
  length = {'IMAGE_SIZE': 32, 'EPOCHS': 2.0, 'LEARNING_RATE': 1e-2, 'BATCH_SIZE': 8}
  places = {'DATA': str(photographs), 'OUTPUT': str(tmp_path / 'run')}
  space = execute('train_tpu.ipynb', **model, **length, **places)
  result, judged = space['result'], space['judged']
  assert result['finished'] and result['step'] == 12
  # What was trained, was saved, loaded and judged: the same model.
  assert judged.count == judged.confusion.sum() == 18
  assert judged.top1 == result['best']['top1']
  assert space['classifier'].class_names == ('b', 'g', 'r')
  assert [stage.shape for stage in space['stages']] == [
    (1, 8, 8, 4), (1, 4, 4, 8), (1, 2, 2, 16), (1, 1, 1, 32)
  ]  # fmt: skip
  assert space['known'].shape == (48, 32) and space['neighbours'] == 1.0
  assert 0 < space['change'] < 0.02 and space['sizes'][1] < 0.6 * space['sizes'][0]
  assert 'it is b' in capsys.readouterr().out


def test_defend_notebook(capsys):
  space = execute('defend.ipynb', COUNT=8, STEPS=2, DEFENCES=('gaussian',))
  plain, defended = space['found'].rows
  assert plain.defence == 'undefended' and plain.worst.value == space['attacked']
  assert defended.non_adaptive.value == space['kept']['gaussian'] >= defended.worst.value
  assert {row.denoiser for row in space['study'].denoisers} >= {'gaussian'}
  assert all(0 <= share <= 1 for share in space['own'])
  gains, row = space['gains'], space['inside'].rows[1]
  assert gains.shape[0] == 8 and gains.min() >= 0 and gains.max() <= 1
  assert row.defence == 'Wiener gains' and row.images == 8
  assert {p.name for p in space['FIGURES'].iterdir()} == {
    'attack.png', 'bars.png', 'study.png', 'spectra.png'
  }  # fmt: skip
  assert 'gain of each band' in capsys.readouterr().out


@pytest.mark.parametrize('name', [f'{name}.ipynb' for name in ADDRESS['NOTEBOOKS']])
def test_notebooks_hold_their_output_and_end_well(name):
  code = [cell for cell in cells(name) if cell['cell_type'] == 'code']
  assert any('install' in cell['metadata'].get('tags', []) for cell in code)
  outputs = [output for cell in code for output in cell['outputs']]
  assert sum('image/png' in output.get('data', {}) for output in outputs) >= 4
  assert not any(output['output_type'] == 'error' for output in outputs)
  assert (ROOT / 'notebooks' / name).stat().st_size < 1_500_000


@pytest.mark.parametrize('name', ADDRESS['NOTEBOOKS'])
def test_the_address_stands_in_one_place(name):
  (install,) = (c for c in cells(f'{name}.ipynb') if 'install' in c['metadata'].get('tags', []))
  assert install['source'] == ADDRESS['cell'](ADDRESS['address']())
  badge = f'/blob/main/notebooks/{name}.ipynb'
  assert badge in (ROOT / 'README.md').read_text(encoding='utf-8')


def test_the_installing_cell_in_a_fresh_environment(tmp_path):
  """From a clone of this clone. Of the packages it needs none is brought; the rest is pip's."""
  subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'env'], check=True)
  code = ''.join(ADDRESS['cell'](str(ROOT)))
  alone = {'PIP_NO_DEPS': '1', 'PYTHONPATH': '', 'PYTHONNOUSERSITE': '1', 'PATH': '/usr/bin:/bin'}
  python = tmp_path / 'env' / 'bin' / 'python'
  run = lambda code: subprocess.run(  # noqa: E731
    [python, '-c', code], cwd=tmp_path, env=os.environ | alone, text=True, capture_output=True
  )
  done = run(code)
  assert done.returncode == 0, done.stderr
  found = run('import rest_jax; print(rest_jax.__file__, rest_jax.__version__)')
  assert str(tmp_path / 'env') in found.stdout, found.stderr
  assert run(code).returncode == 0  # there already: nothing is done


TINY_DETECTOR = """
from rest_jax.train.config import default_config


def get_config():
  config = default_config()
  config.model.name = 'retinanet_resnet18'
  config.model.backbone = dict(width=8, depths=(1, 1, 1, 1))
  config.model.overrides = dict(
    stages=(1, 2), extra_levels=0, width=8, convs=1, octaves=1, candidates=20, max_detections=8,
    score_threshold=0.0,
  )
  config.dense.canvases = ((32, 32),)
  config.dense.short, config.dense.long, config.dense.max_objects = (32,), 32, 4
  config.dense.test_short, config.dense.test_long = 32, 32
  config.train.batch_size = 4
  return config
"""


@pytest.fixture
def squares(tmp_path):
  """Pictures of a bright square each, in COCO's layout."""
  root, rng = tmp_path / 'squares', np.random.default_rng(0)
  (root / 'annotations').mkdir(parents=True)
  for split, count in (('train', 8), ('test', 4)):
    (root / split).mkdir()
    found = {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'square'}]}
    for i in range(count):
      pixels = np.full((32, 32, 3), 60, np.uint8)
      top, left = (int(v) for v in rng.integers(18, size=2))
      pixels[top : top + 12, left : left + 12] = 220
      Image.fromarray(pixels).save(root / split / f'{i}.png')
      found['images'].append({'id': i, 'file_name': f'{i}.png', 'width': 32, 'height': 32})
      found['annotations'].append(
        {'id': i, 'image_id': i, 'category_id': 1, 'bbox': [left, top, 12, 12], 'area': 144}
        | {'iscrowd': 0}
      )
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(found))
  return root


def test_detection_notebook(squares, tmp_path, capsys):
  (tmp_path / 'tiny.py').write_text(TINY_DETECTOR)
  places = {'CONFIG': tmp_path / 'tiny.py', 'DATA': str(squares), 'OUTPUT': str(tmp_path / 'run')}
  space = execute('detection.ipynb', STEPS=4, **places)
  assert space['result']['step'] == 4 and 0 <= space['best']['AP'] <= 1
  assert len(space['found'].boxes) == 8 and space['name'] == 'square'
  assert all(maps.shape == (1, 32, 32) for maps in space['why'].values())
  assert 0 < space['after'] <= space['before'] < 1
  said = capsys.readouterr().out
  assert '8 images of 1 class' in said and 'the score of square falls' in said
