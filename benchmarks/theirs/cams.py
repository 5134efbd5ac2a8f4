"""Group-CAM, Score-CAM, insertion and deletion by the authors of Group-CAM."""

from __future__ import annotations

import os

import torch

from benchmarks import theirs
from benchmarks.theirs import done, standins
from benchmarks.theirs.models import build
from benchmarks.work import Work

LAYERS = {'resnet50': 'layer4.2', 'resnet18': 'layer4.1'}


def _pictures(batch: int, size: int) -> torch.Tensor:
  return torch.rand(batch, 3, size, size, device=theirs.DEVICE)


def group_cam(model: str, size: int, checkout: str, batch: int = 1, groups: int = 32) -> Work:
  """Their GroupCAM, which takes one image at a time."""
  standins.group_cam(checkout, theirs.DEVICE)
  from cam import GroupCAM  # type: ignore[import-not-found]

  return _explain(GroupCAM(build(model), LAYERS[model], groups), batch, size)


def score_cam(model: str, size: int, checkout: str) -> Work:
  """Their ScoreCAM."""
  standins.group_cam(checkout, theirs.DEVICE)
  from cam import ScoreCAM  # type: ignore[import-not-found]

  return _explain(ScoreCAM(build(model), LAYERS[model]), 1, size)


def _explain(method, batch: int, size: int) -> Work:
  images = _pictures(batch, size)

  def call():
    for i in range(batch):
      method(images[i : i + 1])
    done()

  return Work(call)


def curves(model: str, size: int, checkout: str, batch: int = 1, variant: str = 'paper') -> Work:
  """Their CausalMetric, both ways; it knows 224 pixels alone."""
  assert size == 224, 'the authors wrote 224 pixels into their code'
  standins.group_cam(checkout, theirs.DEVICE)
  before = os.getcwd()
  os.chdir(checkout)  # it opens a file of its own at import
  try:
    from ins_del_gc import CausalMetric  # type: ignore[import-not-found]
  finally:
    os.chdir(before)
  network, images = build(model), _pictures(batch, size)
  maps = torch.rand(batch, size, size).numpy()
  step = {'paper': 8, 'latest': 2}[variant] * size

  def blur(x):
    return standins.gaussian_blur2d(x, (51, 51), (50.0, 50.0))

  insertion = CausalMetric(network, 'ins', step, blur)
  deletion = CausalMetric(network, 'del', step, torch.zeros_like)

  def call():
    with torch.no_grad():
      for i in range(batch):
        for metric in (insertion, deletion):
          metric.evaluate(images[i : i + 1], maps[i])
    done()

  return Work(call)
