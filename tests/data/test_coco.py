"""COCO's JSON: what is read, and one line for what is wrong."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from rest_jax.data import rle
from rest_jax.data.coco import load_coco
from rest_jax.data.objects import to_learn
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
  assert source.category_ids == (1, 7, 90) and source.specks == 1
  first, second = source[0], source[1]
  assert first['image'].shape == (30, 60, 3) and first['image_id'] == 9
  np.testing.assert_array_equal(first['labels'], [2, 0])
  # Half a pixel over the border is judged as it was drawn, and learnt as far as there are pixels.
  np.testing.assert_allclose(first['boxes'], [[10, 5, 30, 15], [40, 20, 60.5, 30]])
  np.testing.assert_allclose(to_learn(first)['boxes'], [[10, 5, 30, 15], [40, 20, 60, 30]])
  np.testing.assert_allclose(first['areas'], [200, 100.5])
  assert first['masks'].shape == (2, 30, 60) and first['masks'][0].sum() == 200
  np.testing.assert_array_equal(second['ignore'], [True, False, False])
  learnt = to_learn(second)  # without the speck
  np.testing.assert_array_equal(learnt['ignore'], [True, False])
  assert {len(learnt[name]) for name in ('boxes', 'labels', 'areas', 'masks')} == {2}
  assert second['masks'][0, 10:30, 5:25].all() and second['masks'][0].sum() == 400
  assert second['masks'][1, :, 0].all() and second['masks'][1].sum() == 50
  assert first['boxes'].dtype == np.float64 and first['labels'].dtype == np.int32


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
  (change(('categories', 0), {'id': 90}), 'category 90 has no id or no name'),
  (change(('categories', 0), 7), 'category None has no id or no name'),
  (change(('categories', 0, 'id'), '90'), "category '90' has no id or no name"),
  (change(('categories', 0, 'id'), 9.5), 'category 9.5 has no id or no name'),
  (change(('categories', 0, 'name'), 'bus'), "two classes are called 'bus'"),
  (change(('categories', 0, 'name'), 'a\nb'), 'is not one line of text'),
  (change(('categories',), []), 'names no class'),
  (change(('annotations', 0, 'id'), [1]), r'annotation \[1\] has an id that is no number'),
  (change(('annotations', 0, 'image_id'), {}), 'annotation 1 has an id that is no number'),
  (change(('annotations', 0, 'image_id'), '9'), "annotation 1: there is no image '9'"),
  (change(('annotations', 0, 'category_id'), '90'), "annotation 1: unknown class '90'"),
  (change(('annotations', 0, 'category_id'), True), 'annotation 1 has an id that is no number'),
  (change(('annotations', 0, 'area'), '200'), "annotation 1: the area '200' is no number"),
  (change(('annotations', 0, 'area'), -1), 'annotation 1: the area -1 is no number'),
  (change(('annotations', 0, 'iscrowd'), '0'), "annotation 1: iscrowd is 0 or 1, not '0'"),
  (change(('annotations', 0, 'iscrowd'), 2), 'annotation 1: iscrowd is 0 or 1, not 2'),
  (change(('annotations', 0, 'bbox'), []), r'annotation 1: the box \[\] is not four numbers'),
  (change(('annotations', 0, 'bbox'), [1, 2, 10**400, 4]), 'annotation 1: .* not four numbers'),
  (change(('annotations', 0, 'segmentation'), [1, 2, 3, 4, 5, 6]), 'annotation 1: the outline'),
  (change(('annotations', 0, 'segmentation'), {}), 'annotation 1: .* no run-length code'),
  (change(('annotations', 2, 'segmentation', 'size'), [40, 50]), 'annotation 3: .* 40x50, the'),
  (change(('annotations', 2, 'segmentation', 'size'), 50), 'annotation 3: .* no run-length code'),
  (change(('annotations', 2, 'segmentation', 'counts'), None), 'annotation 3: .* no run-length'),
  (change(('images', 0, 'id'), []), r'image \[\] has no id, file_name'),
  (change(('images', 0, 'file_name'), None), 'image 9 has no id, file_name'),
  (change(('images', 0, 'width'), '60'), 'image 9 has no id, file_name, height or width'),
  (change(('images', 0, 'width'), float('inf')), 'image 9 has no id, file_name, height or width'),
  (change(('images', 0, 'width'), 0), 'image 9 is there twice or has no size'),
  (change(('images', 0), 'a.png'), 'image None has no id, file_name'),
  (change(('categories', 0, 'id'), 7), 'two categories have one id, 7'),
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
  with pytest.raises(UserError, match=r'image 9 is 60x31 px, the picture .*a.png has 60x30; mend'):
    read(folder, data)[0]


def test_what_files_of_other_tools_lack_or_have(folder):
  """What is right though it is odd: no area, no iscrowd, no info, null, 1.0 for 1, names as ids."""
  data = content()
  for annotation in data['annotations'][:2]:
    del annotation['area'], annotation['iscrowd']
  data['annotations'][2] |= {'id': 'three', 'image_id': 4.0, 'category_id': 7.0, 'iscrowd': True}
  data['annotations'][3] |= {'iscrowd': None, 'area': None}
  data['images'][0] |= {'height': 30.0, 'license': None}
  source = read(folder, '\ufeff' + json.dumps(data))  # as Windows' tools begin a file
  first, second = source[0], source[1]
  # Without masks the area is the box's; with them that of the pixels.
  np.testing.assert_array_equal(first['areas'], first['masks'].sum((1, 2)))
  assert first['areas'][0] == 200 and first['areas'][1] < 110
  np.testing.assert_array_equal(second['areas'], [400, 50, 4])
  np.testing.assert_array_equal(second['ignore'], [True, False, False])
  np.testing.assert_array_equal(read(folder, data, masks=False)[0]['areas'], [200, 205])


def test_names_with_folders(folder):
  (folder / 'sub/deep').mkdir(parents=True)
  (folder / 'a.png').rename(folder / 'sub/deep/a.png')
  data = content()
  data['images'][0]['file_name'] = 'deep/a.png'
  (folder / 'b.png').rename(folder / 'sub/b.png')
  file = folder / 'instances.json'
  file.write_text(json.dumps(data))
  assert len(load_coco(file, folder / 'sub')[0]['labels']) == 2
  assert load_coco(file, [folder / 'none', folder, folder / 'sub']).folder == folder / 'sub'
  with pytest.raises(UserError, match='picture of image 9 is missing'):
    load_coco(file, [folder, folder / 'none'])


@pytest.mark.parametrize('orientation', [3, 6])
def test_annotations_are_of_the_upright_picture(folder, orientation):
  """As Detectron2 and OpenCV read pictures: turned as their EXIF orientation says."""
  stored = np.zeros((30, 60, 3), np.uint8)
  stored[:15, :20] = 255  # its upper left; turned by 90 degrees the upper right, by 180 the lower
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(stored).save(folder / 'a.jpg', exif=exif, quality=95)
  box = [15, 0, 15, 20] if orientation == 6 else [40, 15, 20, 15]
  data = content()
  data['annotations'] = [annotation(1, 9, 1, box, [], 9)]
  height, width = (60, 30) if orientation == 6 else (30, 60)
  data['images'][0] = {'id': 9, 'file_name': 'a.jpg', 'height': height, 'width': width}
  example = read(folder, data, masks=False)[0]
  x1, y1, x2, y2 = example['boxes'][0].astype(int)
  assert example['image'][y1:y2, x1:x2].min() > 200
  assert (example['image'] > 128).sum() == 3 * 15 * 20
  if orientation == 6:
    data['images'][0] |= {'height': 30, 'width': 60}
    data['annotations'] = []
    match = r'instances.json: image 9 is 60x30 px, the picture .*a.jpg has 30x60; its EXIF orient'
    with pytest.raises(UserError, match=match):
      read(folder, data)[0]


def test_boxes_in_shares_of_a_side_are_refused(folder):
  data = content()
  sizes = {image['id']: (image['width'], image['height']) for image in data['images']}
  for found in data['annotations']:
    width, height = sizes[found['image_id']]
    left, top, *lengths = found['bbox']
    found['bbox'] = [left / width, top / height, lengths[0] / width, lengths[1] / height]
  with pytest.raises(UserError, match=r'instances\.json: .* look like fractions; give pixels'):
    read(folder, data)
  # One that ends beyond the first pixels says that they are pixels.
  data['annotations'][0]['bbox'] = [0, 0, 2.5, 1]
  assert len(read(folder, data).objects[0]) == 2


def test_files_that_are_no_json(folder):
  with pytest.raises(UserError, match=r'cannot read the annotations .*instances.json'):
    read(folder, '{"images": ')
  with pytest.raises(UserError, match=r'no COCO instances file: it has no list of images'):
    read(folder, '[]')
  with pytest.raises(UserError, match=r'cannot read the annotations .*no.json: No such file'):
    load_coco(folder / 'no.json', folder)
