"""Why a classifier says what it says: saliency maps and their measures, for any JAX model.

Every method is `method(model, images, targets=None, *, ...) -> maps (B, H, W)` in [0, 1], images
being float32 (B, H, W, C) in [0, 1]. `explain` runs one by name.
"""

from rest_jax.explain.grad_cams import (
  eigen_cam,
  grad_cam,
  grad_cam_pp,
  hires_cam,
  layer_cam,
  smooth_grad_cam_pp,
  xgrad_cam,
)
from rest_jax.explain.gradients import gradient, guided_backprop, smooth_grad
from rest_jax.explain.group_cams import group_cam
from rest_jax.explain.maps import constant_maps, min_max, upsample
from rest_jax.explain.masking import occlusion, rise
from rest_jax.explain.methods import METHODS, Explanation, Method, explain, list_methods
from rest_jax.explain.metrics import (
  Curves,
  DropIncrease,
  Interval,
  Road,
  bootstrap,
  centre_maps,
  drop_increase,
  energy_share,
  insertion_deletion,
  pointing_game,
  rank_correlation,
  road,
  structural_similarity,
)
from rest_jax.explain.metrics.sanity import SanityCheck, SanityRow, sanity_check
from rest_jax.explain.overlays import overlay
from rest_jax.explain.path_gradients import (
  integrated_gradient_attributions,
  integrated_gradients,
  smooth_integrated_gradients,
)
from rest_jax.explain.queries import check_images, chunked, resolve_targets
from rest_jax.explain.score_cams import ablation_cam, score_cam
from rest_jax.explain.taps import Tap, list_layers, tap
from rest_jax.layers import Survey

__all__ = [
  'METHODS',
  'Curves',
  'DropIncrease',
  'Explanation',
  'Interval',
  'Method',
  'Road',
  'SanityCheck',
  'SanityRow',
  'Survey',
  'Tap',
  'ablation_cam',
  'bootstrap',
  'centre_maps',
  'check_images',
  'chunked',
  'constant_maps',
  'drop_increase',
  'eigen_cam',
  'energy_share',
  'explain',
  'grad_cam',
  'grad_cam_pp',
  'gradient',
  'group_cam',
  'guided_backprop',
  'hires_cam',
  'insertion_deletion',
  'integrated_gradient_attributions',
  'integrated_gradients',
  'layer_cam',
  'list_layers',
  'list_methods',
  'min_max',
  'occlusion',
  'overlay',
  'pointing_game',
  'rank_correlation',
  'resolve_targets',
  'rise',
  'road',
  'sanity_check',
  'score_cam',
  'smooth_grad',
  'smooth_grad_cam_pp',
  'smooth_integrated_gradients',
  'structural_similarity',
  'tap',
  'upsample',
  'xgrad_cam',
]
