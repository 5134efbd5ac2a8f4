"""Makes dense.npz beside torchvision and transformers, in float64.

    pip install torch==2.14.1 torchvision==0.29.1 transformers==5.24.0
    python tests/golden/make_dense.py

The backbone is a stand-in without parameters: map k of an image is the mean over squares of
4, 8, 16 or 32 px, repeated with the factors 1, 2, ... and passed through a sine. Weights are stored
under the names of detectron2 and mmsegmentation.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

WIDTHS = (6, 6, 9, 12)
WIDTH = 8
CLASSES = 3
OUT: dict[str, np.ndarray] = {}


def keep(name: str, tensor) -> None:
  array = tensor.detach().numpy() if torch.is_tensor(tensor) else np.asarray(tensor)
  OUT[name] = array.astype(np.float32) if array.dtype == np.float64 else array


def randomise(module: nn.Module, scale: float = 1.0) -> nn.Module:
  """Random weights of a size at which outputs are of order one, and random statistics."""
  for tensor in module.parameters():
    fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
    tensor.data = torch.randn(tensor.shape, dtype=torch.float64) * scale / math.sqrt(fan_in)
  for name, tensor in module.named_buffers():
    if name.endswith(('running_mean', 'running_var')):
      tensor.data = torch.rand(tensor.shape, dtype=torch.float64) + 0.5
  return module.double().eval()


def maps(images: torch.Tensor) -> list[torch.Tensor]:
  out = []
  for side, width in zip((4, 8, 16, 32), WIDTHS, strict=True):
    mean = F.avg_pool2d(images, side)
    out.append(torch.sin(torch.cat([mean * (k + 1) for k in range(width // 3)], 1)))
  return out


def keep_state(prefix: str, module: nn.Module, names: dict[str, str]) -> None:
  """Weights under other names; `names` maps prefixes, longest first."""
  for name, tensor in module.state_dict().items():
    source = next(p for p in sorted(names, key=len, reverse=True) if name.startswith(p))
    keep(f'{prefix}/{names[source]}{name.removeprefix(source)}', tensor)


def base_anchors(sizes, ratios) -> torch.Tensor:
  """Detectron2's: sizes outside, ratios inside, not rounded."""
  rows = []
  for size in sizes:
    for ratio in ratios:
      w = math.sqrt(size**2 / ratio)
      h = ratio * w
      rows.append([-w / 2, -h / 2, w / 2, h / 2])
  return torch.tensor(rows, dtype=torch.float64)


def grid(base, shape, stride) -> torch.Tensor:
  rows = [
    base + torch.tensor([x, y, x, y], dtype=torch.float64) * stride
    for y in range(shape[0])
    for x in range(shape[1])
  ]
  return torch.cat(rows)


def make_retinanet() -> None:
  images = torch.randn(2, 3, 64, 96, dtype=torch.float64) * 2
  keep('retinanet/images', images)
  levels = maps(images)[1:]
  fpn = randomise(FeaturePyramidNetwork(list(WIDTHS[1:]), WIDTH, LastLevelP6P7(WIDTHS[3], WIDTH)))
  names = {f'inner_blocks.{i}.0': f'backbone.fpn_lateral{i + 3}' for i in range(3)}
  names |= {f'layer_blocks.{i}.0': f'backbone.fpn_output{i + 3}' for i in range(3)}
  names |= {'extra_blocks.p6': 'backbone.top_block.p6', 'extra_blocks.p7': 'backbone.top_block.p7'}
  keep_state('retinanet/state', fpn, names)
  pyramid = list(fpn({str(i): m for i, m in enumerate(levels)}).values())
  for i, level in enumerate(pyramid):
    keep(f'retinanet/pyramid{i}', level)
  head = randomise(RetinaNetHead(WIDTH, 9, CLASSES), 1.6)
  head.classification_head.cls_logits.bias.data -= 2.5
  head.regression_head.bbox_reg.weight.data *= 0.2
  names = {'classification_head.cls_logits': 'head.cls_score'}
  names |= {'regression_head.bbox_reg': 'head.bbox_pred'}
  for i in range(4):
    names[f'classification_head.conv.{i}.0'] = f'head.cls_subnet.{2 * i}'
    names[f'regression_head.conv.{i}.0'] = f'head.bbox_subnet.{2 * i}'
  keep_state('retinanet/state', head, names)
  outputs = head(pyramid)
  keep('retinanet/logits', outputs['cls_logits'])
  keep('retinanet/deltas', outputs['bbox_regression'])
  anchors = [
    grid(base_anchors([4 * s * 2 ** (k / 3) for k in range(3)], (0.5, 1, 2)), m.shape[2:], s)
    for s, m in zip((8, 16, 32, 64, 128), pyramid, strict=True)
  ]
  retinanet_losses(head, outputs, torch.cat(anchors))
  retinanet_results(head, outputs, anchors)


