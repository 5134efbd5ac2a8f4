"""Data sets of dense tasks by name, and their batches on canvases."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from rest_jax.data.dense_augment import DetectionAugment
from rest_jax.data.dense_batches import DenseEvalBatches, DenseTrainBatches, View, into_canvas
from rest_jax.data.dense_sources import DenseSource, judged_split, load_dense
from rest_jax.data.iterators import TrainIterator
from rest_jax.errors import UserError

PLAIN = DetectionAugment(short=(32,), long=64, crop_share=(1.0, 1.0), flip=0.0)
CANVASES = ((32, 64), (64, 32))


class Pictures:
  """Grey pictures of their own number, wide ones and tall ones, with one box each."""

  sizes = ((32, 64), (64, 32), (32, 48), (48, 32), (32, 64), (32, 32), (20, 40))

  def __len__(self):
    return len(self.sizes)

  def __getitem__(self, index):
    height, width = self.sizes[index]
    return {
      'image': np.full((height, width, 3), 10 + index, np.uint8),
      'boxes': np.array([[2, 4, width - 2, height - 4]], np.float32),
      'labels': np.array([index % 2], np.int32),
      'ignore': np.zeros(1, bool),
      'areas': np.ones(1),
      'image_id': index,
    }


SOURCE = DenseSource(Pictures(), ('even', 'odd'), 'v1')


def numbers(batch):
  return (batch['image'][:, 0, 0, 0] - 10).tolist()


def batches(**options):
  given = dict(batch_size=2, augment=PLAIN, canvases=CANVASES, max_objects=3) | options
  return DenseTrainBatches(SOURCE, **given)


@pytest.mark.parametrize('canvases', [CANVASES, ((64, 64),)])
def test_an_epoch_shows_every_picture_and_fills_up_with_the_same(canvases):
  found = batches(canvases=canvases)
  count = found.batches_an_epoch
  for epoch in range(2):
    own = [found[i] for i in range(epoch * count, (epoch + 1) * count)]
    shown = [n for batch in own for n in numbers(batch)]
    assert set(shown) == set(range(7)) and len(shown) <= 7 + len(canvases)
  assert [numbers(found[i]) for i in range(count)] != [
    numbers(found[i + count]) for i in range(count)
  ]


def test_a_batch_has_one_canvas_and_its_pictures_lie_inside_of_it():
  found = batches()
  for number in range(found.batches_an_epoch):
    batch = found[number]
    assert batch['image'].shape[1:3] in CANVASES
    assert (batch['size'] <= batch['image'].shape[1:3]).all()
    for image, (height, width), boxes, labels in zip(
      batch['image'], batch['size'], batch['boxes'], batch['labels'], strict=True
    ):
      assert (
        image[:height, :width].all() and not image[height:].any() and not image[:, width:].any()
      )
      assert labels[0] == (image[0, 0, 0] - 10) % 2 and (labels[1:] == -1).all()
      assert (boxes[0] >= 0).all() and (boxes[0] <= [width, height, width, height]).all()


def test_two_processes_get_the_halves_of_the_batch():
  whole = batches(batch_size=4)
  for number in range(whole.batches_an_epoch):
    parts = [batches(batch_size=4, process_index=p, process_count=2)[number] for p in (0, 1)]
    for name, value in whole[number].items():
      np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)


def test_the_stream_goes_on_to_the_bit():
  iterator = TrainIterator(batches(augment=DetectionAugment(short=(24, 32), long=64)), 0)
  for _ in range(3):
    next(iterator)
  state = iterator.get_state()
  wanted = [next(iterator) for _ in range(4)]
  again = TrainIterator(batches(augment=DetectionAugment(short=(24, 32), long=64)), 0)
  again.set_state(json.loads(json.dumps(state)))
  for batch in wanted:
    found = next(again)
    assert all((found[name] == value).all() for name, value in batch.items())
  iterator.close()
  again.close()


def test_batches_travel_to_workers():
  found = batches()
  copy = pickle.loads(pickle.dumps(found))
  np.testing.assert_array_equal(copy[5]['image'], found[5]['image'])


def test_every_test_picture_comes_once_on_the_smallest_canvas():
  found = DenseEvalBatches(SOURCE, 2, View(0, 0, (*CANVASES, (64, 64))))
  seen = []
  for number in range(len(found)):
    batch = found[number]
    assert batch['mask'].sum() == len(batch['examples']) and len(batch['image']) == 2
    seen += [example['image_id'] for example in batch['examples']]
    assert batch['image'].shape[1:3] != (64, 64)
  assert sorted(seen) == list(range(7))


@pytest.mark.parametrize('multiple', [1, 2, 4])
@pytest.mark.parametrize('batch_size', [4, 8, 128])
def test_a_canvas_has_no_more_rows_than_its_pictures_need(batch_size, multiple):
  found = DenseEvalBatches(SOURCE, batch_size, View(0, 0, CANVASES), multiple)
  own = [found[number] for number in range(len(found))]
  for canvas in CANVASES:
    sizes = [b['image'].shape[0] for b in own if b['image'].shape[1:3] == canvas]
    count = sum(b['mask'].sum() for b in own if b['image'].shape[1:3] == canvas)
    assert len(set(sizes)) == 1 and sizes[0] % multiple == 0  # a canvas compiles once
    assert sizes[0] < min(count, batch_size) + multiple and sizes[0] <= batch_size
  assert sorted(e['image_id'] for b in own for e in b['examples']) == list(range(7))


@pytest.mark.parametrize(
  'size, canvases, wanted',
  [
    ((30, 60), CANVASES, (30, 60)),
    ((60, 30), CANVASES, (60, 30)),
    ((64, 128), CANVASES, (32, 64)),
    ((100, 100), CANVASES, (32, 32)),
    ((1, 1000), ((32, 64),), (1, 64)),
  ],
)
def test_what_no_canvas_holds_becomes_smaller(size, canvases, wanted):
  assert into_canvas(size, canvases) == wanted


def test_an_error_of_a_picture_is_carried_as_data():
  assert 'room is for 0' in batches(max_objects=0)[0]['error']


@pytest.fixture
def coco(tmp_path):
  """Two splits of one picture each in COCO's layout."""
  (tmp_path / 'annotations').mkdir()
  for split, boxes in (('train2017', [[1, 1, 8, 8]]), ('val2017', [[2, 2, 6, 6], [0, 0, 4, 4]])):
    (tmp_path / split).mkdir()
    Image.new('RGB', (20, 16)).save(tmp_path / split / 'a.png')
    text = {
      'images': [{'id': 1, 'file_name': 'a.png', 'width': 20, 'height': 16}],
      'categories': [{'id': 3, 'name': 'cat'}, {'id': 9, 'name': 'dog'}],
      'annotations': [
        {'id': i, 'image_id': 1, 'category_id': 9, 'bbox': box, 'area': 1, 'iscrowd': 0}
        | {'segmentation': [[1, 1, 8, 1, 8, 8]]}
        for i, box in enumerate(boxes)
      ],
    }
    (tmp_path / 'annotations' / f'instances_{split}.json').write_text(json.dumps(text))
  return tmp_path


