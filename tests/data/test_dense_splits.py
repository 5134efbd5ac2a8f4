"""Splits of folders of objects and of pixels: what each is for."""

import json

import pytest
from PIL import Image

from rest_jax.data.dense_sources import judged_split, load_dense
from rest_jax.data.dense_splits import (
  Splits,
  coco_splits,
  find_splits,
  pixel_splits,
  voc_splits,
)
from rest_jax.data.objects import to_learn
from rest_jax.errors import UserError

NO_TEST = 'no split test with annotations: '


@pytest.mark.parametrize(
  ('known', 'asked', 'wanted'),
  [
    (['test', 'train', 'trainval', 'val'], {}, Splits('train', 'val', 'test')),
    (['test', 'train'], {}, Splits('train', '', 'test')),
    (['train', 'val'], {}, Splits('train', '', 'val', f'{NO_TEST}val is judged')),
    (
      ['train2017', 'val2017'],
      {},
      Splits('train2017', '', 'val2017', f'{NO_TEST}val2017 is judged'),
    ),
    (
      ['training', 'validation'],
      {},
      Splits('training', '', 'validation', f'{NO_TEST}validation is judged'),
    ),
    (['Test', 'Train', 'Valid'], {}, Splits('Train', 'Valid', 'Test')),
    (['train', 'train2017', 'test'], {}, Splits('train', '', 'test')),  # the exact name wins
    # What is asked for stays as it is, known or not: whoever opens it says what is wrong.
    (['train2014', 'train2017', 'val2017'], {'train': 'train2014', 'test': 'val2017'},
     Splits('train2014', '', 'val2017')),
    (['train', 'val', 'test'], {'test': 'val'}, Splits('train', '', 'val')),
    (['train', 'val', 'test'], {'test': 'val', 'val': 'test'}, Splits('train', 'test', 'val')),
    (['train', 'val', 'test', 'own'], {'val': 'own'}, Splits('train', 'own', 'test')),
    (['other'], {}, Splits('train', '', 'test', f'{NO_TEST}test is judged')),
  ],
)  # fmt: skip
def test_roles(known, asked, wanted):
  assert find_splits(known, 'here', **asked) == wanted


def test_two_that_could_be_meant_are_asked_for():
  with pytest.raises(UserError, match=r'train2014 and train2017: .*data.train_split$'):
    find_splits(['train2014', 'train2017', 'val2017'], 'here')
  with pytest.raises(UserError, match=r'val2014 and val2017: .*data.val_split \(--split'):
    find_splits(['train2017', 'val2014', 'val2017'], 'here')


BOX = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 4, 4], 'area': 16}
PICTURE = {'id': 1, 'file_name': 'a.png', 'width': 8, 'height': 6}


def coco(root, **annotations):
  """A folder in COCO's layout of one picture a split, with these annotations; None for no list."""
  (root / 'annotations').mkdir(parents=True)
  for split, own in annotations.items():
    (root / split).mkdir()
    Image.new('RGB', (8, 6)).save(root / split / 'a.png')
    content = {'images': [PICTURE], 'categories': [{'id': 1, 'name': 'cat'}]}
    content |= {} if own is None else {'annotations': own}
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content, indent=1))
  return root


@pytest.mark.parametrize('nothing', [[], None])
def test_a_coco_file_without_annotations_is_passed_over_in_words(tmp_path, nothing):
  root = coco(tmp_path, train=[BOX], val=[BOX], test=nothing)
  assert coco_splits(root) == ['train', 'val']
  found = load_dense(str(root), 'boxes')
  assert found.splits == ('train', 'val', 'val') and judged_split(str(root), 'boxes') == 'val'
  said = 'instances_test.json has no annotations and is passed over'
  assert said in found.line and 'val is judged' in found.line


CROWD = BOX | {'iscrowd': 1}


