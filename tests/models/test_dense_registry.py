"""Names, parameter counts and backbones of detectors and segmenters."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_toys import Squares

from rest_jax import UserError, create_model
from rest_jax.models import (
  create_detector,
  create_segmenter,
  list_detectors,
  list_segmenters,
  model_dir,
)
from rest_jax.models.convert_dense import from_detectron2, from_mmseg, to_detectron2, to_mmseg
from rest_jax.models.dense import normalise
from rest_jax.models.mask_rcnn import MaskRCNN
from rest_jax.models.pytorch import from_pytorch
from rest_jax.models.retinanet import RetinaNet
from rest_jax.models.semantic_fpn import SemanticFPN
from rest_jax.models.upernet import UPerNet

FOLDER = Path(__file__).parents[1] / 'golden'
OFFICIAL = json.loads((FOLDER / 'official_state_dicts.json').read_text())
WIDTHS = {'small': (64, 128, 256, 512), 'base': (96, 192, 384, 768), 'large': (128, 256, 512, 1024)}
TINY = dict(widths=(8, 16, 32, 64), depths=(1, 1, 2, 1))


def parameters(module, part=''):
  specs = model_dir.abstract_tensors(module)
  return sum(s.size for n, s in specs.items() if n.startswith(f'params/{part}'))


@functools.cache
def heads(build, size, num_classes, **options):
  """Parameters of all but the backbone."""
  widths = WIDTHS[size]

  class Maps(Squares):
    in_channels = 1  # so that every width is a multiple of it

  return parameters(build(Maps(widths), num_classes, **options))


@pytest.mark.parametrize(
  ('build', 'num_classes', 'size', 'count'),
  [
    (RetinaNet, 80, 'small', 10_233_588),
    (RetinaNet, 80, 'base', 10_938_100),
    (RetinaNet, 80, 'large', 11_642_612),
    (MaskRCNN, 80, 'small', 20_151_024),
    (MaskRCNN, 80, 'base', 20_273_904),
    (MaskRCNN, 80, 'large', 20_396_784),
    (UPerNet, 150, 'base', 31_497_366 + 923_798),
    (UPerNet, 150, 'small', 29_678_742 + 628_886),
    (SemanticFPN, 150, 'small', 4_250_262),
    (SemanticFPN, 150, 'base', 4_373_142),
    (SemanticFPN, 150, 'large', 4_496_022),
  ],
)
def test_parameters_of_heads(build, num_classes, size, count):
  assert heads(build, size, num_classes) == count


@pytest.mark.parametrize(
  ('name', 'backbone', 'whole'),
  [
    ('retinanet_rest_small', 13_166_708 + 2 * (128 + 256), 23_401_064),
    ('mask_rcnn_restv2_tiny', 29_667_120, 49_941_024),
  ],
)
def test_parameters_of_whole_models(name, backbone, whole):
  detector = create_detector(name)
  specs = model_dir.abstract_tensors(detector)
  counts = {n: s.size for n, s in specs.items() if n.startswith('params/')}
  assert sum(counts.values()) == whole
  assert sum(c for n, c in counts.items() if n.startswith('params/backbone/')) == backbone


def test_parameters_on_resnet_against_torchvision():
  """retinanet_resnet50_fpn_v2: group norms (2 a channel) in place of the towers' biases (1)."""
  assert parameters(create_detector('retinanet_resnet50', 91)) == 38_198_935 - 2 * 4 * 256


