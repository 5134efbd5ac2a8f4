"""Mask R-CNN beside torchvision's parts, and its losses by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_toys import GOLDEN, Squares, images, state

from rest_jax.errors import UserError
from rest_jax.models.convert_dense import from_detectron2, to_detectron2
from rest_jax.models.dense import Levels, Targets
from rest_jax.models.mask_rcnn import MaskRCNN
from rest_jax.models.rpn import proposal_losses, propose

MODEL = MaskRCNN(Squares(), 3, width=8, box_width=16, regions_drawn=16, anchors_drawn=32)
SIZES = np.array([[64, 96], [50, 80]], np.float32)


@pytest.fixture(scope='module')
def variables():
  return from_detectron2(state('mask_rcnn'), MODEL)


@pytest.fixture(scope='module')
def proposals(variables):
  """Outputs of the proposal network, and what it lets through of deltas of a third."""

  def run(model, x):
    levels = model.proposal_levels(*model.pyramid(x))
    smaller = levels._replace(deltas=tuple(d * 0.3 for d in levels.deltas))
    return levels.logits, propose(smaller, jnp.asarray(SIZES), before=60, after=40)

  return jax.jit(lambda v, x: MODEL.apply(v, x, method=run))(variables, images('mask_rcnn'))


def test_proposals_as_torchvision(proposals):
  logits, found = proposals
  for i, level in enumerate(logits):
    np.testing.assert_allclose(level, GOLDEN[f'mask_rcnn/rpn_logits{i}'], atol=1e-4)
  for i in range(2):
    want = GOLDEN[f'mask_rcnn/proposals{i}']
    assert len(want) > 20 and int(found.valid[i].sum()) == len(want)
    np.testing.assert_allclose(found.boxes[i][: len(want)], want, atol=1e-3)
    assert not np.asarray(found.boxes[i])[len(want) :].any()


def test_heads_as_torchvision(variables):
  """torchvision's background is the first class, here and in detectron2 it is the last."""

  def run(model, regions, boxes, masks):
    logits, deltas = model.box_head(regions)
    there = jnp.ones(boxes.shape[0], bool)
    found = model._select_one(logits, deltas, boxes, there, jnp.asarray(SIZES[0]))
    return logits, deltas, model.mask_head(masks), found

  regions, masks = (
    GOLDEN[f'mask_rcnn/{name}'].transpose(0, 2, 3, 1) for name in ('regions', 'mask_regions')
  )
  boxes = GOLDEN['mask_rcnn/region_boxes']
  apply = jax.jit(lambda *a: MODEL.apply(variables, *a, method=run))
  logits, deltas, shapes, found = apply(regions, boxes, masks)
  np.testing.assert_allclose(logits, GOLDEN['mask_rcnn/class'], atol=1e-4)
  np.testing.assert_allclose(deltas, GOLDEN['mask_rcnn/box'], atol=1e-4)
  want = GOLDEN['mask_rcnn/masks'].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(shapes, want, atol=1e-4)
  want = {part: GOLDEN[f'mask_rcnn/found/{part}'] for part in ('boxes', 'scores', 'labels')}
  count = len(want['scores'])
  assert count > 10 and int(found.valid.sum()) == count
  np.testing.assert_allclose(found.scores[:count], want['scores'], atol=1e-4)
  np.testing.assert_array_equal(found.labels[:count], want['labels'] - 1)
  np.testing.assert_allclose(found.boxes[:count], want['boxes'], atol=1e-3)


def test_names_of_detectron2_go_both_ways(variables):
  given, back = state('mask_rcnn'), to_detectron2(variables, MODEL)
  assert set(back) == set(given)
  for name, array in given.items():
    np.testing.assert_array_equal(back[name], array)


@pytest.fixture(scope='module')
def targets():
  """Two objects and a region in one image, none in the other."""
  boxes = np.zeros((2, 5, 4), np.float32)
  boxes[0, :3] = [[10, 8, 42, 48], [50, 20, 90, 60], [0, 50, 20, 64]]
  labels = np.full((2, 5), -1, np.int32)
  labels[0, :3] = [1, 0, -2]
  masks = np.zeros((2, 5, 20, 20), np.float32)
  masks[0, 0, :10] = 1
  masks[0, 1] = 1
  return Targets(boxes, labels, masks)


@pytest.fixture(scope='module')
def step():
  def losses(variables, x, targets, key):
    def total(params):
      rngs = {'dropout': key}
      got = MODEL.apply({**variables, 'params': params}, x, targets, method='losses', rngs=rngs)
      return sum(got.values()), got

    return jax.value_and_grad(total, has_aux=True)(variables['params'])

  return jax.jit(losses)


def test_losses_and_gradients(variables, targets, step, key):
  (_, got), slopes = step(variables, images('mask_rcnn'), targets, key)
  assert set(got) == {'rpn_class', 'rpn_box', 'class', 'box', 'mask'}
  assert all(np.isfinite(v) and v > 0 for v in got.values())
  flat = jax.tree.leaves_with_path(slopes)
  assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for _, leaf in flat)
  # Another key draws other anchors and regions; the same one the same.
  (_, again), _ = step(variables, images('mask_rcnn'), targets, key)
  (_, other), _ = step(variables, images('mask_rcnn'), targets, jax.random.key(1))
  assert again == got and other['rpn_class'] != got['rpn_class']


