"""The files that explain.py writes for one picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from rest_jax.evaluation.figures import literal
from rest_jax.explain import figures
from rest_jax.explain.command import Command
from rest_jax.explain.methods import METHODS
from rest_jax.explain.metrics import Curves, fill_images, step_at
from rest_jax.explain.metrics.sanity import sanity_check
from rest_jax.explain.overlays import overlay
from rest_jax.explain.shown import suffix_for, write_picture
from rest_jax.files import ADVICE, write_array, write_json
from rest_jax.models.classifier import Classifier
from rest_jax.models.predictions import Placement, Seen, part_seen

_LONGEST = 255  # characters of a name above a figure, which has as many lines as it needs
_LISTED = 5  # classes in explanation.json, fewer where a model has fewer


@dataclasses.dataclass(frozen=True)
class PictureResult:
  """A picture and what the model says of it.

  Attributes:
    file: where it was read.
    folder: where its results go.
    picture: upright, mode RGB.
    place: the rectangle of it that the model saw.
    pixels: (H, W, 3) float32 in [0, 1], what the model saw.
    logits: (K,).
  """

  file: Path
  folder: Path
  picture: Image.Image
  place: Placement
  pixels: np.ndarray
  logits: np.ndarray

  @property
  def probabilities(self) -> np.ndarray:
    """Softmax of the logits, the sigmoid of a single one; float64 (K,)."""
    logits = self.logits.astype(np.float64)
    logits = np.append(0, logits) if len(logits) == 1 else logits  # a yes against a no
    shares = np.exp(logits - logits.max())
    return shares[-len(self.logits) :] / shares.sum()


@dataclasses.dataclass(frozen=True)
class Finding:
  """One method's answer for one class.

  Attributes:
    method: name of the registry.
    target: class number.
    saliency: (H, W) float32 in [0, 1].
    constant: whether the method found nothing.
    seconds: of the method, a picture; the first batch includes compilation.
    queries: passes through the model, a picture.
    curves: insertion and deletion, None where not asked for.
  """

  method: str
  target: int
  saliency: np.ndarray
  constant: bool
  seconds: float
  queries: int
  curves: Curves | None


def write_result(
  result: PictureResult,
  findings: Sequence[Finding],
  command: Command,
  classifier: Classifier,
  layer: str | None = None,
) -> str:
  """Writes overlays, raw maps, figures and explanation.json.

  Args:
    result: the picture.
    findings: of every method and class.
    command: what was asked for.
    classifier: for class names and the baseline of the animation.
    layer: what the CAM methods looked at.

  Returns:
    A line for the terminal.

  Raises:
    WriteError: the folder cannot be written.
  """
  names = classifier.class_names
  targets = list(dict.fromkeys(finding.target for finding in findings))
  entries = []
  for finding in findings:
    tag = f'_top{targets.index(finding.target) + 1}' if len(targets) > 1 else ''
    entries.append(_write_finding(result, finding, f'{finding.method}{tag}', names, layer))
    if command.animate:
      _animate(result, finding, f'{finding.method}{tag}_insertion.gif', classifier)
  for number, target in enumerate(targets, 1):
    tag = f'_top{number}' if len(targets) > 1 else ''
    of_target = [finding for finding in findings if finding.target == target]
    _write_figures(result, of_target, tag, command, names)
  write_json(result.folder / 'explanation.json', _summary(result, entries, command, names, layer))
  return f'{result.file}: {_decision(result, targets, command, names)} -> {result.folder}'


def _decision(
  result: PictureResult, targets: Sequence[int], command: Command, names: Sequence[str]
) -> str:
  """The classes that were explained, and the one that the model chose."""

  def said(number: int) -> str:
    return f'{names[number]} ({result.probabilities[number]:.1%})'

  best = int(np.argmax(result.logits))
  seen = Seen(result.picture, result.place, result.pixels)
  text = ', '.join(map(said, targets)) + part_seen(seen.share)
  if best not in targets:
    return f'{text}, predicted {said(best)}'
  asked = len(targets) == 1 and command.target != 'predicted'
  return f'{text}, as predicted' if asked else text


def _write_finding(
  result: PictureResult, finding: Finding, stem: str, names: Sequence[str], layer: str | None
) -> dict[str, Any]:
  file = f'{stem}{suffix_for(result.picture.size)}'
  marked = overlay(result.picture, figures.for_eyes(finding.method, finding.saliency), result.place)
  write_picture(result.folder / file, marked, ADVICE)
  write_array(result.folder / f'{stem}.npy', finding.saliency)
  curves = finding.curves
  return {
    'method': finding.method,
    'layer': layer if METHODS[finding.method].needs_layer else None,
    'target': _named(finding.target, result, names),
    'seconds': round(finding.seconds, 4),
    'queries': finding.queries,
    'constant': finding.constant,
    'insertion_auc': None if curves is None else float(curves.insertion_auc),
    'deletion_auc': None if curves is None else float(curves.deletion_auc),
    'overlay': file,
    'map': f'{stem}.npy',
  }


def _named(number: int, result: PictureResult, names: Sequence[str]) -> dict[str, Any]:
  probability = float(result.probabilities[number])
  return {'class': names[number], 'index': number, 'probability': probability}


def _summary(
  result: PictureResult,
  entries: list[dict],
  command: Command,
  names: Sequence[str],
  layer: str | None,
) -> dict[str, Any]:
  best = np.argsort(-result.logits, kind='stable')[:_LISTED]
  return {
    'picture': str(result.file),
    'width': result.picture.width,
    'height': result.picture.height,
    'model': command.model,
    'layer': layer,
    'seed': command.seed,
    'seen_by_the_model': dict(result.place._asdict(), input_size=result.pixels.shape[0]),
    'target': command.target,
    'most_probable': [_named(int(number), result, names) for number in best],
    'explanations': entries,
  }


def _heading(result: PictureResult, target: int, names: Sequence[str]) -> str:
  share = result.probabilities[target]
  file, name = literal(result.file.name, _LONGEST), literal(names[target], _LONGEST)
  return f'{file}: class {name}, probability {share:.3f}'


def _write_figures(
  result: PictureResult,
  findings: Sequence[Finding],
  tag: str,
  command: Command,
  names: Sequence[str],
) -> None:
  heading = _heading(result, findings[0].target, names)
  curves = {f.method: f.curves for f in findings if f.curves is not None}
  aucs = {m: (float(c.insertion_auc), float(c.deletion_auc)) for m, c in curves.items()}
  if command.curves:
    lines = {
      m: (np.asarray(c.insertion), np.asarray(c.deletion), np.asarray(c.share))
      for m, c in curves.items()
    }
    figure = figures.curves_figure(lines, aucs, heading)
    figures.save_figure(result.folder / f'curves{tag}.png', figure)
  if len(findings) > 1:
    panels = [
      figures.Panel(figures.for_eyes(f.method, f.saliency), _panel_title(f, aucs)) for f in findings
    ]
    figure = figures.comparison_figure(result.picture, panels, result.place, heading)
    figures.save_figure(result.folder / f'comparison{tag}.png', figure)


def _panel_title(finding: Finding, aucs: dict[str, tuple[float, float]]) -> str:
  insertion, deletion = aucs[finding.method]
  found = 'nothing found' if finding.constant else f'ins. {insertion:.3f}, del. {deletion:.3f}'
  return f'{literal(figures.title_of(finding.method))}\n{found}'


def _animate(result: PictureResult, finding: Finding, name: str, classifier: Classifier) -> None:
  """The insertion as the curve measured it, frame by frame."""
  assert finding.curves is not None
  curve = np.asarray(finding.curves.insertion)
  step = step_at(result.pixels.shape)
  baseline = np.asarray(fill_images(classifier, jnp.asarray(result.pixels)[None], 'blur'))[0]
  frames = figures.insertion_frames(result.pixels, baseline, finding.saliency, step)
  target = literal(classifier.class_names[finding.target])
  title = f'{literal(figures.title_of(finding.method))}, class {target}'
  share = np.asarray(finding.curves.share)
  heading = f'{title}: insertion AUC {float(finding.curves.insertion_auc):.3f}'
  figures.write_insertion(result.folder / name, frames, share, curve, heading)


def draw_strip(
  result: PictureResult,
  target: int,
  options: Mapping[str, Mapping[str, Any]],
  classifier: Classifier,
  seed: int,
  name: str,
) -> None:
  """Draws a class's strip: cascading re-initialisation, the last layer first (arXiv 1810.03292).

  Args:
    result: the picture.
    target: the class that the maps explain.
    options: what each method is called with.
    classifier: the model.
    seed: of the new weights.
    name: of the file.

  Raises:
    UserError: the folder cannot be written.
  """
  key, targets = jax.random.key(seed), np.array([target], np.int32)
  strips = {
    method: figures.panels(
      sanity_check(classifier, result.pixels[None], method, targets, key=key, **chosen)
    )
    for method, chosen in options.items()
  }
  file = literal(result.file.name, _LONGEST)
  about = '' if name == 'sanity.png' else f', class {literal(classifier.class_names[target])}'
  heading = f'{file}{about}: layers re-initialised one after the other, the last one first'
  figure = figures.sanity_figure(result.picture, strips, result.place, heading)
  figures.save_figure(result.folder / name, figure)
