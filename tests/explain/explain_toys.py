"""What tests of explanations share."""

from typing import Any

# Options by method with which it asks a model little, for tests that look at no accuracy.
FEW: dict[str, dict[str, Any]] = {
  'rise': {'masks': 8},
  'smooth_grad': {'samples': 2},
  'smooth_grad_cam_pp': {'samples': 2},
  'integrated_gradients': {'steps': 8},
  'smooth_integrated_gradients': {'samples': 4},
  'group_cam': {'groups': 3},
}
