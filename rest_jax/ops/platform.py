"""The one place where an operation's form is chosen.

XLA's backends disagree on which of two equal formulas is fast: its CPU backend runs a depthwise
convolution 30-60 times slower than the same sum written as shifted multiply-adds, while cuDNN and
the TPU's convolution unit prefer the convolution. `form()` is read while a function is traced.

They also come with several libraries for one operation. `jit` compiles with the one that is fast.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal

import jax
from jax import lax
from jax.core import Tracer
from jax.experimental.xla_metadata import set_xla_metadata

Form = Literal['fast', 'plain']
_override: ContextVar[Form | None] = ContextVar('rest_jax_form', default=None)
_portable: ContextVar[bool] = ContextVar('rest_jax_portable', default=False)


def form() -> Form:
  """'fast' for the hand-written forms (CPU), 'plain' for XLA's own operations (GPU, TPU)."""
  return _override.get() or ('fast' if jax.default_backend() == 'cpu' else 'plain')


@contextlib.contextmanager
def use_form(name: Form) -> Iterator[None]:
  """Fixes the form for all functions traced inside the context.

  Both forms are the same functions. 'plain' has no hand-written gradient, so it can also be
  differentiated in forward mode (`jax.jvp`, `jax.hessian`); 'fast' cannot.

  Args:
    name: 'fast' or 'plain'.

  Raises:
    ValueError: for another name.
  """
  if name not in ('fast', 'plain'):
    raise ValueError(f"form must be 'fast' or 'plain', got {name!r}")
  token = _override.set(name)
  try:
    yield
  finally:
    _override.reset(token)


def is_portable() -> bool:
  """Whether only operations are wanted that converters to other formats know."""
  return _portable.get()


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """The form 'plain' without what converters lack: the same function, for `rest_jax.export`."""
  token = _portable.set(True)
  try:
    with use_form('plain'):
      yield
  finally:
    _portable.reset(token)


# Of the libraries that XLA's CPU backend hands work to, YNNPACK (the default of jaxlib 0.10 on)
# runs a convolution on one core, however many there are; Eigen uses them all. Products and sums
# stay with YNNPACK: without its sums XLA fuses whole blocks into each reduction, again and again.
_LIBRARIES = 'xla_cpu_experimental_ynn_fusion_type'
_CPU_OPTIONS = {
  _LIBRARIES: 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE',
}


@functools.cache
def compiler_options() -> dict[str, Any] | None:
  """Options for the compiler of the default backend, for `jax.jit`; None where none are known.

  XLA's flags come first: who sets those of the libraries is asked nothing more.
  """
  if jax.default_backend() != 'cpu' or _LIBRARIES in os.environ.get('XLA_FLAGS', ''):
    return None
  try:
    jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS).lower().compile()
  except (jax.errors.JaxRuntimeError, ValueError):  # another version, which has no such option
    return None
  return _CPU_OPTIONS


class Jitted:
  """A function as `jit` compiles it; its other attributes are those of what `jax.jit` returns."""

  def __init__(self, function: Callable[..., Any], **settings: Any):
    """Takes what `jax.jit` takes."""
    functools.update_wrapper(self, function)
    self._function, self._settings = function, settings
    self._inside = jax.jit(function, **settings)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Runs it; inside another compiled function it is a part of that."""
    if is_traced(args, kwargs) or isinstance(lax.neg(1), Tracer):  # with these values, or without
      return self._inside(*args, **kwargs)
    return self._alone(*args, **kwargs)

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__') or '_inside' not in self.__dict__:  # while it is copied
      raise AttributeError(name)
    return getattr(self._alone, name)

  @functools.cached_property
  def _alone(self) -> Any:
    options = compiler_options()
    if options is None:
      return self._inside
    return jax.jit(self._function, compiler_options=options, **self._settings)


def jit(function: Callable[..., Any], **settings: Any) -> Jitted:
  """`jax.jit` with the options that are fast on this platform.

  JAX takes options of the compiler at the outermost function alone; inside another one, or under
  `grad` and `vmap`, this is `jax.jit` itself.

  Args:
    function: of arrays.
    **settings: as `jax.jit` takes them, without `compiler_options`.
  """
  return Jitted(function, **settings)


# Into the trace around it; from JAX 0.12 on `True` is inlined no earlier than in the lowering.
_EARLY: Any = getattr(getattr(jax, 'Inline', None), 'JAX_EARLY', True)


def traced_once(function: Callable[..., Any], **settings: Any) -> Any:
  """The same function, whose operations are written down once for every shape of its arguments.

  A network calls a layer's arithmetic again and again, and is traced several times: to look at it,
  to run it, to differentiate it. What is traced around it takes the operations over as if they had
  been traced there. `form()` is part of no shape: it is not asked inside.

  Args:
    function: of arrays.
    **settings: as `jax.jit` takes them: which arguments are static.
  """
  return jax.jit(function, inline=_EARLY, **settings)


def apart(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
  """The same function, as a part of the program that XLA's CPU backend fuses nothing into.

  XLA fuses what makes an array into whatever reads it, and computes it anew for every place that is
  read: with nine shifted reads, nine times, and with nine reads of nine reads 81 times. The
  arguments of a part by itself lie in memory.

  On other backends, which fuse otherwise, it is the function itself.

  Args:
    function: of arrays.
    **settings: as `jax.jit` takes them: which arguments are static.
  """

  @functools.wraps(function)
  def inside(*args, **kwargs):
    with set_xla_metadata(inlineable=None):
      return function(*args, **kwargs)

  part = jax.jit(inside, **settings)

  @functools.wraps(function)
  def called(*args, **kwargs):
    if jax.default_backend() != 'cpu':
      return function(*args, **kwargs)
    with set_xla_metadata(inlineable='false'):
      return part(*args, **kwargs)

  return called


def is_traced(*values: Any) -> bool:
  """Whether any array of some pytrees is not known yet: under jit, vmap or grad."""
  return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))
