"""RetinaNet beside torchvision's, and what is ours alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_toys import GOLDEN, Squares, images, state

from rest_jax.errors import UserError
from rest_jax.models.convert_dense import from_detectron2, to_detectron2
from rest_jax.models.dense import Targets
from rest_jax.models.retinanet import RetinaNet

MODEL = RetinaNet(Squares(), 3, width=8, momentum=0.0)
SIZES = np.array([[64, 96], [50, 80]])


@pytest.fixture(scope='module')
def variables():
  return from_detectron2(state('retinanet'), MODEL)


@pytest.fixture(scope='module')
def with_mean(variables):
  """With a running mean of positives at its start."""
  return {**variables, 'batch_stats': {'positives': np.float32(100)}}


@pytest.fixture(scope='module')
def levels(variables):
  return jax.jit(lambda v, x: MODEL.apply(v, x, method='levels'))(variables, images('retinanet'))


@pytest.fixture(scope='module')
def targets():
  """Ground truth of one image, padded."""
  boxes = np.zeros((1, 6, 4), np.float32)
  boxes[0, :4] = GOLDEN['retinanet/boxes']
  labels = np.full((1, 6), -1, np.int32)
  labels[0, :4] = GOLDEN['retinanet/labels']
  return Targets(boxes, labels)


@pytest.fixture(scope='module')
def loss(levels):
  """A compiled function of targets: the losses of the first image."""
  first = levels._replace(
    logits=tuple(x[:1] for x in levels.logits), deltas=tuple(x[:1] for x in levels.deltas)
  )
  return jax.jit(lambda targets: MODEL.apply({}, first, targets, False, method='losses_of'))


def test_head_and_pyramid(variables, levels):
  def pyramid(model, x):
    maps = model.backbone.features(x)[1:]
    return model.fpn(maps) + model.top(maps[-1])

  got = jax.jit(lambda v, x: MODEL.apply(v, x, method=pyramid))(variables, images('retinanet'))
  for i, level in enumerate(got):
    want = GOLDEN[f'retinanet/pyramid{i}'].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(level, want, atol=1e-4)
  for name in ('logits', 'deltas'):
    ours = np.concatenate(getattr(levels, name), axis=1)
    np.testing.assert_allclose(ours, GOLDEN[f'retinanet/{name}'], atol=1e-4)


def test_losses_as_torchvision(loss, targets):
  """torchvision divides by the positives of each image; so do we with momentum 0."""
  got = loss(targets)
  np.testing.assert_allclose(got['class'], GOLDEN['retinanet/loss_class'], rtol=1e-5)
  np.testing.assert_allclose(got['box'], GOLDEN['retinanet/loss_box'], rtol=1e-5)


def test_padding_changes_nothing_and_regions_are_left_out(loss, targets):
  moved = Targets(np.roll(targets.boxes, 2, 1), np.roll(targets.labels, 2, 1))
  np.testing.assert_allclose(loss(moved)['class'], loss(targets)['class'], rtol=1e-6)
  region = np.array(targets.labels)
  region[0, 4] = -2
  boxes = np.array(targets.boxes)
  boxes[0, 4] = [0, 0, 96, 64]
  left_out = loss(Targets(boxes, region))
  assert left_out['class'] < loss(targets)['class']
  np.testing.assert_allclose(left_out['box'], loss(targets)['box'], rtol=1e-6)


def test_results_as_torchvision(levels):
  found = jax.jit(lambda x: MODEL.apply({}, x, SIZES.astype(np.float32), method='select'))(levels)
  for i in range(2):
    want = {part: GOLDEN[f'retinanet/found{i}/{part}'] for part in ('boxes', 'scores', 'labels')}
    # There what was found in the padding stays, as boxes without area.
    area = np.prod(want['boxes'][:, 2:] - want['boxes'][:, :2], axis=1)
    want = {part: values[area > 0] for part, values in want.items()}
    count = len(want['scores'])
    assert count > 20 and int(found.valid[i].sum()) >= count
    np.testing.assert_allclose(found.scores[i][:count], want['scores'], atol=1e-4)
    np.testing.assert_array_equal(found.labels[i][:count], want['labels'])
    np.testing.assert_allclose(found.boxes[i][:count], want['boxes'], atol=1e-2)
    rest = ~np.asarray(found.valid[i])
    assert (found.labels[i][rest] == -1).all() and not found.scores[i][rest].any()


def test_the_mean_of_positives_moves(variables, with_mean, targets):
  model = MODEL.clone(momentum=0.9)
  x = images('retinanet')[:1]

  @jax.jit
  def step(variables):
    return model.apply(variables, x, targets, method='losses', mutable=['batch_stats'])

  first, new = step(with_mean)
  plain = jax.jit(lambda v: MODEL.apply(v, x, targets, False, method='losses'))(variables)
  positives = new['batch_stats']['positives']
  count = (positives - 90) / 0.1
  np.testing.assert_allclose(first['class'] * positives, plain['class'] * count, rtol=1e-4)
  second, newer = step({**with_mean, **new})
  later = newer['batch_stats']['positives']
  np.testing.assert_allclose(later, 0.9 * positives + 0.1 * count, rtol=1e-6)
  np.testing.assert_allclose(second['class'] * later, first['class'] * positives, rtol=1e-5)


def test_names_of_detectron2_go_both_ways(variables):
  back = to_detectron2(variables, MODEL)
  given = state('retinanet')
  assert set(back) == set(given)
  for name, array in given.items():
    np.testing.assert_array_equal(back[name], array)
  constants = {'pixel_mean': np.zeros(3), 'anchor_generator.cell_anchors.0': np.zeros((9, 4))}
  again = from_detectron2({**given, **constants}, MODEL.clone(momentum=0.9))
  assert again['batch_stats'] == {'positives': 100}
  wrong = {n: a for n, a in given.items() if n != 'head.cls_score.bias'} | {'x': np.zeros(1)}
  with pytest.raises(UserError, match=r'1 missing, 1 unexpected; missing: head.cls_score.bias'):
    from_detectron2(wrong, MODEL)


def test_several_devices_are_one(with_mean, targets):
  model = MODEL.clone(axis_name='batch', momentum=0.9)
  x = np.concatenate([images('retinanet')] * 2)
  labels = np.concatenate([targets.labels] * 4)
  labels[1, 1:], labels[2] = -1, -1  # uneven: four, one, none, four objects
  batch = Targets(np.concatenate([targets.boxes] * 4), labels)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ('batch',))
  spec = jax.sharding.PartitionSpec

  def losses(v, x, batch):
    got, new = model.apply(v, x, batch, method='losses', mutable=['batch_stats'])
    return jax.lax.pmean(got, 'batch'), new

  mapped = jax.shard_map(
    losses, mesh=mesh, in_specs=(spec(), spec('batch'), spec('batch')), out_specs=spec(),
    check_vma=False,
  )  # fmt: skip
  got, new = jax.jit(mapped)(with_mean, x, batch)
  alone = MODEL.clone(momentum=0.9)
  want, new_alone = jax.jit(
    lambda v: alone.apply(v, x, batch, method='losses', mutable=['batch_stats'])
  )(with_mean)
  for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-4)
  np.testing.assert_allclose(new['batch_stats']['positives'], new_alone['batch_stats']['positives'])


def test_wrong_targets_are_refused(variables):
  def run(boxes, labels):
    targets = Targets(jnp.zeros(boxes), jnp.zeros(labels, jnp.int32))
    jax.eval_shape(
      lambda: MODEL.apply(variables, images('retinanet'), targets, False, method='losses')
    )

  with pytest.raises(UserError, match=r'target boxes are \(B, G, 4\), got \(1, 3, 4\)'):
    run((1, 3, 4), (1, 3))
  with pytest.raises(UserError, match='target labels'):
    run((2, 3, 4), (2, 2))
  with pytest.raises(UserError, match=r'sizes are \(B, 2\)'):
    jax.eval_shape(lambda: MODEL.apply(variables, images('retinanet'), sizes=jnp.zeros(2)))


def test_a_larger_canvas_changes_nothing_beyond_the_receptive_field(variables, levels):
  """Six 3x3 convolutions of level 3 look six columns of 8 px far; the levels above it reach no
  further than their own cells."""
  wide = np.pad(images('retinanet'), ((0, 0), (0, 0), (0, 160), (0, 0)))
  run = jax.jit(lambda v, x: MODEL.apply(v, x, method='levels'))
  for name, outputs in (('logits', 3), ('deltas', 4)):
    want = np.asarray(getattr(levels, name)[0]).reshape(2, 8, 12, 9, outputs)
    got = np.asarray(getattr(run(variables, wide), name)[0]).reshape(2, 8, 32, 9, outputs)
    np.testing.assert_allclose(got[:, :, :6], want[:, :, :6], atol=1e-5)
    assert np.abs(got[:, :, 11] - want[:, :, 11]).max() > 1e-3


def test_low_precision_leaves_boxes_and_losses_in_float32(targets):
  model = MODEL.clone(dtype=jnp.bfloat16, momentum=0.9)
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.bfloat16)

  def run(x):
    variables = model.init(jax.random.key(0), x)
    losses = model.apply(variables, x, targets, method='losses', mutable=['batch_stats'])[0]
    return variables['params'], losses, model.apply(variables, x).boxes

  assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(run, x))} == {jnp.dtype('float32')}


def test_scores_can_be_explained_and_attacked(levels):
  """The score of what was found first rises with its logit, through top-k and suppression."""

  def best(logits):
    return MODEL.select(levels._replace(logits=logits), jnp.asarray(SIZES, jnp.float32)).scores[
      0, 0
    ]

  slopes = np.concatenate(
    [np.asarray(g[0]).ravel() for g in jax.jit(jax.grad(best))(levels.logits)]
  )
  assert (slopes > 0).sum() == 1 and (slopes < 0).sum() == 0


@pytest.mark.parametrize('part', ['logits', 'deltas'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_an_output_that_is_no_number_is_not_passed_over(levels, part, value):
  outputs = getattr(levels, part)
  broken = (outputs[0].at[0, 3, 0].set(value), *outputs[1:])
  found = MODEL.select(levels._replace(**{part: broken}), jnp.asarray(SIZES, jnp.float32))
  assert np.isnan(found.scores[0]).all()
  assert np.isfinite(found.scores[1]).all()
