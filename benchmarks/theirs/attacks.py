"""PGD of torchattacks, APGD and AutoAttack of its authors, on the same weights and images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks import theirs
from benchmarks.autoattack_official import NORMS, ResNet20
from benchmarks.theirs import done, standins
from benchmarks.work import Work

BATCH = 250


def subject(path: str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
  """The network, images and labels that our side has written."""
  with np.load(path) as file:
    held = {name: torch.tensor(file[name]).to(theirs.DEVICE) for name in file.files}
  images = held.pop('images').permute(0, 3, 1, 2).contiguous()
  labels = held.pop('labels').long()
  return ResNet20(held).eval().to(theirs.DEVICE), images, labels


def pgd(path: str, steps: int, eps: float, **given: Any) -> Work:
  """PGD of torchattacks."""
  model, images, labels = subject(path)
  return _pgd(model, images, labels, steps, eps)


def pgd_resnet18(images: int, steps: int, eps: float) -> Work:
  """PGD of torchattacks on torchvision's ResNet-18 with the stem for CIFAR."""
  import torchvision

  model = torchvision.models.resnet18(weights=None, num_classes=10)
  model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
  model.maxpool = torch.nn.Identity()
  model = model.eval().to(theirs.DEVICE, memory_format=torch.channels_last)
  pictures = torch.rand(images, 3, 32, 32, device=theirs.DEVICE)
  labels = torch.randint(0, 10, (images,), device=theirs.DEVICE)
  return _pgd(model, pictures, labels, steps, eps)


def _pgd(model, images, labels, steps: int, eps: float) -> Work:
  import torchattacks  # type: ignore[import-not-found]

  attack = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=steps)
  return _work(lambda: attack(images, labels), model, labels)


def apgd(path: str, steps: int, eps: float, checkout: str, **given: Any) -> Work:
  """APGD on cross-entropy."""
  standins.first_on_path(checkout)
  from autoattack.autopgd_base import APGDAttack  # type: ignore[import-not-found]

  model, images, labels = subject(path)
  attack = APGDAttack(model, n_iter=steps, norm='Linf', eps=eps, device=theirs.DEVICE)
  return _work(lambda: attack.perturb(images, labels), model, labels)


def auto_attack(path: str, norm: str, eps: float, checkout: str, **given: Any) -> Work:
  """The standard version of AutoAttack."""
  standins.first_on_path(checkout)
  from autoattack import AutoAttack  # type: ignore[import-not-found]

  model, images, labels = subject(path)
  attack = AutoAttack(
    model, norm=NORMS[norm], eps=eps, seed=0, version='standard', device=theirs.DEVICE,
    verbose=False,
  )  # fmt: skip

  def run():
    return attack.run_standard_evaluation(images, labels, bs=BATCH)

  return _work(run, model, labels)


def _work(run, model, labels) -> Work:
  """An attack, and which images withstood it."""
  found: dict[str, Any] = {}

  def call():
    found['adv'] = run()
    done()

  def facts():
    with torch.no_grad():
      right = model(found['adv'].to(theirs.DEVICE)).argmax(1) == labels
    return {'robust': right.float().mean().item()}

  return Work(call, facts)