def retinanet_losses(head, outputs, anchors) -> None:
  # No box lies inside of two anchors of one shape: their overlaps would be equal but for rounding.
  boxes = torch.tensor(
    [
      [4.3, 6.1, 40.9, 50.2],
      [50.7, 10.4, 90.1, 60.8],
      [30.2, 20.3, 70.9, 62.1],
      [0.6, 1.1, 63, 30],
    ],
    dtype=torch.float64,
  )
  labels = torch.tensor([0, 2, 1, 1])
  matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
  index = matcher(box_iou(boxes, anchors))
  keep('retinanet/boxes', boxes)
  keep('retinanet/labels', labels)
  keep('retinanet/index', index)
  one = {name: value[:1] for name, value in outputs.items()}
  losses = head.compute_loss([{'boxes': boxes, 'labels': labels}], one, [anchors], [index])
  keep('retinanet/loss_class', losses['classification'])
  keep('retinanet/loss_box', losses['bbox_regression'])


def retinanet_results(head, outputs, anchors) -> None:
  backbone = nn.Identity()
  backbone.out_channels = WIDTH
  generator = AnchorGenerator(((32,),) * 5, ((1.0,),) * 5)
  model = RetinaNet(
    backbone,
    CLASSES,
    anchor_generator=generator,
    head=RetinaNetHead(WIDTH, 1, 3),
    detections_per_img=100,
  )
  sizes = [len(a) for a in anchors]
  split = {name: list(value.split(sizes, dim=1)) for name, value in outputs.items()}
  found = model.postprocess_detections(split, [anchors, anchors], [(64, 96), (50, 80)])
  for i, result in enumerate(found):
    for name, value in result.items():
      keep(f'retinanet/found{i}/{name}', value)


def make_mask_rcnn() -> None:
  images = torch.randn(2, 3, 64, 96, dtype=torch.float64) * 2
  keep('mask_rcnn/images', images)
  fpn = randomise(FeaturePyramidNetwork(list(WIDTHS), WIDTH))
  names = {f'inner_blocks.{i}.0': f'backbone.fpn_lateral{i + 2}' for i in range(4)}
  names |= {f'layer_blocks.{i}.0': f'backbone.fpn_output{i + 2}' for i in range(4)}
  keep_state('mask_rcnn/state', fpn, names)
  pyramid = list(fpn({str(i): m for i, m in enumerate(maps(images))}).values())
  pyramid.append(pyramid[-1][:, :, ::2, ::2])
  rpn = randomise(RPNHead(WIDTH, 3), 1.5)
  prefix = 'proposal_generator.rpn_head.'
  names = {'conv.0.0': f'{prefix}conv', 'cls_logits': f'{prefix}objectness_logits'}
  keep_state('mask_rcnn/state', rpn, names | {'bbox_pred': f'{prefix}anchor_deltas'})
  logits, deltas = rpn(pyramid)
  deltas = [d * 0.3 for d in deltas]
  proposals(pyramid, logits, deltas)
  heads()


def proposals(pyramid, logits, deltas) -> None:
  """What the proposal network lets through; deltas are a third of the head's."""
  anchors = [
    grid(base_anchors([8 * s], (0.5, 1, 2)), m.shape[2:], s)
    for s, m in zip((4, 8, 16, 32, 64), pyramid, strict=True)
  ]
  flat = [x.permute(0, 2, 3, 1).reshape(2, -1) for x in logits]
  flat_deltas = [x.permute(0, 2, 3, 1).reshape(2, -1, 4) for x in deltas]
  for i in range(5):
    keep(f'mask_rcnn/rpn_logits{i}', flat[i])
  coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
  boxes = torch.stack(
    [coder.decode(torch.cat(flat_deltas, 1)[b], [torch.cat(anchors)])[:, 0] for b in range(2)]
  )
  top = {'training': 60, 'testing': 60}
  network = RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, top, dict.fromkeys(top, 40), 0.7)
  network.eval()
  sizes = [(64, 96), (50, 80)]
  counts = [level.shape[1] for level in flat]
  found, _ = network.filter_proposals(boxes, torch.cat(flat, 1), sizes, counts)
  for i in range(2):
    keep(f'mask_rcnn/proposals{i}', found[i])