@pytest.mark.parametrize(
  ('version', 'stages'), [(1, (1, 2, 3, 4)), (1, (2, 3, 4)), (2, (1, 2, 3, 4))]
)
def test_output_norms_as_the_authors_detection_code(version, stages):
  """`golden/rest_out_norms.npz`: maps of the authors' detection backbones with the weights of
  rest_v*_tiny.npz and random norms, in float64."""
  golden = np.load(FOLDER / f'rest_v{version}_tiny.npz')
  norms = np.load(FOLDER / 'rest_out_norms.npz')
  plain = create_model(('rest_lite', 'restv2_tiny')[version - 1], 10, **TINY)
  state_dict = {n[6:]: golden[n] for n in golden.files if n.startswith('param/')}
  variables = from_pytorch(state_dict, plain)
  model = plain.clone(out_norm=('trunk', 'branch')[version - 1], out_stages=stages)
  params = dict(variables['params'])
  for stage in stages:
    name = f'norm{stage}' if version == 1 else f'norm_{stage}.0'
    if f'v{version}/norm/{name}.weight' in norms:
      scale, bias = (norms[f'v{version}/norm/{name}.{part}'] for part in ('weight', 'bias'))
      params['norm' if stage == 4 else f'norm{stage}'] = {'scale': scale, 'bias': bias}
  x = golden['input/wide'].transpose(0, 2, 3, 1).astype(np.float32)
  own = {**variables, 'params': params}
  maps = jax.jit(lambda v: model.apply(v, x, method='features'))(own)
  assert len(maps) == 4
  for stage in stages:
    want = norms[f'v{version}/{"".join(map(str, stages))}/stage{stage}'].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(maps[stage - 1], want, atol=2e-4 * np.abs(want).max())
  if version == 2:  # the last map has its norm: logits do not take it a second time
    head = jax.tree.map(np.asarray, params['head'])
    want = np.asarray(maps[3]).mean((1, 2)) @ head['kernel'] + head['bias']
    np.testing.assert_allclose(jax.jit(model.apply)(own, x), want, atol=1e-4)


SMALL = {**TINY, 'depths': (1, 1, 1, 1)}
PARTS = ('stage', 'patch_embed')


def random_variables(module):
  """Variables without a compilation: small random weights, counts of 0, variances above 0."""
  rng = np.random.default_rng(0)
  return model_dir.unflatten(
    {
      n: np.asarray(np.abs(rng.normal(size=s.shape) * 0.1) + n.endswith('/var'), s.dtype)
      for n, s in model_dir.abstract_tensors(module).items()
    }
  )


@pytest.mark.parametrize(
  ('name', 'frozen', 'bn_frozen'),
  [
    ('rest_lite', 3, True),
    ('resnet18', 2, False),
    ('resnet18', 0, True),
    ('efficientnet_lite0', 2, False),
    ('efficientnet_lite0', 0, True),
    ('vgg16_bn', 1, True),
  ],
)
def test_what_is_frozen_gets_no_gradient_and_keeps_its_statistics(name, frozen, bn_frozen):
  small = {
    'rest_lite': SMALL,
    'resnet18': dict(width=4, depths=(1, 1, 1, 1)),
    'efficientnet_lite0': dict(widths=(4,) * 7, depths=(1,) * 7, neck_width=8),
    'vgg16_bn': dict(widths=(4,) * 5, depths=(1,) * 5, hidden=4, drop_rate=0.0),
  }[name]
  model = create_model(name, 0, frozen_stages=frozen, bn_frozen=bn_frozen, **small)
  x = np.random.default_rng(1).normal(size=(3, 64, 64, 3)).astype(np.float32)
  variables = random_variables(model)

  @jax.jit
  def slopes(params):
    def loss(params):
      out, new = model.apply({**variables, 'params': params}, x, True, mutable=['batch_stats'])
      return jnp.sum(out**2), new

    return jax.grad(loss, has_aux=True)(params)

  gradient, new = slopes(variables['params'])
  moved = {n for n, a in model_dir.flatten(gradient).items() if np.abs(a).max() > 0}
  stats = model_dir.flatten(new['batch_stats'])
  learnt = {n for n, a in stats.items() if n.endswith('/count') and a > 0}
  early = ('stem/', *(f'{part}{i}/' for i in (1, 2, 3, 4)[:frozen] for part in PARTS))
  assert not frozen or not any(n.startswith(early) for n in moved | learnt)
  assert any(n.startswith(f'stage{frozen + 1}/') for n in moved)
  norms = tuple(n.removesuffix('count') for n in stats if n.endswith('/count'))
  free = bool(norms) and name != 'rest_lite' and not bn_frozen
  assert bool(learnt) == free == any(n.startswith(norms) for n in moved)


