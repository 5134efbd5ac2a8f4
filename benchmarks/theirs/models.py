"""Forward passes, gradients and training steps: ResT of its authors, ResNet of torchvision."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks import theirs
from benchmarks.theirs import done, standins
from benchmarks.work import Work

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


def build(model: str, checkout: str | None = None) -> torch.nn.Module:
  """A model of the authors' repository, or of torchvision, with its own initialisation."""
  if checkout is None:
    import torchvision

    found = getattr(torchvision.models, model)(weights=None)
  else:
    standins.timm()
    standins.first_on_path(checkout)
    from models import rest, rest_v2  # type: ignore[import-not-found]

    found = getattr(rest_v2 if model.startswith('restv2') else rest, model)()
  return found.to(theirs.DEVICE, memory_format=torch.channels_last)


def noise(batch: int, size: int) -> torch.Tensor:
  """Images (batch, 3, size, size), channels last in memory."""
  images = torch.randn(batch, 3, size, size, device=theirs.DEVICE)
  return images.to(memory_format=torch.channels_last)


def _mixed(dtype: str) -> Any:
  return torch.autocast(theirs.DEVICE, DTYPES[dtype], enabled=dtype != 'float32')


def forward(
  model: str, batch: int, size: int, dtype: str = 'float32', checkout: str | None = None
) -> Work:
  """Logits in evaluation mode."""
  network, images = build(model, checkout).eval(), noise(batch, size)

  def call():
    with torch.inference_mode(), _mixed(dtype):
      network(images)
    done()

  return Work(call)


def gradient(
  model: str, batch: int, size: int, dtype: str = 'float32', checkout: str | None = None
) -> Work:
  """The gradient of all parameters in training mode."""
  network, images = build(model, checkout).train(), noise(batch, size)

  def call():
    network.zero_grad()
    with _mixed(dtype):
      loss = network(images).float().logsumexp(1).mean()
    loss.backward()
    done()

  return Work(call)


def step(
  model: str,
  batch: int,
  size: int,
  dtype: str,
  compiled: bool = False,
  checkout: str | None = None,
) -> Work:
  """Cross-entropy, clipping and AdamW, eager or through torch.compile."""
  network = build(model, checkout).train()
  called = torch.compile(network) if compiled else network
  optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05)
  images = noise(batch, size)
  labels = torch.randint(0, 1000, (batch,), device=theirs.DEVICE)

  def call():
    optimizer.zero_grad(set_to_none=True)
    with _mixed(dtype):
      loss = torch.nn.functional.cross_entropy(called(images), labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    done()

  return Work(call)
