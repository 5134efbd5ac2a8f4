"""How published checkpoints were evaluated: size, crop, filter, normalisation, by family."""

from __future__ import annotations

import re
from typing import Any

_LITE = dict(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)

# Patterns over names of the registry, the first that fits; what is left out is ModelConfig's: 224
# px, shorter side to 256, central crop, bicubic, ImageNet's mean and deviation (ResT's own code).
_VIEWS: tuple[tuple[str, dict[str, Any]], ...] = (
  # ResTv2's code takes the whole shorter side.
  ('restv2', dict(crop_pct=1.0)),
  # 32 px as they are.
  ('resnet.*_cifar', dict(input_size=32, resize='squash')),
  # torchvision's reference evaluation.
  ('resnet|vgg', dict(interpolation='bilinear')),
  # EfficientNet-Lite's code: a margin of 32 px, grey levels minus 127 over 128.
  ('efficientnet_lite0', dict(crop_pct=224 / 256, **_LITE)),
  ('efficientnet_lite1', dict(input_size=240, crop_pct=240 / 272, **_LITE)),
  ('efficientnet_lite2', dict(input_size=260, crop_pct=260 / 292, **_LITE)),
)


def published_view(model: str) -> dict[str, Any]:
  """Attributes of `ModelConfig` for a published checkpoint of a model.

  Args:
    model: a name of the registry.

  Returns:
    Those that differ from the defaults.
  """
  return next((view for pattern, view in _VIEWS if re.match(pattern, model)), {})
