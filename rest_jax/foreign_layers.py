"""Layers of NNX and Equinox modules, seen running as Linen's are by `nn.intercept_methods`.

Neither library has such a hook, so the `__call__` of their modules' classes is wrapped while a
model is looked at, for the thread that looks alone. A layer is named by where it hangs on the
outermost module: 'stage4/block1', 'layers/0'. Equinox models work on one image and are put under
`jax.vmap`; what a layer gives there is taken where the batch is whole again (`_tap`).
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, get_opaque_trace_state
from jax.interpreters import ad, batching, mlir

# What is shown of a call: its path, module, positional arguments and output.
Change = Callable[[str, Any, tuple[Any, ...], Any], Any]

_lock = threading.RLock()
_looking: ContextVar[_Look | None] = ContextVar('rest_jax_looking', default=None)


class _Look:
  """One run of a model that is looked at."""

  def __init__(self, change: Change, image_shape: tuple[int, ...]):
    self.change, self.image_shape = change, image_shape
    self.state = get_opaque_trace_state()
    self.modules: dict[str, Any] = {}
    self._names: dict[int, str] = {}
    self._kept: list[Any] = []  # an id is of one object only as long as that lives
    self._running: list[tuple[Any, str]] = []

  @contextlib.contextmanager
  def running(self, module: Any) -> Iterator[str]:
    """The path of a module that begins to run; '' where it is not shown."""
    if self._running and self._running[-1][0] is module:
      yield ''  # it calls the `__call__` of a class above
      return
    if id(module) not in self._names:
      self._name(module)
    path = self._names[id(module)]
    self._running.append((module, path))
    try:
      yield path
    finally:
      self._running.pop()

  def _name(self, module: Any) -> None:
    """Names a module that hangs on none of those known, and all that hangs on it."""
    self._kept.append(module)
    found = dict(_below(module, ''))
    alone = len(found) == 1
    first = not self._running and '' not in self._names.values()
    stem = '' if first and not alone else self._fresh(type(module).__name__)
    for path, one in found.items():
      name = '/'.join(part for part in (stem, path) if part)
      self._names.setdefault(id(one), name)
      self.modules[name] = one

  def _fresh(self, kind: str) -> str:
    outer = self._running[-1][1] if self._running else ''
    stem = f'{outer}/{kind}' if outer else kind
    taken = set(self._names.values())
    return next(n for i in range(len(taken) + 1) if (n := f'{stem}_{i}') not in taken)


def _below(value: Any, path: str, seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
  """Paths and modules that hang on a value, itself too; the first path of one that hangs twice."""
  if id(value) in seen:
    return
  if isinstance(value, _bases()):
    yield path, value
    parts = [(n, v) for n, v in vars(value).items() if not n.startswith('_')]
  elif isinstance(value, Mapping):
    parts = [(str(name), one) for name, one in value.items()]
  elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
    parts = [(str(number), one) for number, one in enumerate(value)]
  else:
    return
  for name, one in parts:
    yield from _below(one, f'{path}/{name}' if path else name, seen | {id(value)})


def _bases() -> tuple[type, ...]:
  """The classes of modules of the libraries that are there."""
  homes = (sys.modules.get('flax.nnx'), sys.modules.get('equinox'))
  found = (getattr(home, 'Module', None) for home in homes)
  return tuple(kind for kind in found if kind is not None)


def _classes(base: type) -> Iterator[type]:
  """All classes below one that have a `__call__` of their own, but for Equinox's machinery."""
  for kind in type.__subclasses__(base):
    home = kind.__module__
    machinery = home.startswith('equinox.') and not home.startswith('equinox.nn')
    if '__call__' in vars(kind) and not machinery:
      yield kind
    yield from _classes(kind)


@contextlib.contextmanager
def watching(change: Change, image_shape: tuple[int, ...]) -> Iterator[None]:
  """Shows every call of an NNX or Equinox module inside the context.

  Args:
    change: (path, module, positional arguments, output) to what flows on in the place of the
      output. Maps are (B, h, w, C) whatever the library's order; of a module under `jax.vmap` the
      arguments are left out, and of its output the first array is shown.
    image_shape: (B, H, W, C) of the images, by which the order of a map's sides is told.
  """
  bases = _bases()
  if not bases:
    yield
    return
  with _lock:
    token = _looking.set(_Look(change, image_shape))
    wrapped: dict[type, Any] = {}
    try:
      for kind in {kind for base in bases for kind in _classes(base)}:
        wrapped[kind] = vars(kind)['__call__']
        type.__setattr__(kind, '__call__', _wrapper(kind, wrapped[kind]))
      yield
    finally:
      for kind, call in wrapped.items():
        type.__setattr__(kind, '__call__', call)
      _looking.reset(token)


def _wrapper(kind: type, call: Any) -> Any:
  def shown(self: Any, *args: Any, **kwargs: Any) -> Any:
    bound = call.__get__(self, kind)
    look = _looking.get()
    if look is None:
      return bound(*args, **kwargs)
    with look.running(self) as path:
      output = bound(*args, **kwargs)
    return _show(look, path, self, args, output) if path else output

  return shown


def _show(look: _Look, path: str, module: Any, args: tuple[Any, ...], output: Any) -> Any:
  array = _array_of(output)
  if get_opaque_trace_state() == look.state:
    if array is None or array.ndim != 4:
      return look.change(path, module, args, output)
    return _replaced(output, array, _in_order(look, path, module, args, array))
  if array is None:
    return output
  return _replaced(output, array, _tap.bind(array, path=path))


def _array_of(output: Any) -> Any:
  first = output[0] if isinstance(output, tuple) and output else output
  return first if isinstance(first, jax.Array) else None


def _replaced(output: Any, old: Any, new: Any) -> Any:
  return new if output is old else (new, *output[1:])


def _in_order(look: _Look, path: str, module: Any, args: tuple[Any, ...], array: Any) -> Any:
  """Shows an array of the whole batch, a map with its channels last."""
  first = array.ndim == 4 and _is_equinox(module) and _channels_first(array.shape, look.image_shape)
  if not first:
    return look.change(path, module, args, array)
  made = look.change(path, module, args, array.transpose(0, 2, 3, 1))
  return made.transpose(0, 3, 1, 2)


def _is_equinox(module: Any) -> bool:
  equinox = sys.modules.get('equinox')
  return equinox is not None and isinstance(module, equinox.Module)


def _channels_first(shape: tuple[int, ...], image_shape: tuple[int, ...]) -> bool:
  """Whether (B, C, h, w) or (B, h, w, C): by the proportions of the image, else Equinox's own."""
  height, width = image_shape[1:3]
  last = abs(shape[1] * width - shape[2] * height)
  return abs(shape[2] * width - shape[3] * height) <= last


# The identity, which tells under `jax.vmap` what goes through it once the batch is whole.
_tap = Primitive('rest_jax_tap')
_tap.def_impl(lambda x, *, path: x)
_tap.def_abstract_eval(lambda x, *, path: x)
mlir.register_lowering(_tap, lambda ctx, x, *, path: [x])
ad.deflinear2(_tap, lambda cotangent, _, *, path: [cotangent])


def _of_batch(arrays: Any, axes: Any, *, path: str) -> tuple[Any, int]:
  array = jnp.moveaxis(arrays[0], axes[0], 0)
  look = _looking.get()
  if look is None or get_opaque_trace_state() != look.state:
    return _tap.bind(array, path=path), 0
  return _in_order(look, path, look.modules[path], (), array), 0


batching.primitive_batchers[_tap] = _of_batch
