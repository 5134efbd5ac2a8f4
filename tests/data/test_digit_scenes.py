"""digit_scenes: what the scenes promise, and that preparing them is safe."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from rest_jax import data
from rest_jax.data import digit_scene_synthesis as synthesis
from rest_jax.data import digit_scenes
from rest_jax.data.digit_scene_drawing import luma
from rest_jax.data.digit_scene_material import SPLITS, _halve, load_material
from rest_jax.errors import UserError

CHECKSUMS = {'train': '616aa32ae664dae8', 'test': 'd3337244e5ecf192'}
# Prepares a data set of ten scenes in argv[1], as `prepare` does with the whole.
PREPARE = """
import sys
from rest_jax import data
from rest_jax.data import digit_scenes
digit_scenes.DigitScenes.SCENES = {'train': 8, 'test': 2}
sources = data.load('digit_scenes', data_dir=sys.argv[1])
print(len(sources.train), len(sources.test), int(sources.train[0]['image'].sum()))
assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules
"""


@pytest.fixture(scope='module', params=SPLITS)
def split(request):
  return request.param


@pytest.fixture(scope='module')
def some_scenes():
  return {split: list(digit_scenes.scenes(split, 300)) for split in SPLITS}


@pytest.fixture
def few(monkeypatch):
  monkeypatch.setattr(digit_scenes.DigitScenes, 'SCENES', {'train': 8, 'test': 2})


def test_the_pixels_are_the_same_everywhere(some_scenes, split):
  digest = hashlib.sha256()
  for scene in some_scenes[split][:20]:
    digest.update(scene.image.tobytes() + scene.mask.tobytes() + bytes([scene.label]))
  assert digest.hexdigest()[:16] == CHECKSUMS[split]


def test_a_scene_does_not_depend_on_those_before_it(some_scenes, split):
  material = load_material(split)
  rng = np.random.default_rng([digit_scenes.SEED, SPLITS.index(split), 17])
  assert (synthesis.synthesize(material, rng).image == some_scenes[split][17].image).all()


def test_splits_share_no_digit(some_scenes):
  train, test = (load_material(split) for split in SPLITS)
  assert not set(train.digit_ids) & set(test.digit_ids)
  assert len(train.digit_ids) + len(test.digit_ids) == 1797
  assert np.bincount(test.labels).min() >= 34
  for split, material in zip(SPLITS, (train, test), strict=True):
    used = {i for s in some_scenes[split] for i in (s.digit_id, *s.fragment_ids)}
    assert used <= set(material.digit_ids)


def test_splits_share_no_background(some_scenes):
  columns: dict[tuple[str, int], set[int]] = {}
  for split in SPLITS:
    for scene in some_scenes[split]:
      photograph, left, top, side = scene.background
      assert top >= 0 and top + side <= 426
      columns.setdefault((split, photograph), set()).update(range(left, left + side))
  for photograph in (0, 1):
    # Beside each other with a gap: not even interpolation reaches over.
    train, test = columns['train', photograph], columns['test', photograph]
    assert max(train) + 4 < min(test)


def test_a_background_shows_only_its_square():
  material = load_material('test')
  for seed in range(40):
    _, (photograph, left, top, side) = synthesis._background(material, np.random.default_rng(seed))
    which = [region[0] for region in material.regions].index(photograph)
    left -= material.regions[which][1]
    parts = []
    for full, _ in material.photographs:
      outside = np.zeros_like(full)
      outside[top : top + side, left : left + side] = full[top : top + side, left : left + side]
      parts.append((outside, _halve(outside)))
    blanked = dataclasses.replace(material, photographs=tuple(parts))
    before, _ = synthesis._background(material, np.random.default_rng(seed))
    after, _ = synthesis._background(blanked, np.random.default_rng(seed))
    assert (before == after).all()


def test_masks_boxes_and_sizes(some_scenes, split):
  for scene in some_scenes[split]:
    ymin, xmin, ymax, xmax = scene.bbox
    inside = np.zeros_like(scene.mask)
    inside[ymin:ymax, xmin:xmax] = True
    assert scene.image.shape == (64, 64, 3) and scene.image.dtype == np.uint8
    assert not (scene.mask & ~inside).any()
    assert scene.mask[ymin].any() and scene.mask[ymax - 1].any()
    assert scene.mask[:, xmin].any() and scene.mask[:, xmax - 1].any()
    assert min(ymin, xmin) > 0 and max(ymax, xmax) < 64
    assert 22 <= max(ymax - ymin, xmax - xmin) <= 48
    assert scene.mask.sum() > 40


def test_digits_stand_out(some_scenes, split):
  differences = []
  for scene in some_scenes[split]:
    ymin, xmin, ymax, xmax = scene.bbox
    box = (slice(ymin, ymax), slice(xmin, xmax))
    brightness, mask = luma(scene.image[box]), scene.mask[box]
    if (~mask).any():
      differences.append(abs(brightness[mask].mean() - brightness[~mask].mean()))
  assert np.quantile(differences, 0.02) > 40


def test_labels_and_places_are_spread(some_scenes, split):
  scenes = some_scenes[split]
  assert np.bincount([s.label for s in scenes], minlength=10).min() >= 10
  assert len({s.bbox[:2] for s in scenes}) > 200


def test_a_linear_model_fails():
  from sklearn.linear_model import RidgeClassifier

  sets = []
  for split, count in (('train', 1000), ('test', 300)):
    made = list(digit_scenes.scenes(split, count))
    pixels = np.stack([s.image for s in made]).reshape(count, -1).astype(np.float32)
    sets.append((pixels / 255, np.array([s.label for s in made])))
  model = RidgeClassifier(alpha=1000.0, solver='lsqr', max_iter=50).fit(*sets[0])
  assert model.score(*sets[1]) < 0.4


def test_load_prepares_and_reads_back(few, tmp_path):
  sources = data.load('digit_scenes', data_dir=tmp_path, extras=('bbox', 'mask'))
  assert (len(sources.train), len(sources.test)) == (8, 2)
  assert sources.class_names == tuple('0123456789')
  made = {s.image.tobytes(): s for s in digit_scenes.scenes('train', 8)}
  for index in range(8):
    example = sources.train[index]
    scene = made.pop(example['image'].tobytes())
    assert example['label'] == scene.label and (example['mask'] == scene.mask).all()
    np.testing.assert_array_equal(example['bbox'] * 64, np.array(scene.bbox, np.float32))
  assert not made


def test_prepare_clears_what_a_killed_process_left(few, tmp_path):
  leftover = tmp_path / 'digit_scenes' / 'incomplete.ABC_1.0.0'
  leftover.mkdir(parents=True)
  (leftover / 'half').write_text('x')
  directory = digit_scenes.prepare(tmp_path)
  assert not leftover.exists()
  before = (directory / 'dataset_info.json').stat().st_mtime_ns
  assert digit_scenes.prepare(tmp_path) == directory
  assert (directory / 'dataset_info.json').stat().st_mtime_ns == before


def test_two_processes_prepare_at_once_without_tensorflow(tmp_path):
  command = [sys.executable, '-c', PREPARE, str(tmp_path)]
  both = [
    subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  outputs = [process.communicate(timeout=120) for process in both]
  assert [process.returncode for process in both] == [0, 0], outputs
  lines = {stdout.splitlines()[-1] for stdout, _ in outputs}
  assert len(lines) == 1 and lines.pop().startswith('8 2 ')


def test_a_data_dir_that_is_a_file_is_one_clear_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot prepare digit_scenes in .*file'):
    digit_scenes.prepare(tmp_path / 'file')


def test_contact_sheet(tmp_path, monkeypatch):
  picture = digit_scenes.contact_sheet('test', columns=2, rows=1)
  scene = next(digit_scenes.scenes('test', 1))
  assert picture.size == (2 * 136 + 8, 152 + 8)
  assert (np.asarray(picture)[24:152:2, 8:136:2] == scene.image).all()
  monkeypatch.setattr(sys, 'argv', ['x', '--contact_sheet', str(tmp_path / 'no' / 'sheet.png')])
  with pytest.raises(UserError, match='cannot write'):
    digit_scenes.main()
  monkeypatch.setattr(sys, 'argv', ['x', '--contact_sheet', str(tmp_path / 'sheet.png')])
  digit_scenes.main()
  assert (tmp_path / 'sheet.png').stat().st_size > 10_000
