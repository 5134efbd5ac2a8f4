"""What the authors' repositories import and no benchmark needs, where it is missing."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def module(name: str, **contents: Any) -> None:
  """Makes a module of that name, unless there is one that can be imported."""
  try:
    importlib.import_module(name)
  except ImportError:
    made = types.ModuleType(name)
    made.__path__ = []  # type: ignore[attr-defined]
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)  # torch asks for it
    vars(made).update(contents)
    sys.modules[name] = made


class DropPath(torch.nn.Module):
  """Stochastic depth."""

  def __init__(self, rate: float = 0.0):
    super().__init__()
    self.rate = rate

  def forward(self, x):
    """Drops whole rows in training."""
    if self.training and self.rate:
      keep = torch.rand(x.shape[0], *(1,) * (x.ndim - 1)) >= self.rate
      return x * keep.to(x.dtype) / (1 - self.rate)
    return x


def timm() -> None:
  """The four names that the code of ResT takes from timm; newer timm has moved them."""
  module('timm')
  module('timm.models')
  module(
    'timm.models.layers',
    DropPath=DropPath,
    to_2tuple=lambda x: (x, x),
    trunc_normal_=lambda t, std=1.0: torch.nn.init.trunc_normal_(t, std=std),
  )
  module('timm.models.registry', register_model=lambda function: function)


def gaussian_blur2d(x, kernel_size, sigma):
  """As kornia's: separable, the border mirrored."""
  size, deviation = kernel_size[0], sigma[0]
  places = torch.arange(size, dtype=x.dtype, device=x.device) - size // 2
  taps = torch.exp(-((places / deviation) ** 2) / 2)
  taps, channels, half = taps / taps.sum(), x.shape[1], size // 2
  x = torch.nn.functional.pad(x, (half, half, half, half), mode='reflect')
  for shape in ((1, size), (size, 1)):
    kernel = taps.reshape(1, 1, *shape).expand(channels, 1, *shape)
    x = torch.nn.functional.conv2d(x, kernel, groups=channels)
  return x


def _unused(*args: Any, **kwargs: Any) -> Any:
  raise NotImplementedError('stands in for a function that no benchmark needs')


def group_cam(checkout: str, device: str) -> None:
  """What the code of Group-CAM imports; on a CPU its calls of .cuda() give what they get."""
  module('kornia')
  module('kornia.filters')
  module('kornia.filters.gaussian', gaussian_blur2d=gaussian_blur2d)
  module('matplotlib')
  module('matplotlib.pyplot')
  module('skimage')
  module('skimage.transform', resize=_unused)
  module('tqdm', tqdm=lambda items, **kwargs: items)
  # Its own `utils` imports clustering and drawing.
  made = types.ModuleType('utils')
  vars(made).update(group_sum=_unused, convert_to_gray=_unused)
  sys.modules['utils'] = made
  first_on_path(checkout)
  if device == 'cpu':
    same: Callable[..., Any] = lambda self, *args, **kwargs: self  # noqa: E731
    torch.Tensor.cuda = torch.nn.Module.cuda = same  # type: ignore[method-assign]


def first_on_path(checkout: str) -> None:
  """Imports are looked for in a checkout first, and in no other one of ours."""
  if checkout not in sys.path:
    sys.path.insert(0, str(Path(checkout)))