@pytest.mark.parametrize(
  ('splits', 'asked', 'file'),
  [
    ({'train': [BOX], 'test': []}, {}, 'test'),
    ({'train': [BOX], 'val': [BOX], 'own': []}, {'test_split': 'own'}, 'own'),
    ({'train': [], 'test': [BOX]}, {}, 'train'),
    ({'train': [BOX], 'val': [CROWD], 'test': [BOX]}, {}, 'val'),  # nothing that counts
  ],
)
def test_a_split_of_no_object_is_refused_where_it_is_needed(tmp_path, splits, asked, file):
  coco(tmp_path, **splits)
  with pytest.raises(UserError, match=rf'instances_{file}.json has no objects') as error:
    load_dense(str(tmp_path), 'boxes', **asked)
  assert '\n' not in str(error.value)


def test_objects_are_counted_as_they_are_learnt(tmp_path):
  """A speck takes no room, a crowd does, as in the batch."""
  boxes = [BOX, BOX | {'id': 2, 'iscrowd': 1}, BOX | {'id': 3, 'bbox': [0, 0, 1, 4]}]
  found = load_dense(str(coco(tmp_path, train=boxes, test=[BOX])), 'boxes')
  assert found.train.most_objects() == (2, 1) and found.test.most_objects() == (1, 1)
  assert len(to_learn(found.train[0])['labels']) == 2


def test_classes_without_an_object_are_said(tmp_path):
  two = [BOX, BOX | {'id': 2, 'iscrowd': 1, 'category_id': 2}]
  root = coco(tmp_path, train=two, test=[BOX])
  for split in ('train', 'test'):
    file = root / f'annotations/instances_{split}.json'
    content = json.loads(file.read_text())
    content['categories'] += [{'id': 2 + i, 'name': name} for i, name in enumerate('abcd')]
    file.write_text(json.dumps(content))
  found = load_dense(str(root), 'boxes')
  assert found.train.note == 'no object of a, b, c and 1 more class'
  assert 'train, test: no object of a' in found.line


def test_a_voc_split_of_no_object_is_refused(tmp_path):
  for part in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
    (tmp_path / part).mkdir(parents=True)
  thing = (
    '<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax>'
    '</bndbox></object>'
  )
  for split, text in (('train', thing), ('test', '')):
    Image.new('RGB', (8, 6)).save(tmp_path / f'JPEGImages/{split}.jpg')
    (tmp_path / f'ImageSets/Main/{split}.txt').write_text(f'{split}\n')
    (tmp_path / f'Annotations/{split}.xml').write_text(
      f'<annotation><size><width>8</width><height>6</height></size>{text}</annotation>'
    )
  with pytest.raises(UserError, match=r'Main/test.txt has no objects to learn or to judge by'):
    load_dense(str(tmp_path), 'boxes')


def test_what_a_folder_has(tmp_path):
  """Lists of pictures without annotations, as VOC 2012's test, are none."""
  coco, voc, ade, camvid = (tmp_path / name for name in ('coco', 'voc', 'ade', 'camvid'))
  for folder in ('annotations',):
    (coco / folder).mkdir(parents=True)
  for name in ('instances_train2017', 'instances_val2017', 'captions_val2017'):
    (coco / 'annotations' / f'{name}.json').write_text('{}')
  for part in ('Main', 'Segmentation'):
    (voc / 'ImageSets' / part).mkdir(parents=True)
    for split, name in (('train', 'a'), ('val', 'b'), ('test', 'c')):
      (voc / 'ImageSets' / part / f'{split}.txt').write_text(f'{name}\n')
  for folder, ending in (('Annotations', 'xml'), ('SegmentationClass', 'png')):
    (voc / folder).mkdir()
    for name in 'ab':
      (voc / folder / f'{name}.{ending}').write_text('')
  for split in ('training', 'validation'):
    (ade / 'annotations' / split).mkdir(parents=True)
  for split in ('train', 'test'):
    (camvid / f'{split}annot').mkdir(parents=True)
  assert coco_splits(coco) == ['train2017', 'val2017']
  assert voc_splits(voc) == ['train', 'val'] == pixel_splits(voc)
  assert pixel_splits(ade) == ['training', 'validation']
  assert pixel_splits(camvid) == ['test', 'train']
