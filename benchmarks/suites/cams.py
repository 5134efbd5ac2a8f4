"""Suites of the explanations: Group-CAM, Score-CAM, insertion and deletion."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import Case, Options, Ours, Theirs, suite

MODELS, SMALL = ('resnet50', 'rest_small'), ('resnet20',)
THEIRS = ('resnet18', 'resnet50')  # whose layer the other side knows


def _sides(task: str, model: str, params: dict[str, Any]) -> dict[str, Ours | Theirs]:
  """Ours, and the authors' code where it knows the model."""
  sides: dict[str, Ours | Theirs] = {'ours': Ours(task, {'model': model, **params})}
  if model in THEIRS:
    sides['peer'] = Theirs(task, {'model': model, **params}, 'groupcam')
  return sides


@suite('cams')
def cams(options: Options) -> list[Case]:
  """Group-CAM and Score-CAM.

  Called as users call them. 'one by one' is the same batch an image at a time; 'passes' are the
  forward passes and the gradient that Group-CAM of an image cannot do without. The peer: the code
  of Group-CAM's authors, on torchvision's network.
  """
  size, groups = (32, 4) if options.quick else (224, 32)
  cases = []
  for model in options.models or (SMALL if options.quick else MODELS):
    params = dict(size=size, groups=groups)
    about = {'method': 'group_cam', 'model': model, 'images': 1, 'px': size, 'groups': groups}
    one = _sides('cams.group_cam', model, params)
    one['passes'] = Ours('cams.passes', {'model': model, **params})
    cases.append(Case(about, one))
    images = 2 if options.quick else 8
    many = _sides('cams.group_cam', model, {**params, 'batch': images})
    each = {'model': model, **params, 'batch': images}
    many['one by one'] = Ours('cams.group_cam_each', each)
    cases.append(Case({**about, 'images': images}, many, items=images))
    small = size if options.quick else size // 2
    scored = _sides('cams.score_cam', model, {'size': small})
    about = {**about, 'method': 'score_cam', 'px': small, 'groups': ''}
    cases.append(Case(about, scored, repeats=3))
  return cases


@suite('curves')
def curves(options: Options) -> list[Case]:
  """Insertion and deletion.

  Both curves of maps of noise, called as users call the measure. The peer: the code of Group-CAM's
  authors, one image and one point at a time.
  """
  size, variant = 32 if options.quick else 224, 'paper'
  cases = []
  for model in options.models or (SMALL if options.quick else MODELS):
    for images in (1,) if options.quick else (1, 4):
      about = {'model': model, 'images': images, 'px': size, 'variant': variant}
      sides = _sides('cams.curves', model, dict(size=size, batch=images, variant=variant))
      if size != 224:
        sides.pop('peer', None)  # 224 pixels stand in its code
      cases.append(Case(about, sides, items=images))
  return cases
