"""Methods by name, and one call that runs any of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rest_jax.errors import UserError, did_you_mean
from rest_jax.explain.common import constant_maps, prepare, resolve_targets
from rest_jax.explain.taps import Tap

Queries = Callable[[tuple[int, ...], dict[str, Any]], int]


@dataclasses.dataclass(frozen=True)
class Method:
  """A saliency method.

  Attributes:
    name: as users say it.
    fn: `fn(model, images, targets=None, *, ...) -> maps (B, H, W)` in [0, 1].
    needs_layer: it looks at a layer's map, and takes `layer` and `grid`.
    needs_key: it is random, and takes `key`.
    queries: forward passes an image that it costs, a backward pass counting as one, from the
      image's shape (H, W, C) and the options. Methods that go channel by channel read the
      number of channels from the option 'channels'.
    source: the paper.
  """

  name: str
  fn: Callable[..., jax.Array]
  needs_layer: bool
  needs_key: bool
  queries: Queries
  source: str

  def options(self) -> dict[str, Any]:
    """Keyword arguments of its own with their defaults, without layer, grid and key."""
    parameters = inspect.signature(self.fn).parameters.values()
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return {p.name: p.default for p in own if p.name not in ('layer', 'grid', 'key')}


METHODS: dict[str, Method] = {}

# As tables list them; methods registered elsewhere follow.
_ORDER = (
  'group_cam',
  'grad_cam',
  'grad_cam_pp',
  'smooth_grad_cam_pp',
  'xgrad_cam',
  'hires_cam',
  'layer_cam',
  'eigen_cam',
  'score_cam',
  'ablation_cam',
  'rise',
  'occlusion',
  'gradient',
  'guided_backprop',
  'smooth_grad',
  'integrated_gradients',
  'smooth_integrated_gradients',
)


def register(
  name: str,
  *,
  source: str,
  queries: Queries | int,
  needs_layer: bool = False,
  needs_key: bool = False,
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
  """Decorator: makes a method known; arguments as `Method`'s, `queries` may be a number."""
  count = queries if callable(queries) else lambda shape, options: queries

  def add(fn):
    if name in METHODS:
      raise ValueError(f'two methods are called {name!r}')
    METHODS[name] = Method(name, fn, needs_layer, needs_key, count, source)
    return fn

  return add


def list_methods() -> list[str]:
  """Names that `explain` takes: class activation maps, then perturbation, then gradients."""
  return sorted(METHODS, key=lambda name: (_ORDER.index(name) if name in _ORDER else 99, name))


def get_method(name: str) -> Method:
  """The method of that name; `UserError` with the near names where there is none."""
  if name not in METHODS:
    raise UserError(f'there is no method {name!r}; {did_you_mean(name, list_methods())}')
  return METHODS[name]


class Explanation(NamedTuple):
  """What `explain` gives.

  Attributes:
    maps: (B, H, W) in [0, 1].
    constant: (B,) bool, the maps that are constant, and therefore all zero.
    targets: int32 (B,), the class that each map explains.
    logits: (B, K).
    queries: forward passes that one image cost.
  """

  maps: jax.Array
  constant: jax.Array
  targets: jax.Array
  logits: jax.Array
  queries: int


def explain(
  model: Any,
  images: Any,
  method: str = 'group_cam',
  targets: Any = None,
  *,
  layer: str | None = None,
  grid: tuple[int, int] | None = None,
  key: jax.Array | None = None,
  **options: Any,
) -> Explanation:
  """Runs a method by name.

  Args:
    model: as `tap` takes it.
    images: floats (B, H, W, C) in [0, 1].
    method: one of `list_methods()`.
    targets: class indices, (B,) or one for all; by default the predicted classes.
    layer: path of a module, for methods that look at one; others ignore it.
    grid: (rows, columns) of a layer that gives tokens.
    key: `jax.random.key`, for random methods; `jax.random.key(0)` by default.
    **options: the method's own.

  Returns:
    Maps and what belongs to them.

  Raises:
    UserError: an unknown method or option, or what the method cannot explain.
  """
  chosen = get_method(method)
  unknown = [name for name in options if name not in chosen.options()]
  if unknown:
    known = ', '.join(chosen.options())
    raise UserError(f'{method} has no option {unknown[0]!r}; it has {known}')
  point, images, targets = prepare(model, images, targets, layer, grid)
  logits = _logits(point, images)
  classes = resolve_targets(logits, targets)
  arguments = dict(options)
  if chosen.needs_layer:
    arguments |= {'layer': layer, 'grid': grid}
  if chosen.needs_key:
    arguments['key'] = jax.random.key(0) if key is None else key
  maps = chosen.fn(point, images, classes, **arguments)
  return Explanation(
    maps, constant_maps(maps), classes, logits, _queries(chosen, point, images, options)
  )


def _queries(method: Method, point: Tap, images: jax.Array, options: dict[str, Any]) -> int:
  filled = method.options() | options
  if method.needs_layer:
    filled['channels'] = point.feature_shape(images)[-1]
  return method.queries(tuple(images.shape[1:]), filled)


_logits = jax.jit(lambda point, images: point(images))
