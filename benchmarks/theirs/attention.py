"""The attention of ResT by its authors, by itself."""

from __future__ import annotations

import torch

from benchmarks import theirs
from benchmarks.theirs import done, standins
from benchmarks.work import Work


def attention(
  batch: int,
  side: int,
  width: int,
  heads: int,
  reduction: int,
  mix: bool,
  backward: bool = False,
  checkout: str | None = None,
) -> Work:
  """A layer on tokens (batch, side * side, width); arguments as of `ours.attention`."""
  standins.timm()
  standins.first_on_path(str(checkout))
  from models import rest  # type: ignore[import-not-found]

  layer = rest.Attention(width, heads, qkv_bias=True, sr_ratio=reduction, apply_transform=mix)
  layer = layer.to(theirs.DEVICE).eval()
  x = torch.randn(batch, side * side, width, device=theirs.DEVICE, requires_grad=backward)

  def forward():
    with torch.inference_mode():
      layer(x, side, side)
    done()

  def gradient():
    layer.zero_grad()
    x.grad = None
    (layer(x, side, side) ** 2).sum().backward()
    done()

  return Work(gradient if backward else forward)
