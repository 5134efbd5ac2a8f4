"""The papers' recipes of dense tasks: every variant is a valid config of the model it names."""

import jax
import jax.numpy as jnp
import pytest

from rest_jax.configs import detect_coco, segment_ade20k
from rest_jax.data.dense_augment import SegmentationAugment
from rest_jax.errors import UserError
from rest_jax.train import dense
from rest_jax.train.config import check_config, without_effect
from rest_jax.train.optim import make_schedule

# As the papers' sums: heads of `docs/dense.md`, backbones with their output norms.
PARAMETERS = {
  'retinanet_small': 23_401_064,
  'retinanet_base': 40_497_304,
  'mask_rcnn_small': 33_318_628,
  'mask_rcnn_base': 49_833_300,
  'mask_rcnn_v2_tiny': 49_941_024,
  'mask_rcnn_v2_small': 60_712_224,
  'mask_rcnn_v2_base': 75_471_456,
  'upernet_v2_tiny': 62_088_284,
  'upernet_v2_small': 72_859_484,
  'upernet_v2_base': 87_618_716,
  'semantic_fpn_small': 17_417_866,
}
MODULES = (detect_coco, segment_ade20k)
CASES = [(module, variant) for module in MODULES for variant in module.VARIANTS]
IDS = [variant for _, variant in CASES]


@pytest.mark.parametrize(('module', 'variant'), CASES, ids=IDS)
def test_a_variant_is_a_valid_config_of_its_model(module, variant, monkeypatch):
  config = module.get_config(variant)
  check_config(config)
  assert without_effect(config) == {}
  made, real = [], jax.eval_shape
  monkeypatch.setattr(jax, 'eval_shape', lambda *a: made.append(real(*a)) or made[-1])
  classes = 80 if module is detect_coco else 150
  create = dense.create
  monkeypatch.setattr(dense, 'create', lambda c, num_classes: create(c, classes))
  dense.check(config)
  count = sum(leaf.size for leaf in jax.tree.leaves(made[-1]['params']))
  assert count == PARAMETERS[variant]
  augmented = dense.augmentation(config)
  assert augmented.flip == 0.5 and (config.train.sync_bn or config.model.backbone.bn_frozen)


def rates(module, variant, steps):
  """(total number of steps, learning rates at some of them)."""
  config = module.get_config(variant)
  epoch = module.PICTURES / config.train.batch_size
  total = round(config.train.epochs * epoch)
  schedule = make_schedule(config.optim, batch_size=16, steps_per_epoch=epoch, total=total)
  return total, [float(jnp.asarray(schedule(jnp.int32(step)))) for step in steps]


@pytest.mark.parametrize(
  ('variant', 'total', 'marks'),
  [
    ('retinanet_small', 90_000, (60_000, 80_000)),
    ('mask_rcnn_v2_base', 270_000, (210_000, 250_000)),
  ],
)
def test_detectors_learn_in_detectron2s_steps(variant, total, marks):
  steps = (0, 500, 1000, marks[0] - 1, marks[0], marks[1] - 1, marks[1])
  found = rates(detect_coco, variant, steps)
  assert found[0] == total
  expected = (1e-7, 5.005e-5, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6)
  assert found[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  ('variant', 'total', 'lr', 'power'),
  [
    ('upernet_v2_tiny', 160_000, 6e-5, 1.0),
    ('upernet_v2_base', 160_000, 1.5e-4, 1.0),
    ('semantic_fpn_small', 80_000, 1e-4, 0.9),
  ],
)
def test_segmenters_learn_by_mmsegmentations_poly(variant, total, lr, power):
  steps = (1500, total // 2, total - 10)
  found = rates(segment_ade20k, variant, steps)
  assert found[0] == total
  assert found[1] == pytest.approx([lr * (1 - s / total) ** power for s in steps], rel=1e-4)


def test_what_the_recipes_say():
  one, three = (detect_coco.get_config(v) for v in ('retinanet_small', 'mask_rcnn_v2_small'))
  assert tuple(one.dense.short) == (640, 672, 704, 736, 768, 800)
  assert min(three.dense.short) == 480 and len(three.dense.short) == 11
  assert (one.optim.clip_norm, three.optim.clip_norm) == (0.0, 0.01)
  small = segment_ade20k.get_config('upernet_v2_small')
  assert small.optim.stage_decay == 0.9 and small.dense.test_flip
  augmented = dense.augmentation(small)
  assert isinstance(augmented, SegmentationAugment) and augmented.square == 512
  for module in MODULES:
    with pytest.raises(UserError, match=r'no variant .huge.; there are'):
      module.get_config('huge')