def heads() -> None:
  box_head = randomise(TwoMLPHead(WIDTH * 49, 16), 1.5)
  predictor = randomise(FastRCNNPredictor(16, CLASSES + 1), 1.5)
  state = predictor.state_dict()
  # Here the background is the first class, and has a box of its own; in detectron2 it is the last
  # and has none.
  order, prefix = [1, 2, 3, 0], 'mask_rcnn/state/roi_heads.box_predictor'
  for part in ('weight', 'bias'):
    keep(f'{prefix}.cls_score.{part}', state[f'cls_score.{part}'][order])
    keep(f'{prefix}.bbox_pred.{part}', state[f'bbox_pred.{part}'][4:])
  keep_state(
    'mask_rcnn/state',
    box_head,
    {'fc6': 'roi_heads.box_head.fc1', 'fc7': 'roi_heads.box_head.fc2'},
  )
  regions = torch.randn(30, WIDTH, 7, 7, dtype=torch.float64)
  keep('mask_rcnn/regions', regions)
  logits, deltas = predictor(box_head(regions))
  keep('mask_rcnn/class', logits[:, order])
  keep('mask_rcnn/box', deltas[:, 4:].reshape(30, CLASSES, 4))
  starts = torch.rand(30, 2, dtype=torch.float64) * 50
  boxes = torch.cat([starts, starts + 10 + torch.rand(30, 2, dtype=torch.float64) * 40], 1)
  keep('mask_rcnn/region_boxes', boxes)
  roi = RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, (10.0, 10.0, 5.0, 5.0), 0.05, 0.5, 100)
  found = roi.postprocess_detections(logits, deltas, [boxes], [(64, 96)])
  for name, value in zip(('boxes', 'scores', 'labels'), found, strict=True):
    keep(f'mask_rcnn/found/{name}', value[0])
  mask_heads()


def mask_heads() -> None:
  convs = randomise(MaskRCNNHeads(WIDTH, (WIDTH,) * 4, 1), 1.4)
  predictor = randomise(MaskRCNNPredictor(WIDTH, WIDTH, CLASSES), 1.4)
  prefix = 'roi_heads.mask_head.'
  keep_state('mask_rcnn/state', convs, {f'{i}.0': f'{prefix}mask_fcn{i + 1}' for i in range(4)})
  names = {'conv5_mask': f'{prefix}deconv', 'mask_fcn_logits': f'{prefix}predictor'}
  keep_state('mask_rcnn/state', predictor, names)
  regions = torch.randn(3, WIDTH, 14, 14, dtype=torch.float64)
  keep('mask_rcnn/mask_regions', regions)
  keep('mask_rcnn/masks', predictor(convs(regions)))


def make_matches() -> None:
  """Quantised overlaps, so that there are ties."""
  overlaps = torch.round(torch.rand(7, 60, dtype=torch.float64) * 20) / 20 * 0.8
  overlaps[3] = 0  # no anchor touches it
  overlaps[5] *= 0.3
  keep('match/overlaps', overlaps)
  for low_quality in (False, True):
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=low_quality)
    # A ground truth of no overlap would make every anchor that misses it positive there.
    keep(f'match/index{int(low_quality)}', matcher(overlaps[[0, 1, 2, 4, 5, 6]]))


