"""Why a classifier says what it says: saliency maps and their measures, for any JAX model.

Every method is `method(model, images, targets=None, *, ...) -> maps (B, H, W)` in [0, 1], images
being float32 (B, H, W, C) in [0, 1]. `explain` runs one by name.
"""

from rest_jax.explain.common import (
  check_images,
  chunked,
  constant_maps,
  min_max,
  resolve_targets,
  upsample,
)
from rest_jax.explain.grad_cam import grad_cam
from rest_jax.explain.registry import METHODS, Explanation, Method, explain, list_methods
from rest_jax.explain.survey import Survey
from rest_jax.explain.taps import Tap, list_layers, tap

__all__ = [
  'METHODS',
  'Explanation',
  'Method',
  'Survey',
  'Tap',
  'check_images',
  'chunked',
  'constant_maps',
  'explain',
  'grad_cam',
  'list_layers',
  'list_methods',
  'min_max',
  'resolve_targets',
  'tap',
  'upsample',
]
