"""The notebooks run from their first cell to the last, and hold what a notebook must."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# Cells tagged 'install' are left out; what is tagged 'parameters' is followed by these.
SMALLER = {'explain.ipynb': {'METHODS': ('group_cam', 'grad_cam')}}


def cells(name):
  notebook = json.loads((ROOT / 'notebooks' / name).read_text(encoding='utf-8'))
  assert (notebook['nbformat'], notebook['metadata']['kernelspec']['name']) == (4, 'python3')
  return notebook['cells']


def execute(name):
  """Runs the code cells in one namespace, as a kernel does; they use no magics."""
  space = {'__name__': '__main__'}
  for number, cell in enumerate(cells(name)):
    tags = cell['metadata'].get('tags', [])
    if cell['cell_type'] != 'code' or 'install' in tags:
      continue
    exec(compile(''.join(cell['source']), f'{name}, cell {number}', 'exec'), space)
    if 'parameters' in tags:
      space |= SMALLER[name]
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


@pytest.mark.parametrize('name', ['explain.ipynb'])
def test_notebooks_hold_their_output_and_end_well(name):
  code = [cell for cell in cells(name) if cell['cell_type'] == 'code']
  assert any('install' in cell['metadata'].get('tags', []) for cell in code)
  outputs = [output for cell in code for output in cell['outputs']]
  assert sum('image/png' in output.get('data', {}) for output in outputs) >= 4
  assert not any(output['output_type'] == 'error' for output in outputs)
  assert (ROOT / 'notebooks' / name).stat().st_size < 1_500_000