def make_paste() -> None:
  """Detectron2's way: sampling at the centres of the image's pixels, zeros outside."""
  masks = torch.rand(6, 1, 28, 28, dtype=torch.float64)
  boxes = torch.tensor(
    [
      [3.2, 4.7, 20.1, 30.9],
      [-8, -5, 25, 18.5],
      [10, 12, 11, 13],
      [0, 0, 48, 40],
      [30.5, 2, 60, 39],
      [5, 5, 5.5, 38],
    ],
    dtype=torch.float64,
  )
  h, w = 40, 48
  y, x = torch.arange(h) + 0.5, torch.arange(w) + 0.5
  gy = (y[None] - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]) * 2 - 1
  gx = (x[None] - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1
  places = torch.stack([gx[:, None].expand(6, h, w), gy[:, :, None].expand(6, h, w)], 3)
  keep('paste/masks', masks[:, 0])
  keep('paste/boxes', boxes)
  keep('paste/pasted', F.grid_sample(masks, places.double(), align_corners=False)[:, 0])


def make_pooling() -> None:
  x = torch.randn(2, 3, 7, 16, dtype=torch.float64)
  keep('pool/x', x)
  for size in (1, 2, 3, 6, 9):
    keep(f'pool/{size}', F.adaptive_avg_pool2d(x, size))


def make_upernet() -> None:
  config = UperNetConfig(
    hidden_size=WIDTH,
    pool_scales=[1, 2, 3, 6],
    auxiliary_channels=WIDTH,
    auxiliary_in_channels=WIDTHS[2],
    auxiliary_num_convs=1,
    auxiliary_concat_input=False,
    num_labels=5,
  )
  head = randomise(UperNetHead(config, list(WIDTHS)))
  aux = randomise(UperNetFCNHead(config, WIDTHS[2]))
  for module, prefix in ((head, 'decode_head.'), (aux, 'auxiliary_head.')):
    for name, tensor in module.state_dict().items():
      name = name.replace('batch_norm', 'bn').replace('classifier', 'conv_seg')
      keep(f'upernet/state/{prefix}{name}', tensor)
  images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
  labels = torch.randint(0, 5, (2, 64, 96))
  labels[:, :20] = 255
  levels = maps(images)
  main, auxiliary = head(levels), aux(levels)
  keep('upernet/images', images)
  keep('upernet/labels', labels)
  keep('upernet/logits', main)
  keep('upernet/auxiliary', auxiliary)
  for name, logits in (('main', main), ('aux', auxiliary)):
    full = F.interpolate(logits, (64, 96), mode='bilinear', align_corners=False)
    for reduction in ('mean', 'none'):  # over the judged pixels, and for the mean over all of them
      loss = F.cross_entropy(full, labels, ignore_index=255, reduction=reduction)
      keep(f'upernet/loss_{name}_{reduction}', loss.mean())


def make_semantic_fpn() -> None:
  """mmsegmentation's FPNHead, written out from its description."""
  fpn = randomise(FeaturePyramidNetwork(list(WIDTHS), WIDTH))
  names = {f'inner_blocks.{i}.0': f'neck.lateral_convs.{i}.conv' for i in range(4)}
  names |= {f'layer_blocks.{i}.0': f'neck.fpn_convs.{i}.conv' for i in range(4)}
  keep_state('semantic_fpn/state', fpn, names)
  images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
  keep('semantic_fpn/images', images)
  pyramid = fpn({str(i): m for i, m in enumerate(maps(images))}).values()
  merged = 0
  for i, x in enumerate(pyramid):
    for k in range(max(i, 1)):
      conv = randomise(nn.Conv2d(x.shape[1], 6, 3, padding=1, bias=False))
      norm = randomise(nn.BatchNorm2d(6))
      keep_state('semantic_fpn/state', conv, {'': f'decode_head.scale_heads.{i}.{2 * k}.conv.'})
      keep_state('semantic_fpn/state', norm, {'': f'decode_head.scale_heads.{i}.{2 * k}.bn.'})
      x = F.relu(norm(conv(x)))
      if i:
        x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
    merged = merged + x
  last = randomise(nn.Conv2d(6, 5, 1))
  keep_state('semantic_fpn/state', last, {'': 'decode_head.conv_seg.'})
  keep('semantic_fpn/logits', last(merged))


def main() -> None:
  torch.manual_seed(0)
  torch.set_num_threads(1)
  with torch.no_grad():
    for make in (
      make_retinanet,
      make_mask_rcnn,
      make_matches,
      make_paste,
      make_pooling,
      make_upernet,
      make_semantic_fpn,
    ):
      make()
  path = Path(__file__).with_name('dense.npz')
  np.savez_compressed(path, **OUT)
  print(path, path.stat().st_size)


if __name__ == '__main__':
  main()
