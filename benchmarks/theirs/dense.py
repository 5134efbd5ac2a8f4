"""torchvision's RetinaNet with its transform taken out: the canvas is given."""

from __future__ import annotations

import torch

from benchmarks import theirs
from benchmarks.boxes import CLASSES, boxes_of
from benchmarks.theirs import done
from benchmarks.work import Work


def _detector(height: int, width: int) -> torch.nn.Module:
  from torchvision.models.detection import retinanet_resnet50_fpn

  model = retinanet_resnet50_fpn(
    weights=None, weights_backbone=None, num_classes=CLASSES, trainable_backbone_layers=5,
    min_size=height, max_size=width,
  )  # fmt: skip
  return model.to(theirs.DEVICE)


def detect(height: int, width: int) -> Work:
  """Detections of one image, suppression too."""
  model = _detector(height, width).eval()
  image = [torch.rand(3, height, width, device=theirs.DEVICE)]

  def call():
    with torch.inference_mode():
      model(image)
    done()

  return Work(call)


def detector_step(height: int, width: int) -> Work:
  """Losses, gradients and an AdamW update on one image with ten objects."""
  model = _detector(height, width).train()
  image = [torch.rand(3, height, width, device=theirs.DEVICE)]
  boxes = torch.from_numpy(boxes_of(height, width)).to(theirs.DEVICE)
  targets = [{'boxes': boxes, 'labels': torch.arange(len(boxes), device=theirs.DEVICE)}]
  optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

  def call():
    optimizer.zero_grad()
    sum(model(image, targets).values()).backward()
    optimizer.step()
    done()

  return Work(call)