def test_a_coco_folder_by_its_splits(coco):
  found = load_dense(str(coco), 'masks', train_split='train2017', test_split='val2017')
  assert found.class_names == ('cat', 'dog') and len(found.train) == len(found.test) == 1
  assert found.train.size(0) == (16, 20) and found.test[0]['masks'].shape == (2, 16, 20)
  assert found.line.startswith(f'1 image of 2 classes from {coco} (train2017): cat, dog')
  assert load_dense(str(coco), 'masks').splits == ('train2017', 'val2017', 'val2017')
  assert judged_split(str(coco), 'masks') == 'val2017'
  digests = found.digests
  file = coco / 'annotations' / 'instances_val2017.json'
  file.write_text(file.read_text().replace('[2, 2, 6, 6]', '[2, 2, 6, 7]'))
  changed = load_dense(str(coco), 'masks', train_split='train2017', test_split='val2017').digests
  assert changed['train'] == digests['train'] and changed['test'] != digests['test']


def test_a_folder_of_classes_of_pixels(tmp_path):
  for part in ('train', 'trainannot', 'test', 'testannot'):
    (tmp_path / part).mkdir()
    mode = 'L' if part.endswith('annot') else 'RGB'
    Image.new(mode, (8, 6), 1 if mode == 'L' else 0).save(tmp_path / part / 'a.png')
  with pytest.raises(UserError, match=r'classes\.txt, which names the classes'):
    load_dense(str(tmp_path), 'pixels')
  (tmp_path / 'classes.txt').write_text('sky\nroad\n')
  found = load_dense(str(tmp_path), 'pixels')
  assert found.class_names == ('sky', 'road') and found.test.size(0) == (6, 8)
  assert (found.train[0]['segmentation'] == 1).all()


@pytest.mark.parametrize(
  'name, kind, options, words',
  [
    ('digit_mosaics', 'boxes', {'train_split': 'val'}, 'splits train and test'),
    ('nowhere', 'boxes', {}, 'there is no folder nowhere'),
    ('{coco}', 'masks', {'train_split': 'learn', 'test_split': 'val2017'}, 'train2017, val2017'),
    ('{coco}', 'masks', {'test_split': 'test2017'}, 'instances_test2017.* train2017, val2017'),
    ('{coco}/annotations', 'boxes', {}, 'no data set of objects'),
  ],
)
def test_what_is_not_there_is_one_line(coco, name, kind, options, words):
  with pytest.raises(UserError, match=words) as error:
    load_dense(name.format(coco=coco), kind, **options)
  assert '\n' not in str(error.value)


def test_masks_of_boxes_are_refused(tmp_path):
  (tmp_path / 'Annotations').mkdir()
  with pytest.raises(UserError, match='boxes and no masks'):
    load_dense(str(tmp_path), 'masks')
