"""Average precision: by hand, and equal to pycocotools on a JSON of the same."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rest_jax.data import rle
from rest_jax.data.coco import load_coco
from rest_jax.errors import UserError
from rest_jax.metrics import AveragePrecision
from rest_jax.metrics.average_precision import NAMES


def truth(image_id, boxes, labels, ignore=None):
  boxes = np.array(boxes, np.float32).reshape(-1, 4)
  masks = np.zeros((len(boxes), 64, 80), bool)
  for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
    mask[y1:y2, x1:x2] = True
  return {
    'image': np.zeros((64, 80, 3), np.uint8),
    'image_id': image_id,
    'boxes': boxes,
    'labels': np.array(labels, np.int32),
    'ignore': np.zeros(len(boxes), bool) if ignore is None else np.array(ignore),
    'areas': masks.sum((1, 2)).astype(float),
    'masks': masks,
  }


def found(like, scores):
  return {k: like[k] for k in ('boxes', 'labels', 'masks')} | {'scores': np.array(scores)}


def test_right_results_are_perfect_and_missing_ones_cost():
  metric = AveragePrecision(('a', 'b', 'c'), masks=True)
  both = truth('x', [[4, 4, 20, 20], [30, 10, 70, 50]], [0, 1])
  metric.add(both, found(both, [0.9, 0.8]))
  figures = metric.figures()
  for kind in ('box', 'mask'):
    np.testing.assert_allclose([figures[kind][n] for n in NAMES[:4]], 1)
    assert np.isnan(figures[kind]['AP_large'])
    assert figures[kind]['classes']['a'] > 0.999 and np.isnan(figures[kind]['classes']['c'])
  more = truth('y', [[4, 4, 20, 20]], [0])
  metric.add(more, found(truth('y', [], []), []))
  # Recall 1/2 at precision 1: 51 of the 101 points of the curve.
  np.testing.assert_allclose(metric.figures()['box']['classes']['a'], 51 / 101)


def test_what_is_to_be_ignored_counts_for_nothing():
  metric = AveragePrecision(('a',))
  example = truth(0, [[4, 4, 20, 20], [30, 10, 70, 50]], [0, 0], [False, True])
  wrong = truth(0, [[4, 4, 20, 20], [32, 12, 50, 40], [34, 14, 60, 48]], [0, 0, 0])
  metric.add(example, found(wrong, [0.5, 0.9, 0.8]))
  np.testing.assert_allclose(metric.figures()['box']['AP'], 1)


def test_nothing_found():
  metric = AveragePrecision(('a',), masks=True)
  metric.add(truth(0, [[4, 4, 20, 20]], [0]), found(truth(0, [], []), []))
  figures = metric.figures()
  assert figures['box']['AP'] == figures['mask']['AP50'] == 0 == figures['box']['classes']['a']


def random_file(folder):
  """A COCO file of random rectangles with gaps in its ids, crowds, and results that are off."""
  rng = np.random.default_rng(0)
  images, annotations, results = [], [], []
  for number in range(1, 9):
    name = f'{number}.png'
    Image.new('RGB', (80, 64)).save(folder / name)
    images.append({'id': 10 * number, 'file_name': name, 'height': 64, 'width': 80})
    for _ in range(5):
      x, y = (int(v) for v in rng.integers(0, 40, 2))
      w, h = (int(v) for v in rng.integers(4, 24, 2))
      mask = np.zeros((64, 80), bool)
      mask[y : y + h, x : x + w] = True
      base = {'image_id': 10 * number, 'category_id': int(rng.choice([3, 9]))}
      annotations.append(
        base | {'id': len(annotations) + 1, 'bbox': [x, y, w, h], 'area': w * h,
                'iscrowd': int(rng.random() < 0.1), 'segmentation': rle.encode(mask)}
      )  # fmt: skip
      dx, dy = (int(v) for v in rng.integers(-2, 3, 2))
      moved = np.roll(mask, (dy, dx), (0, 1))
      results.append(
        base | {'score': float(rng.random()), 'segmentation': rle.encode(moved),
                'bbox': [max(x + dx, 0), max(y + dy, 0), w, h]}
      )  # fmt: skip
  categories = [{'id': 3, 'name': 'a'}, {'id': 9, 'name': 'b'}]
  content = {'images': images, 'annotations': annotations, 'categories': categories, 'info': {}}
  (folder / 'file.json').write_text(json.dumps(content))
  return results


def test_the_same_as_pycocotools_on_the_file(tmp_path):
  results = random_file(tmp_path)
  source = load_coco(tmp_path / 'file.json', tmp_path)
  metric = AveragePrecision(source.class_names, masks=True)
  for i in range(len(source)):
    example = source[i]
    own = [r for r in results if r['image_id'] == example['image_id']]
    boxes = np.array([r['bbox'] for r in own], float)
    boxes[:, 2:] += boxes[:, :2]
    metric.add(
      example,
      {
        'boxes': boxes,
        'scores': [r['score'] for r in own],
        'labels': np.array([source.category_ids.index(r['category_id']) for r in own]),
        'masks': np.array([rle.decode(r['segmentation']) for r in own]),
      },
    )
  figures = metric.figures()
  with contextlib.redirect_stdout(io.StringIO()):
    raw = COCO(tmp_path / 'file.json')
    for kind, name in (('bbox', 'box'), ('segm', 'mask')):
      mine = [dict(r) for r in results]
      if kind == 'bbox':
        mine = [{k: v for k, v in r.items() if k != 'segmentation'} for r in mine]
      judge = COCOeval(raw, raw.loadRes(mine), kind)
      judge.evaluate()
      judge.accumulate()
      judge.summarize()
      want = np.where(judge.stats[:6] < 0, np.nan, judge.stats[:6])
      np.testing.assert_allclose([figures[name][n] for n in NAMES], want, atol=1e-9)
      assert 0.1 < want[0] < 0.9
      np.testing.assert_allclose(np.mean(list(figures[name]['classes'].values())), want[0])


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    (dict(labels=np.array([7])), 'labels reach from 7 to 7, there are 2 classes'),
    (dict(boxes=np.zeros((2, 4))), r'boxes are \(2, 4\) for 1 labels'),
    (dict(scores=[1, 2]), '2 scores for 1 labels'),
    (dict(masks=np.zeros((1, 3, 3), bool)), r'masks are \(1, 3, 3\), not \(1, 64, 80\)'),
    (dict(masks=np.full((1, 64, 80), 0.01)), 'masks are bool'),
    # To pycocotools what is no number overlaps everything: AP 100 %.
    (dict(boxes=np.full((1, 4), np.nan)), 'boxes are not finite'),
    (dict(scores=[np.nan]), 'scores are not finite'),
    (dict(labels=np.array([0.9])), 'labels are not whole numbers'),
    (dict(boxes=np.array([[30, 30, 10, 10]])), 'a box ends before it begins'),
  ],
)
def test_refuses(change, match):
  metric = AveragePrecision(('a', 'b'), masks=True)
  example = truth(5, [[4, 4, 20, 20]], [0])
  with pytest.raises(UserError, match=match) as error:
    metric.add(example, found(example, [0.5]) | change)
  assert 'picture 5' in str(error.value)
  metric.add(example, found(example, [0.5]))  # nothing was kept of it
  np.testing.assert_allclose(metric.figures()['box']['AP'], 1)


def test_refuses_a_truth_that_is_none():
  metric = AveragePrecision(('a',))
  example = truth(5, [[4, 4, 20, 20]], [0])
  for change in (dict(areas=[np.nan]), dict(areas=[1, 2]), dict(ignore=[])):
    with pytest.raises(UserError, match='the truth of picture 5'):
      metric.add(example | change, found(example, [0.5]))


def test_masks_that_are_not_judged_are_not_looked_at():
  metric = AveragePrecision(('a',))
  example = truth(5, [[4, 4, 20, 20]], [0])
  metric.add(example, found(example, [0.5]) | dict(masks=np.full((1, 28, 28), 0.3)))
  np.testing.assert_allclose(metric.figures()['box']['AP'], 1)


def test_classes_of_one_name_stay_apart():
  metric = AveragePrecision(('crane', 'crane'))
  example = truth(5, [[4, 4, 20, 20]], [0])
  metric.add(example, found(example, [0.5]))
  one, other = metric.figures()['box']['classes'].values()
  assert one > 0.999 and np.isnan(other)


def test_refuses_a_picture_twice_and_none():
  metric = AveragePrecision(('a',))
  with pytest.raises(UserError, match='no picture to judge'):
    metric.figures()
  example = truth(5, [], [])
  metric.add(example, found(example, []))
  with pytest.raises(UserError, match='judged already'):
    metric.add(example, found(example, []))
