"""Taps: the map that a layer gives, and the gradient there, with no change to the model.

`flax.linen.intercept_methods` records the output of the module at a path ('stage4/block1') and
adds a perturbation there; the derivative with respect to that perturbation, at zero, is the
gradient at the layer. For whatever has no Linen module at the place, a pair
`(features_fn, head_fn)` does the same.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial

from rest_jax.callables import as_function
from rest_jax.errors import UserError
from rest_jax.explain import survey as surveys


@dataclasses.dataclass(frozen=True)
class Tap:
  """A model and the layer whose map is looked at; made by `tap`, an argument of jitted functions.

  Maps are float32 (B, h, w, K) whatever the model computes in. Tokens (B, N, K) are laid out as
  the rows of `grid`; where N is larger than it holds, the first ones (class and register tokens)
  are no part of the map and flow on as they are.

  A module that is called several times is tapped at its last call, as a PyTorch hook leaves it.

  Attributes:
    function: images -> logits, or images -> features of a pair; its weights are data.
    head: features -> logits of a pair.
    layer: path of the module; None for the default (`resolve` tells which).
    grid: (rows, columns) of a layer that gives tokens.
    mean: mean colour of the classifier's normalisation, the value that it sees as 0; None where
      the model does not tell.
  """

  function: Partial
  head: Partial | None = None
  layer: str | None = None
  grid: tuple[int, int] | None = None
  mean: tuple[float, ...] | None = None

  def __call__(self, images: jax.Array) -> jax.Array:
    """Logits, float32 (B, K)."""
    out = self.function(images)
    return _as_logits(out if self.head is None else self.head(out), images.shape[0])

  def features(self, images: jax.Array) -> jax.Array:
    """The layer's map, float32 (B, h, w, K); arguments and errors as `perturbed`."""
    return self.perturbed(images)[1]

  def perturbed(
    self, images: jax.Array, delta: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Runs the model with something added at the layer.

    Args:
      images: floats (B, H, W, C).
      delta: (B, h, w, K), shape `feature_shape(images)`; None adds nothing.

    Returns:
      Logits (B, K) with the layer's output plus `delta` flowing on, and that output without
      `delta`, (B, h, w, K); both float32.

    Raises:
      UserError: the layer is not there, gives no map, or runs where it cannot be tapped.
    """
    if self.head is not None:
      features = self.function(images)
      plane = self._plane(features)
      return _as_logits(self.head(self._add(features, delta)), images.shape[0]), plane
    path = self.resolve(images.shape)
    last = surveys.survey(self.function, images.shape).calls[path]
    seen = []

    def watch(next_fun, args, kwargs, context):
      out = next_fun(*args, **kwargs)
      if surveys.path_of(context) != path:
        return out
      seen.append(out)
      return self._add(out, delta) if len(seen) == last else out

    with nn.intercept_methods(watch):
      logits = self.function(images)
    return _as_logits(logits, images.shape[0]), self._plane(seen[-1])

  def resolve(self, image_shape: tuple[int, ...]) -> str:
    """Name of the layer for images (B, H, W, C): the one asked for, or the default.

    Raises:
      UserError: there is no such layer, or no default.
    """
    if self.head is not None:
      return 'features'
    seen = surveys.survey(self.function, image_shape)
    if self.layer is None:
      return surveys.default_layer(seen, image_shape, self.grid and self._holds)
    surveys.check_layer(self.layer, seen)
    return self.layer

  def feature_shape(self, images: Any) -> tuple[int, int, int, int]:
    """(B, h, w, K) of the map, without running the model; errors as `perturbed`."""
    shape = tuple(images.shape)
    if self.head is None:
      native = surveys.survey(self.function, shape).layers[self.resolve(shape)]
    else:
      native = jax.eval_shape(self.function, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
    return self._plane_shape(tuple(native))

  def num_classes(self, image_shape: tuple[int, ...]) -> int:
    """Number of logits for images (B, H, W, C)."""
    images = jax.ShapeDtypeStruct(tuple(image_shape), jnp.float32)
    if self.head is None:
      return surveys.survey(self.function, images.shape).logits[1]
    return jax.eval_shape(self, images).shape[1]

  def _holds(self, shape: tuple[int, ...]) -> bool:
    return self.grid is not None and shape[1] >= math.prod(self.grid)

  def _plane_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(shape) == 4:
      return shape  # pyright: ignore[reportReturnType]
    what = f'{self.layer or "the layer"} gives {shape}'
    if len(shape) != 3:
      raise UserError(f'{what}, which is no map (B, h, w, C); explain.list_layers names those')
    if self.grid is None:
      raise UserError(f'{what}, tokens without a plane; say grid=(rows, columns)')
    if not self._holds(shape):
      raise UserError(f'{what}: a grid of {self.grid} holds more than its {shape[1]} tokens')
    return shape[0], *self.grid, shape[2]

  def _plane(self, out: jax.Array) -> jax.Array:
    shape = self._plane_shape(out.shape)
    if out.ndim == 3:
      out = out[:, out.shape[1] - shape[1] * shape[2] :].reshape(shape)
    return out.astype(jnp.float32)

  def _add(self, out: jax.Array, delta: jax.Array | None) -> jax.Array:
    if delta is None:
      return out
    delta = delta.astype(out.dtype)
    if out.ndim == 3:
      delta = delta.reshape(delta.shape[0], -1, delta.shape[-1])
      delta = jnp.pad(delta, ((0, 0), (out.shape[1] - delta.shape[1], 0), (0, 0)))
    return out + delta


jax.tree_util.register_dataclass(
  Tap, data_fields=['function', 'head'], meta_fields=['layer', 'grid', 'mean']
)


def tap(model: Any, layer: str | None = None, grid: tuple[int, int] | None = None) -> Tap:
  """Looks into a model at a layer.

  Args:
    model: a `Classifier`; any function of images that runs a Linen module inside; a pair
      `(features_fn, head_fn)`, `head_fn(features_fn(images))` being the logits; or a tap.
    layer: path of a Linen module, such as 'stage4/block1'; `list_layers` names them. By default
      the smallest map of 7 x 7 or more among the model's stages (`survey.default_layer`).
    grid: (rows, columns) of a layer that gives tokens (B, N, C) instead of a map.

  Returns:
    The tap; a tap that is given and not changed comes back as it is.

  Raises:
    UserError: no model, or a layer's name together with a pair. What the model runs is looked at
      later, when the images' shape is known.
  """
  grid = _checked_grid(grid)
  if isinstance(model, Tap):
    changes: dict[str, Any] = {'layer': layer, 'grid': grid}
    changes = {name: value for name, value in changes.items() if value is not None}
    made = dataclasses.replace(model, **changes) if changes else model
  elif isinstance(model, tuple) and len(model) == 2:
    functions = (_outside_jit(as_function(function)) for function in model)
    made = Tap(*functions, layer=layer, grid=grid)
  else:
    function = _outside_jit(as_function(model))
    made = Tap(function, None, layer, grid, mean_of(model))
  if made.head is not None and made.layer is not None:
    raise UserError(f'a pair (features_fn, head_fn) has one layer only, so no {made.layer!r}')
  return made


def list_layers(model: Any, image_shape: tuple[int, ...] | None = None) -> dict[str, Any]:
  """Names what can be tapped.

  Args:
    model: as `tap` takes it.
    image_shape: (H, W, C) or (B, H, W, C); by default the classifier's input size.

  Returns:
    {path: shape of the output} of the modules that give maps (B, h, w, C) or tokens (B, N, C), in
    the order in which the model runs them.

  Raises:
    UserError: no image shape, or no Linen module in the model.
  """
  size = getattr(model, 'input_size', None)
  if image_shape is None:
    if size is None:
      raise UserError('list_layers needs image_shape=(H, W, C) for a model that is no Classifier')
    image_shape = (size, size, len(model.mean))
  shape = (1,) * (4 - len(image_shape)) + tuple(image_shape)
  point = tap(model)
  if point.head is not None:
    raise UserError('a pair (features_fn, head_fn) has one layer only; there is nothing to list')
  seen = surveys.survey(point.function, shape)
  if not seen.layers:
    surveys.check_layer('', seen)
  return {name: shape for name, shape in seen.layers.items() if len(shape) in (3, 4)}


def _checked_grid(grid: Any) -> tuple[int, int] | None:
  if grid is None:
    return None
  try:
    rows, columns = (operator.index(n) for n in grid)
  except (TypeError, ValueError):
    rows = columns = 0
  if min(rows, columns) < 1:
    raise UserError(f'a grid is (rows, columns), two positive integers, got {grid!r}')
  return rows, columns


def mean_of(model: Any) -> tuple[float, ...] | None:
  """The colour that a classifier's normalisation turns into 0; None where there is none."""
  if isinstance(model, Tap):
    return model.mean
  if isinstance(model, Partial) and model.args:
    model = model.args[0]
  mean = getattr(model, 'mean', None)
  is_colour = isinstance(mean, tuple) and all(isinstance(value, float) for value in mean)
  return mean if is_colour else None


def _outside_jit(function: Partial) -> Partial:
  """A jitted function hides its modules; what it wraps does not, and is jitted by us anyway."""
  if isinstance(function.func, type(_jitted)):
    inside = function.func.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
    return Partial(inside, *function.args, **function.keywords)
  return function


_jitted = jax.jit(lambda: None)


def _as_logits(out: Any, batch: int) -> jax.Array:
  if not isinstance(out, jax.Array) or out.ndim != 2 or out.shape[0] != batch:
    got = getattr(out, 'shape', type(out).__name__)
    raise UserError(f'a model gives logits ({batch}, K), got {got}')
  return out.astype(jnp.float32)