def test_losses_of_outputs_that_say_nothing(variables, targets, step, key):
  """Means over what was drawn: an even guess costs the logarithm of the choices."""
  params = jax.tree.map(np.asarray, variables['params'])
  for head, layer in (('rpn', 'logits'), ('box_head', 'class_out'), ('mask_head', 'out')):
    params[head] = {**params[head], layer: jax.tree.map(np.zeros_like, params[head][layer])}
  (_, got), _ = step({'params': params}, images('mask_rcnn'), targets, key)
  np.testing.assert_allclose(got['rpn_class'], np.log(2), rtol=1e-5)
  np.testing.assert_allclose(got['class'], np.log(4), rtol=1e-5)
  np.testing.assert_allclose(got['mask'], np.log(2), rtol=1e-5)


def test_losses_of_proposals_by_hand(key):
  """All anchors drawn: sums over those that are positive or background, over the number drawn."""
  rng = np.random.default_rng(0)
  anchors = np.array(
    [[0, 0, 10, 10], [1, 0, 10, 10], [30, 30, 40, 40], [6, 0, 16, 10], [50, 0, 60, 10]], np.float32
  )
  logits, deltas = rng.normal(size=(1, 5)), rng.normal(size=(1, 5, 4))
  levels = Levels((np.float32(logits),), (np.float32(deltas),), (anchors,))
  # IoU 1, .9, 0, .25 and 0 with the object; anchor 4 lies in a region.
  boxes = np.array([[[0, 0, 10, 10], [45, 0, 64, 12], [0, 0, 0, 0]]], np.float32)
  targets = Targets(boxes, np.array([[1, -2, -1]]))
  run = jax.jit(lambda k: proposal_losses(levels, targets, k, count=5, positive_share=1.0))
  got = run(key)
  entropy = np.logaddexp(0, [-logits[0, 0], -logits[0, 1], logits[0, 2], logits[0, 3]])
  np.testing.assert_allclose(got['rpn_class'], entropy.sum() / 5, rtol=1e-5)
  # Anchor 1 is 9x10 with its centre at (5.5, 5).
  code = np.array([[0, 0, 0, 0], [-0.5 / 9, 0, np.log(10 / 9), 0]])
  box = np.abs(deltas[0, :2] - code).sum()
  np.testing.assert_allclose(got['rpn_box'], box / 5, rtol=1e-5)


def test_no_objects_give_no_loss_of_boxes_and_masks(variables, targets, step, key):
  empty = Targets(targets.boxes * 0, np.full_like(targets.labels, -1), targets.masks)
  (_, got), slopes = step(variables, images('mask_rcnn'), empty, key)
  assert got['rpn_box'] == got['box'] == got['mask'] == 0 and got['class'] > 0
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def adam(params, slopes, state, turn):
  """One step of Adam, in NumPy."""
  first, second = state
  first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * np.asarray(g), first, slopes)
  second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * np.asarray(g) ** 2, second, slopes)
  rate = 3e-3 * np.sqrt(1 - 0.999**turn) / (1 - 0.9**turn)
  params = jax.tree.map(
    lambda p, m, v: np.asarray(p - rate * m / (np.sqrt(v) + 1e-8), np.float32),
    params, first, second,
  )  # fmt: skip
  return params, (first, second)


def test_training_finds_the_objects(variables, targets, step, key):
  params, x = jax.tree.map(np.asarray, variables['params']), images('mask_rcnn')
  state = (jax.tree.map(np.zeros_like, params),) * 2
  history = []
  for turn in range(1, 81):
    (_, got), slopes = step({'params': params}, x, targets, jax.random.fold_in(key, turn))
    params, state = adam(params, slopes, state, turn)
    history.append({name: float(value) for name, value in got.items()})
  for name in history[0]:
    early, late = (np.mean([h[name] for h in part]) for part in (history[:5], history[-5:]))
    assert late < 0.8 * early, name
  found = jax.jit(lambda p: MODEL.apply({'params': p}, x))(params)
  assert found.masks.shape == (2, 100, 28, 28)
  assert ((found.masks >= 0) & (found.masks <= 1)).all()
  best = np.asarray(found.boxes[0, 0])
  assert min(np.abs(best - box).max() for box in targets.boxes[0, :2]) < 12


def test_no_part_that_is_no_number_looks_like_an_empty_picture(variables):
  """Of a network that diverged nothing lies anywhere: that is no picture without objects."""
  find = jax.jit(lambda v: MODEL.apply(v, images('mask_rcnn')).scores)
  assert np.isfinite(find(variables)).all()
  names = ('rpn/logits', 'rpn/deltas', 'box_head/class_out', 'box_head/box_out', 'mask_head/out')
  for name in ('', *names):
    broken = jax.tree_util.tree_map_with_path(
      lambda path, leaf, name=name: (
        leaf * np.nan if name in jax.tree_util.keystr(path, simple=True, separator='/') else leaf
      ),
      variables,
    )
    assert np.isnan(find(broken)).all(), name


def test_without_masks(variables):
  model = MODEL.clone(masks=False)
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  tree = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)
  assert 'mask_head' not in tree['params']
  found = jax.eval_shape(lambda x: model.apply(variables, x), x)
  assert found.masks is None and found.boxes.shape == (1, 100, 4)


def test_masks_are_needed(variables, targets):
  with pytest.raises(UserError, match='learns from masks'):
    jax.eval_shape(
      lambda: MODEL.apply(
        variables,
        images('mask_rcnn'),
        targets._replace(masks=None),
        method='losses',
        rngs={'dropout': jax.random.key(0)},
      )
    )


def test_low_precision_leaves_boxes_and_losses_in_float32(targets):
  model = MODEL.clone(dtype=jnp.bfloat16)
  x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.bfloat16)

  def run(x, key):
    variables = model.init(key, x)
    losses = model.apply(variables, x, targets, method='losses', rngs={'dropout': key})
    found = model.apply(variables, x)
    return losses, found.boxes, found.masks

  shapes = jax.eval_shape(run, x, jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
