"""A split judged by our path, on canvases of other sizes, as pycocotools judges its file.

The model is a stand-in that finds the file's objects, a little off; what our path makes of its
outputs is written as a results file and judged by pycocotools alone against the annotations as they
are, which our reader never touched.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rest_jax.data import rle
from rest_jax.data.dense_batches import DenseEvalBatches, View
from rest_jax.data.dense_sources import load_dense
from rest_jax.metrics import Confusion
from rest_jax.metrics.average_precision import NAMES
from rest_jax.models.dense import Detections
from rest_jax.train import measured
from rest_jax.train.dense_evaluate import judge_detector
from rest_jax.train.dense_validation import _line

ROOM = 12  # results of a picture
# (id, folder, height, width): no order, gaps, three shapes, the first without objects.
PICTURES = (
  *((70, 'a/', 90, 120), (12, '', 120, 90), (31, 'a/', 50, 50), (8, 'b/', 64, 80)),
  *((9, '', 90, 120), (5, '', 120, 90)),
)
CATEGORIES = ((90, 'kite'), (3, 'cat'), (7, 'bus'), (40, 'none of it'))


def annotations(rng):
  """Outlines, run lengths of both kinds, crowds, specks, boxes half a pixel over the border."""
  found = []
  for image, _, height, width in PICTURES[1:]:
    for kind in ('outline', 'outline', 'border', 'speck', 'crowd', 'runs', 'large'):
      x, y = (float(rng.integers(0, side - 30)) + 0.25 for side in (width, height))
      w, h = (float(v) for v in rng.integers(5, 30, 2))
      if kind == 'border':
        x, y, w, h = width - 12.0, y, 12.5, h
      if kind == 'speck':
        w = 1.0
      if kind == 'large':
        x, y, w, h = 1.0, 1.0, width - 3.5, height - 2.0
      found.append(one(len(found) + 1, image, kind, (x, y, w, h), (height, width), rng))
  return found


def one(number, image, kind, box, size, rng):
  x, y, w, h = box
  outline = [[x, y, x + w, y, x + w, y + h, x + w / 3, y + h]]
  mask = np.zeros(size, bool)
  mask[int(y) : int(y + h), int(x) : int(x + w)] = True
  flat = mask.T.ravel()
  edges = np.flatnonzero(np.diff(flat, prepend=False)).tolist()
  runs = np.diff([0, *edges, flat.size]).tolist()
  entry = {
    'id': number,
    'image_id': image,
    'category_id': int(rng.choice([90, 3, 7])),
    'bbox': list(box),
    'area': float(mask.sum()),
    'segmentation': outline,
  }
  if kind == 'crowd':
    entry |= {'segmentation': rle.encode(mask), 'iscrowd': 1}
  elif kind == 'runs':
    entry |= {'segmentation': {'size': list(size), 'counts': runs}, 'iscrowd': 1}
  else:
    entry |= {'iscrowd': 0}
  return entry


def model(truth, rng):
  """(variables, canvases, sizes) -> the objects of each picture, known by its grey."""

  def step(_, images, sizes):
    rows = [found(PICTURES[int(i[0, 0, 0])], s) for i, s in zip(images, sizes, strict=True)]
    return Detections(*(np.stack(part) for part in zip(*rows, strict=True)))

  def found(picture, seen):
    image, _, height, width = picture
    own = [a for a in truth if a['image_id'] == image]
    boxes = np.array([a['bbox'] for a in own], np.float32).reshape(-1, 4)
    boxes = np.concatenate([boxes, [[2, 2, 40, 40], [4, 3, 7, 30]]])  # of nothing
    boxes += rng.integers(-1, 2, boxes.shape)
    boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:], 2)
    boxes *= np.array([seen[1] / width, seen[0] / height] * 2, np.float32)
    labels = [[90, 3, 7].index(a['category_id']) for a in own] + [0, 1]
    count = len(boxes)
    padded = np.zeros((ROOM, 4), np.float32)
    padded[:count] = boxes
    there = np.arange(ROOM) < count
    # Few values: which of equal scores comes first must not hang on the order of the pictures.
    scores = np.where(there, rng.choice([0.2, 0.5, 0.9], ROOM), 0).astype(np.float32)
    names = np.full(ROOM, -1)
    names[:count] = [order().index((90, 3, 7)[label]) for label in labels]
    masks = (rng.random((ROOM, 1, 28)) * np.ones((1, 28, 1)) > 0.15).astype(np.float32)
    masks[len(own), :16] = 0  # its mask is small, which its box is not
    scores[len(own)] = 0.9
    return padded, scores, names, there, masks

  return step


def order():
  """Category ids as labels count them."""
  return sorted(number for number, _ in CATEGORIES)


def write(root, rng):
  """The data set, and its annotations."""
  truth = annotations(rng)
  images = []
  for number, (image, folder, height, width) in enumerate(PICTURES):
    name = f'{folder}{image}.png'
    path = root / 'val' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), number, np.uint8)).save(path)
    images.append({'id': image, 'file_name': name, 'height': height, 'width': width})
  content = {
    'images': images,
    'annotations': truth,
    'categories': [{'id': number, 'name': name} for number, name in CATEGORIES],
  }
  (root / 'annotations').mkdir()
  (root / 'annotations/instances_val.json').write_text(json.dumps(content))
  return truth


def raw(file, results, kind):
  """What pycocotools says of a results file, as its users write it: boxes or masks, not both."""
  left_out = 'segmentation' if kind == 'bbox' else 'bbox'
  entries = [{k: v for k, v in r.items() if k != left_out} for r in results]
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(file)
    judge = COCOeval(truth, truth.loadRes(entries), kind)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
  return np.where(judge.stats[:6] < 0, np.nan, judge.stats[:6])


@pytest.mark.parametrize('view', [View(0, 0, ((128, 128),)), View(44, 70, ((64, 96), (96, 64)))])
@pytest.mark.parametrize('masks', [True, False])
def test_the_same_as_pycocotools_on_the_file(tmp_path, view, masks):
  rng = np.random.default_rng(3)
  truth = write(tmp_path, rng)
  kind = 'masks' if masks else 'boxes'
  source = load_dense(str(tmp_path), kind, train_split='val', test_split='val').test
  assert '5 objects' in source.note
  results = []

  def watch(example, own):
    for i in range(len(own.labels)):
      left, top, right, bottom = (float(edge) for edge in own.boxes[i])
      entry = {
        'image_id': example['image_id'],
        'category_id': order()[own.labels[i]],
        'bbox': [left, top, right - left, bottom - top],
        'score': float(own.scores[i]),
      }
      results.append(entry | ({'segmentation': rle.encode(own.masks[i])} if masks else {}))

  batches = DenseEvalBatches(source, 2, view)
  figures = judge_detector(model(truth, rng), None, batches, source.class_names, masks, watch)
  assert len(results) == 5 * 7 + 6 * 2
  file = tmp_path / 'annotations/instances_val.json'
  for coco_kind, prefix in (('bbox', ''), ('segm', 'mask_'))[: 1 + masks]:
    want = raw(str(file), results, coco_kind)
    np.testing.assert_allclose([figures[prefix + n] for n in NAMES], want, rtol=0, atol=1e-12)
    assert 0.05 < want[0] < 0.9 and np.isfinite(want).all()
  assert figures['judged'] == 3 and measured.short(figures).endswith(' over 3 of 4 classes')
  classes = figures['classes']['box']
  assert np.isnan(classes['none of it']) and list(classes) == ['cat', 'bus', 'none of it', 'kite']


def test_nothing_found_is_no_precision_where_there_are_objects(tmp_path):
  write(tmp_path, np.random.default_rng(3))
  source = load_dense(str(tmp_path), 'masks', train_split='val', test_split='val').test

  def step(_, images, sizes):
    count = len(images)
    nothing = np.zeros((count, ROOM))
    return Detections(
      np.zeros((count, ROOM, 4), np.float32),
      nothing.astype(np.float32),
      nothing.astype(int) - 1,
      nothing > 0,
      np.zeros((count, ROOM, 28, 28), np.float32),
    )

  batches = DenseEvalBatches(source, 3, View(0, 0, ((128, 128),)))
  figures = judge_detector(step, None, batches, source.class_names, True)
  assert figures['AP'] == figures['mask_AP50'] == figures['classes']['mask']['cat'] == 0
  assert np.isnan(figures['classes']['box']['none of it'])


def test_the_line_says_of_which_figure_the_classes_are_counted():
  """`mean_accuracy` here is a mean over the two classes that the labels have, not over three."""
  table = Confusion(3)
  table.add(np.array([0, 1, 0, 1]), np.array([0, 1, 2, 1]))
  found = table.figures()
  assert (found.miou, found.mean_accuracy, found.judged) == (0.5, 0.75, 3)
  classes = dict(zip('abc', found.iou, strict=True))
  result = {'miou': 0.5, 'mean_accuracy': 0.75, 'classes': classes, 'judged': 3, 'count': 1}
  line = _line('model', 'data', result, Path('out'))
  assert 'mean_accuracy 75.0 %; mIoU over 3 of 3 classes; ' in line
  result = {'AP': 0.9996, 'classes': {'box': classes}, 'judged': 2, 'count': 1}
  assert 'AP 99.96 %; AP over 2 of 3 classes' in _line('model', 'data', result, Path('out'))
