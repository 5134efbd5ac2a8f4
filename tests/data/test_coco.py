"""COCO's JSON: what is read, and one line for what is wrong."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from rest_jax.data import rle
from rest_jax.data.coco import load_coco
from rest_jax.errors import UserError


def content():
  """Two pictures; a polygon, a compressed and an uncompressed crowd, a speck."""
  crowd = np.zeros((50, 40), bool)
  crowd[10:30, 5:25] = True
  return {
    'images': [
      {'id': 9, 'file_name': 'a.png', 'height': 30, 'width': 60},
      {'id': 4, 'file_name': 'b.png', 'height': 50, 'width': 40},
    ],
    'categories': [{'id': 90, 'name': 'kite'}, {'id': 1, 'name': 'cat'}, {'id': 7, 'name': 'bus'}],
    'annotations': [
      annotation(1, 9, 90, [10, 5, 20, 10], [[10, 5, 30, 5, 30, 15, 10, 15]], 200.0),
      annotation(2, 9, 1, [40, 20, 20.5, 10], [[40, 20, 60, 20, 60, 30]], 100.5),
      annotation(3, 4, 7, [5, 10, 20, 20], rle.encode(crowd), 400, iscrowd=1),
      annotation(4, 4, 7, [0, 0, 40, 2], {'size': [50, 40], 'counts': [0, 50, 1950]}, 50),
      annotation(5, 4, 1, [3, 3, 1, 8], [[3, 3, 4, 3, 4, 11]], 4),
    ],
  }


def annotation(number, image, category, box, segmentation, area, **more):
  return {
    'id': number,
    'image_id': image,
    'category_id': category,
    'bbox': box,
    'segmentation': segmentation,
    'area': area,
    'iscrowd': 0,
  } | more


@pytest.fixture
def folder(tmp_path):
  for name, size in (('a.png', (60, 30)), ('b.png', (40, 50))):
    Image.new('RGB', size, (10, 20, 30)).save(tmp_path / name)
  return tmp_path


def read(folder, data, **options):
  file = folder / 'instances.json'
  file.write_text(data if isinstance(data, str) else json.dumps(data))
  return load_coco(file, folder, **options)


def test_what_is_read(folder):
  source = read(folder, content())
  assert len(source) == 2 and source.class_names == ('cat', 'bus', 'kite')
  assert source.category_ids == (1, 7, 90) and source.dropped == 1
  first, second = source[0], source[1]
  assert first['image'].shape == (30, 60, 3) and first['image_id'] == 9
  np.testing.assert_array_equal(first['labels'], [2, 0])
  # Half a pixel over the border is cut off.
  np.testing.assert_allclose(first['boxes'], [[10, 5, 30, 15], [40, 20, 60, 30]])
  np.testing.assert_allclose(first['areas'], [200, 100.5])
  assert first['masks'].shape == (2, 30, 60) and first['masks'][0].sum() == 200
  np.testing.assert_array_equal(second['ignore'], [True, False])
  assert second['masks'][0, 10:30, 5:25].all() and second['masks'][0].sum() == 400
  assert second['masks'][1, :, 0].all() and second['masks'][1].sum() == 50
  assert first['boxes'].dtype == np.float32 and first['labels'].dtype == np.int32


def test_without_masks_outlines_are_not_read(folder):
  data = content()
  data['annotations'][0]['segmentation'] = []
  source = read(folder, data, masks=False)
  assert 'masks' not in source[0] and len(source[0]['labels']) == 2


def test_a_picture_without_objects(folder):
  data = content()
  data['annotations'] = data['annotations'][2:]
  example = read(folder, data)[0]
  assert example['boxes'].shape == (0, 4) and example['masks'].shape == (0, 30, 60)


def change(path, value):
  """A change of the content: annotations/0/bbox -> value."""

  def apply(data):
    at = data
    for part in path[:-1]:
      at = at[part]
    at[path[-1]] = value

  return apply


BAD = [
  (change(('annotations', 0, 'bbox'), [50, 5, 20, 10]), r'annotation 1: the box .* lies outside'),
  (change(('annotations', 0, 'bbox'), [-9, 5, 20, 10]), r'annotation 1: .* outside .* 60x30 px'),
  (change(('annotations', 1, 'bbox'), [40, 20, -5, 10]), 'annotation 2: .* negative size'),
  (change(('annotations', 1, 'bbox'), [1, 2, 3]), 'annotation 2: the box .* not four numbers'),
  (change(('annotations', 1, 'bbox'), [1, 2, '3', 4]), 'annotation 2: .* not four numbers'),
  (change(('annotations', 1, 'bbox'), [1, 2, float('nan'), 4]), 'not four numbers'),
  (change(('annotations', 2, 'category_id'), 8), 'annotation 3: unknown class 8'),
  (change(('annotations', 2, 'image_id'), 8), 'annotation 3: there is no image 8'),
  (change(('annotations', 2, 'id'), 1), 'annotation 1 is there twice'),
  (change(('annotations', 0, 'segmentation'), []), 'annotation 1: the outline is empty'),
  (change(('annotations', 0, 'segmentation'), [[]]), 'annotation 1: the outline is empty'),
  (change(('annotations', 0, 'segmentation'), [[1, 2, 3, 4]]), 'fewer than three corners'),
  (change(('annotations', 0, 'segmentation'), None), 'annotation 1: the outline is empty'),
  (change(('annotations', 0), {'id': 17}), 'annotation 17 has no image_id, category_id, bbox'),
  (change(('annotations', 0), 17), 'annotation 17 is no object'),
  (change(('images', 0, 'file_name'), 'no.png'), r'picture of image 9 is missing: .*no\.png'),
  (change(('images', 0), {'id': 9}), 'image 9 has no id, file_name'),
  (change(('images', 1, 'id'), 9), 'image 9 is there twice'),
  (change(('categories', 0), {'id': 90}), 'a category has no id or no name'),
  (change(('categories', 0, 'id'), 7), 'two have one id'),
  (change(('annotations',), {}), 'no list of annotations'),
]


@pytest.mark.parametrize(('apply', 'match'), BAD)
def test_what_is_wrong_is_one_line_with_the_file(folder, apply, match):
  data = copy.deepcopy(content())
  apply(data)
  with pytest.raises(UserError, match=match) as error:
    read(folder, data)
  assert 'instances.json' in str(error.value) and '\n' not in str(error.value)


def test_pixels_that_do_not_fit(folder):
  data = content()
  data['annotations'][2]['segmentation'] = {'size': [50, 40], 'counts': [3]}
  source = read(folder, data)
  with pytest.raises(UserError, match=r'instances.json: annotation 3: .*fill 3 of its 2000'):
    source[1]
  data = content()
  data['images'][0] |= {'height': 31}
  with pytest.raises(UserError, match=r'image 9 is 60x31 px, the picture .*a.png 60x30'):
    read(folder, data)[0]


def test_files_that_are_no_json(folder):
  with pytest.raises(UserError, match=r'cannot read the annotations .*instances.json'):
    read(folder, '{"images": ')
  with pytest.raises(UserError, match=r'no COCO instances file: it has no list of images'):
    read(folder, '[]')
  with pytest.raises(UserError, match=r'cannot read the annotations .*no.json: No such file'):
    load_coco(folder / 'no.json', folder)
