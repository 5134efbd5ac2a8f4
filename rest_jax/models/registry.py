"""Models by name."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable

from flax import linen as nn

from rest_jax.errors import UserError, did_you_mean
from rest_jax.inputs import check_count
from rest_jax.models.compression import parse_compression

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_MODULES = (
  'rest_jax.models.rest',
  'rest_jax.models.resnet',
  'rest_jax.models.resnet_cifar',
  'rest_jax.models.vgg',
  'rest_jax.models.efficientnet_lite',
  'rest_jax.models.autoencoder',
)


def register(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
  """Decorator: makes `builder(**overrides) -> module` known as `name`."""

  def add(builder):
    if name in _BUILDERS:
      raise ValueError(f'two models are called {name!r}')
    _BUILDERS[name] = builder
    return builder

  return add


def _builders() -> dict[str, Callable[..., nn.Module]]:
  for module in _MODULES:
    importlib.import_module(module)
  return _BUILDERS


def list_models(pattern: str = '*') -> list[str]:
  """Names that `create_model` takes, sorted.

  Args:
    pattern: shell pattern, such as 'restv2*'.
  """
  return sorted(fnmatch.filter(_builders(), pattern))


def create_model(name: str, num_classes: int = 1000, **overrides) -> nn.Module:
  """Builds a model without parameters; `model.init` makes those.

  Args:
    name: one of `list_models()`.
    num_classes: outputs; 0 for no head, then the model gives the pooled features (B, C).
    **overrides: attributes of the module that differ from the published model, such as
      `dtype=jnp.bfloat16`, `drop_path_rate=0.1`, `widths=(32, 64, 128, 256)`. `compression` adds
      layers that compress frequency bands of the features: a strategy such as 'learned', or a
      mapping of the options of `rest_jax.models.compression.Compression`.

  Returns:
    A Linen module: `model.apply(variables, images, train=False)` gives logits (B, K) for
    normalised float NHWC images; `method='features'` the maps of the four stages.

  Raises:
    UserError: an unknown name, override, or option of compression, or no number of classes.
  """
  builders = _builders()
  if name not in builders:
    raise UserError(f'unknown model {name!r}; {did_you_mean(name, sorted(builders))}')
  model = builders[name]()
  fields = [f for f in type(model).__dataclass_fields__ if f not in ('parent', 'name')]
  for key in overrides:
    if key not in fields:
      raise UserError(f'{name} has no option {key!r}; {did_you_mean(key, fields)}')
  check_count('num_classes', num_classes, least=0)
  frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
  if 'compression' in frozen:
    frozen['compression'] = parse_compression(frozen['compression'])
  return builders[name](num_classes=int(num_classes), **frozen)
