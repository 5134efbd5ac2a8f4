"""UPerNet beside transformers', Semantic FPN beside mmsegmentation's written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_toys import GOLDEN, Squares, images, state

from rest_jax.errors import UserError
from rest_jax.models.convert_dense import from_mmseg, to_mmseg
from rest_jax.models.semantic import segmentation_loss
from rest_jax.models.semantic_fpn import SemanticFPN
from rest_jax.models.upernet import UPerNet

UPER = UPerNet(Squares(), 5, width=8, aux_width=8, drop_rate=0.0)
FPN = SemanticFPN(Squares(), 5, fpn_width=8, width=6)


@pytest.fixture(scope='module')
def uper():
  return from_mmseg(state('upernet'), UPER)


@pytest.fixture(scope='module')
def outputs(uper):
  def run(model, x):
    maps = model.backbone.features(x)
    return model.head(maps, False), model.aux_head(maps[2], False)

  return jax.jit(lambda v, x: UPER.apply(v, x, method=run))(uper, images('upernet'))


def test_upernet_as_transformers(outputs):
  for got, name in zip(outputs, ('logits', 'auxiliary'), strict=True):
    want = GOLDEN[f'upernet/{name}'].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize('every_pixel', [False, True])
def test_loss_as_pytorch(outputs, every_pixel):
  """Of all pixels as mmsegmentation, or of the judged ones as transformers."""
  loss = jax.jit(lambda x, y: segmentation_loss(x, y, every_pixel=every_pixel))
  for got, name in zip(outputs, ('main', 'aux'), strict=True):
    want = GOLDEN[f'upernet/loss_{name}_{"none" if every_pixel else "mean"}']
    np.testing.assert_allclose(loss(got, GOLDEN['upernet/labels']), want, rtol=1e-5)


def test_training_weighs_the_auxiliary_head(uper):
  x, labels = images('upernet'), GOLDEN['upernet/labels']

  @jax.jit
  def run(variables):
    return UPER.apply(variables, x, labels, method='losses', mutable=['batch_stats'])

  def parts(model, x):
    return model.logits(x, True)

  @jax.jit
  def expected(variables):
    logits, _ = UPER.apply(variables, x, method=parts, mutable=['batch_stats'])
    return [segmentation_loss(one, labels, every_pixel=True) for one in logits]

  got, new = run(uper)
  main, auxiliary = expected(uper)
  np.testing.assert_allclose(got['segment'], main, rtol=1e-5)
  np.testing.assert_allclose(got['auxiliary'], 0.4 * auxiliary, rtol=1e-5)
  counts = [v for k, v in jax.tree.leaves_with_path(new) if 'count' in str(k)]
  assert len(counts) == 13 and all(count == 1 for count in counts)


def test_names_of_mmsegmentation_go_both_ways(uper):
  given, back = state('upernet'), to_mmseg(uper, UPER)
  assert set(back) == set(given)
  for name, array in given.items():
    np.testing.assert_array_equal(back[name], array)
  with pytest.raises(UserError, match=r'1 misshapen.*decode_head.conv_seg.bias is \(7,\), not \(5'):
    from_mmseg({**given, 'decode_head.conv_seg.bias': np.zeros(7)}, UPER)


def test_semantic_fpn_as_mmsegmentation():
  variables = from_mmseg(state('semantic_fpn'), FPN)
  run = jax.jit(lambda v, x: FPN.apply(v, x, method='logits'))
  got = run(variables, images('semantic_fpn'))
  want = GOLDEN['semantic_fpn/logits'].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(got, want, atol=1e-4)
  assert set(to_mmseg(variables, FPN)) == set(state('semantic_fpn'))
  with pytest.raises(UserError, match='no names for this SemanticFPN'):
    to_mmseg(variables, FPN.clone(norm='gn'))
  with pytest.raises(UserError, match="norm is bn or gn, got 'ln'"):
    jax.eval_shape(lambda v, x: FPN.clone(norm='ln').apply(v, x), variables, images('upernet'))


def test_any_size_gives_a_class_for_every_pixel(uper):
  """Padding on the way to multiples of 32 is cut off again."""
  x = images('upernet')[:1]
  run = jax.jit(lambda v, x: UPER.apply(v, x))
  whole = run(uper, x)
  assert whole.shape == (1, 64, 96, 5) and whole.dtype == jnp.float32
  odd = x.copy()
  odd[:, 60:], odd[:, :, 90:] = 0, 0
  part = run(uper, odd[:, :60, :90])
  assert part.shape == (1, 60, 90, 5)
  np.testing.assert_allclose(part, run(uper, odd)[:, :60, :90], atol=1e-4)


def test_wrong_labels_are_refused(uper):
  for labels in (jnp.zeros((2, 64, 64), jnp.int32), jnp.zeros((2, 64, 96))):
    with pytest.raises(UserError, match=r'whole numbers \(B, H, W\)'):
      jax.eval_shape(
        lambda y: UPER.apply(uper, images('upernet'), y, False, method='losses'), labels
      )
