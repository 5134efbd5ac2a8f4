"""Suite of detection and segmentation."""

from __future__ import annotations

from benchmarks.cases import Case, Options, Ours, Theirs, suite


@suite('dense')
def dense(options: Options) -> list[Case]:
  """Detection and segmentation.

  RetinaNet on rest_small beside torchvision's on ResNet-50: 80 classes, one image on the same
  canvas, weights of noise, ten objects. Detection is all that evaluation does, suppression too; a
  step is losses, gradients and an AdamW update. A process for each side, so that the peak is its
  own.
  """
  height, width = (96, 128) if options.quick else (800, 1344)
  backbone = 'resnet18' if options.quick else 'rest_small'
  canvas = dict(height=height, width=width)
  cases = []
  for task in ('detect',) if options.quick else ('detect', 'detector_step'):
    model = f'retinanet_{backbone}'
    sides = {
      'ours': Ours(f'dense.{task}', {'model': model, **canvas}),
      'torchvision': Theirs(f'dense.{task}', canvas),
    }
    cases.append(Case(_about(task, model, canvas), sides, fresh=True, repeats=5))
  if not options.quick:
    for head in ('semantic_fpn', 'upernet'):
      model, square = f'{head}_{backbone}', dict(height=512, width=512)
      sides = {'ours': Ours('dense.segment', {'model': model, **square})}
      cases.append(Case(_about('segment', model, square), sides, fresh=True, repeats=5))
  return cases


def _about(work: str, model: str, canvas: dict[str, int]) -> dict[str, str]:
  return {'work': work, 'model': model, 'canvas': f'{canvas["height"]}x{canvas["width"]}'}