def test_names():
  assert 'retinanet_rest_small' in list_detectors()
  assert list_detectors('mask_rcnn_restv2_t*') == ['mask_rcnn_restv2_tiny']
  assert list_segmenters('upernet_resnet50') == ['upernet_resnet50']
  assert not any('autoencoder' in name for name in list_detectors() + list_segmenters())
  assert not list_detectors('*_resnet20')  # three maps


@pytest.mark.parametrize('backbone', ['vgg16_bn', 'efficientnet_lite0', 'resnet18_cifar'])
def test_other_backbones_serve_as_well(backbone):
  def run(x):
    detector = create_detector(f'retinanet_{backbone}', 3, width=8, convs=1)
    variables = detector.init(jax.random.key(0), x)
    return detector.apply(variables, x, method='levels').logits, detector.apply(variables, x)

  logits, found = jax.eval_shape(run, jax.ShapeDtypeStruct((1, 70, 90, 3), jnp.float32))
  assert found.boxes.shape == (1, 100, 4)
  first = dict(vgg16_bn=4, efficientnet_lite0=8, resnet18_cifar=2)[backbone]
  assert logits[0].shape == (1, 96 // first * (96 // first) * 9, 3)


@pytest.mark.parametrize(
  ('call', 'match'),
  [
    (lambda: create_detector('retinanet_rest_smal'), 'did you mean retinanet_rest_small'),
    (lambda: create_segmenter('retinanet_rest_small'), 'unknown segmenter'),
    (lambda: create_detector('retinanet_rest_lite', widht=3), 'no option .widht.; .* width'),
    (lambda: create_detector('retinanet_rest_lite', backbone=dict(depht=3)), 'no option .depht.'),
    (lambda: create_detector('retinanet_rest_lite', 0), 'num_classes of a detector is 1 or more'),
    (lambda: create_detector('retinanet_rest_lite', backbone=dict(num_classes=3)), 'leave num_cl'),
  ],
)  # fmt: skip
def test_refuses(call, match):
  with pytest.raises(UserError, match=match):
    call()


def test_refuses_stages():
  for options in (dict(out_stages=(2, 1)), dict(frozen_stages=5), dict(out_norm='x')):
    with pytest.raises(UserError, match=r'out_stages|frozen_stages|out_norm'):
      model_dir.abstract_tensors(create_model('rest_lite', **options))


def test_runtime_options_reach_the_backbone():
  model = create_detector(
    'retinanet_rest_lite', 3, backbone=dict(drop_path_rate=0.2, bn_frozen=True), stages=[1, 2, 3]
  )
  assert model.backbone.out_norm == 'trunk' and model.backbone.out_stages == (1, 2, 3)
  assert model.backbone.drop_path_rate == 0.2 and model.backbone.bn_frozen
  assert create_detector('mask_rcnn_restv2_tiny').backbone.out_norm == 'branch'
  assert create_segmenter('upernet_restv2_tiny').backbone.out_stages == (1, 2, 3, 4)


def random_state(module, back):
  """Random variables, and their state dict."""
  rng = np.random.default_rng(0)
  flat = {
    n: rng.integers(0, 9, s.shape) if s.dtype == jnp.int32 else rng.normal(size=s.shape)
    for n, s in model_dir.abstract_tensors(module).items()
  }
  flat = {n: a.astype(np.int32 if a.dtype == int else np.float32) for n, a in flat.items()}
  variables = model_dir.unflatten(flat)
  return flat, back(variables, module)


NARROW = dict(widths=(8, 16, 32, 64))
TWO = dict(width=8, depths=(1, 1, 1, 1))


@pytest.mark.parametrize(
  ('name', 'backbone', 'options', 'expected'),
  [
    ('retinanet_rest_lite', NARROW, dict(width=8), 'backbone.bottom_up.norm2.weight'),
    ('mask_rcnn_restv2_tiny', TINY, dict(width=8), 'backbone.bottom_up.norm_4.0.weight'),
    ('mask_rcnn_resnet18', TWO, dict(width=8), 'backbone.bottom_up.res3.0.shortcut.norm.bias'),
    ('upernet_restv2_tiny', NARROW, dict(width=8), 'backbone.norm_1.weight'),
    ('semantic_fpn_rest_lite', TINY, dict(fpn_width=8, width=8), 'neck.fpn_convs.3.conv.bias'),
    ('upernet_resnet18', TWO, dict(width=8), 'backbone.layer2.0.downsample.1.weight'),
  ],
)  # fmt: skip
def test_every_name_goes_both_ways(name, backbone, options, expected):
  detector = name in list_detectors()
  create = create_detector if detector else create_segmenter
  there, back = (from_detectron2, to_detectron2) if detector else (from_mmseg, to_mmseg)
  module = create(name, 3, backbone=backbone, **options)
  flat, state_dict = random_state(module, back)
  assert expected in state_dict
  if backbone is NARROW:  # as deep as the published model: its names, but for the head's and norms
    start = 'backbone.bottom_up.' if detector else 'backbone.'
    found = {n.removeprefix(start) for n in state_dict if n.startswith(start)}
    found -= {n.removeprefix(start) for n in state_dict if '.fpn_' in n or '.top_block.' in n}
    below = name.split('_', 1)[1]
    published = {n for n in OFFICIAL[below]['state_dict'] if not n.startswith(('head.', 'norm.'))}
    assert {n for n in found if not n.startswith('norm')} == published
  again = model_dir.flatten(there(state_dict, module))
  lost = {'batch_stats/positives'}
  if detector and 'resnet' in name:
    lost |= {n for n in flat if n.endswith('/count')}  # FrozenBatchNorm2d has none
  for path, array in flat.items():
    if path not in lost:
      np.testing.assert_array_equal(again[path], array)


@pytest.mark.parametrize(
  ('value', 'message'),
  [(np.int8(3), r'weights are floats, unlike \S+ \(int8\)'), (np.float32(np.nan), 'hold NaN')],
)
def test_weights_that_are_no_numbers_are_refused(value, message):
  module = create_segmenter('semantic_fpn_resnet18', 3, backbone=TWO, fpn_width=8, width=8)
  _, state_dict = random_state(module, to_mmseg)
  name = 'decode_head.conv_seg.weight'
  with pytest.raises(UserError, match=message):
    from_mmseg(state_dict | {name: np.full(state_dict[name].shape, value)}, module)


def test_normalising_leaves_padding_at_zero():
  images = np.full((2, 4, 6, 3), 51, np.uint8)
  sizes = np.array([[4, 6], [2, 3]])
  got = jax.jit(lambda x, s: normalise(x, s, (0.1, 0.2, 0.3), (0.5, 1, 2)))(images, sizes)
  np.testing.assert_allclose(got[0, 3, 5], [0.2, 0, -0.05], atol=1e-6)
  np.testing.assert_allclose(got[1, 1, 2], [0.2, 0, -0.05], atol=1e-6)
  assert not got[1, 2:].any() and not got[1, :, 3:].any()
  half = normalise(jnp.full((1, 2, 2, 3), 0.2), None, (0.1, 0.2, 0.3), (0.5, 1, 2))
  np.testing.assert_allclose(half[0, 0, 0], [0.2, 0, -0.05], atol=1e-6)
  with pytest.raises(UserError, match=r'canvases are \(B, H, W, 3\)'):
    normalise(jnp.zeros((4, 6, 3)), None, (0, 0, 0), (1, 1, 1))
