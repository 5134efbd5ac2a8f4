"""Detectors and segmenters with their weights: from a picture to boxes, masks, pixels' classes."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from rest_jax import hub
from rest_jax.data.canvas import smallest_canvas
from rest_jax.data.dense_batches import View
from rest_jax.data.images import read_image
from rest_jax.errors import UserError
from rest_jax.models import dense_registry, model_dir, predictions
from rest_jax.models.classifier import check_scale, check_text, runs_alone
from rest_jax.models.dense import Detections, check_sizes, normalise
from rest_jax.models.dense_config import KINDS, DenseConfig
from rest_jax.models.dense_question import Question, class_number
from rest_jax.models.model_config import freeze, freeze_overrides
from rest_jax.models.summary import summary
from rest_jax.ops import paste_masks
from rest_jax.ops.platform import jit
from rest_jax.text import plural

_RUNTIME = ('dtype', 'axis_name', 'bn_axis_name', 'remat')


@dataclasses.dataclass(frozen=True)
class Objects:
  """What a detector found on one picture, by falling score.

  Attributes:
    boxes: float32 (D, 4), corners in pixels of the picture.
    scores: float32 (D,) in [0, 1].
    labels: int32 (D,).
    masks: bool (D, H, W) of the picture; None of a detector of boxes.
  """

  boxes: np.ndarray
  scores: np.ndarray
  labels: np.ndarray
  masks: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class _Dense:
  """A module with its variables; a pytree whose leaves are the weights.

  Attributes:
    module: Linen module of `create_detector` or `create_segmenter`.
    variables: its variables; the only leaves.
    config: model, options, mean and std, sizes and canvases.
    class_names: one a class.
  """

  module: nn.Module
  variables: Any
  config: DenseConfig
  class_names: tuple[str, ...]

  KIND = ''

  def __repr__(self) -> str:
    return summary(self)

  @classmethod
  def create(
    cls,
    model: str,
    variables: Any,
    class_names: Sequence[str],
    *,
    backbone: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    **config: Any,
  ) -> Any:
    """Bundles trained variables.

    Args:
      model: a name of `list_detectors()` or `list_segmenters()`.
      variables: as `module.init` gives them.
      class_names: one a class, those of pixels with the background's where there is one.
      backbone: what `create_detector` got for the backbone.
      overrides: what it got beside; options of runtime (dtype, axis names) are left out.
      **config: other attributes of `DenseConfig`: mean, std, short, long, canvases.

    Returns:
      The detector or segmenter.

    Raises:
      UserError: an unknown model or option.
    """
    names = check_text(class_names)
    kept, below = (
      {k: freeze(v) for k, v in (options or {}).items() if k not in _RUNTIME}
      for options in (overrides, backbone)
    )
    frozen = {name: freeze(value) for name, value in config.items()}
    described = DenseConfig(
      cls.KIND,
      model,
      len(class_names),
      freeze_overrides(below),
      freeze_overrides(kept),
      **frozen,
    )
    return cls(dense_registry.build(described), variables, described, names)

  @classmethod
  def load(cls, name: str | os.PathLike[str]) -> Any:
    """Opens a model directory, the work directory of a training, or a model of the zoo.

    Args:
      name: which; or 'hf://owner/name', a model directory on the Hugging Face Hub.

    Returns:
      The detector or segmenter, weights in float32.

    Raises:
      UserError: there is none of that name, it holds a model of another kind, or a file of it is
        damaged or does not fit.
    """
    directory = _directory(name)
    path = directory / model_dir.CONFIG
    try:
      config = DenseConfig.from_json(path.read_text(encoding='utf-8-sig'))
      if config.kind != cls.KIND:
        raise UserError(f'it describes a {config.kind}, not a {cls.KIND}')
      module, expected = dense_registry.described(config)
    except (OSError, UnicodeDecodeError, UserError) as error:
      raise UserError(f'{path}: {error}') from error
    names = model_dir.read_labels(directory, config.num_classes)
    return cls(module, model_dir.read_variables(directory, expected), config, names)

  def save(
    self,
    directory: str | os.PathLike[str],
    *,
    card: str = '',
    dtype: str = 'float32',
    overwrite: bool = True,
  ) -> None:
    """Writes the model directory: config.json, model.safetensors, labels.txt, README.md.

    Args:
      directory: where; an existing model directory is replaced once the new one is complete.
      card: the text of README.md, with measured results; a line by default.
      dtype: of the stored weights: 'float32', 'bfloat16' or 'float16'.
      overwrite: whether an existing model directory may be replaced.

    Raises:
      UserError: the variables are another model's, or the place cannot be written.
    """
    wrong = model_dir.misfits(
      model_dir.shapes(model_dir.abstract_tensors(self.module)),
      model_dir.shapes(model_dir.flatten(self.variables)),
    )
    if wrong:
      raise UserError(f'the variables are not those of {self.config.model}: {wrong}')
    line = f'# {self.config.model}\n\n{plural(self.config.num_classes, "class")}.\n'
    model_dir.write(
      directory,
      self.config,  # pyright: ignore[reportArgumentType]
      self.variables,
      self.class_names,
      card=card or line,
      dtype=dtype,
      overwrite=overwrite,
    )

  def push_to_hub(self, repository: str, **options: Any) -> str:
    """Uploads the model directory to a repository of the Hugging Face Hub.

    Args:
      repository: 'owner/name'; made where it is not there.
      **options: of `rest_jax.hub.push`.

    Returns:
      What `load` and `--model` take: 'hf://owner/name'.

    Raises:
      UserError: as `rest_jax.hub.push`.
    """
    return hub.push(self, repository, **options)  # pyright: ignore[reportArgumentType]

  def __call__(self, images: jax.Array | np.ndarray, sizes: Any = None) -> Any:
    """What the module gives for canvases in [0, 1].

    Args:
      images: floats (B, H, W, 3) in [0, 1] or uint8, canvases padded with anything.
      sizes: (B, 2) height and width of each picture in its canvas; the whole canvas by default.

    Returns:
      `Detections` of a detector, float32 logits (B, H, W, K) of a segmenter.

    Raises:
      UserError: another rank or channel count, floats of 0 to 255, or sizes beyond the canvas.
    """
    check_scale(images)
    check_sizes(images, sizes)
    if runs_alone(self.module, self.variables, images):
      return _forward(self.variables, images, sizes, self.module, self.config)
    return _apply(self.variables, images, sizes, self.module, self.config)

  @property
  def mean(self) -> tuple[float, ...]:
    """Mean a channel, in [0, 1]."""
    return self.config.mean

  def view(self, picture: Any) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """A picture on its canvas.

    Args:
      picture: a file, a Pillow image or a uint8 array (H, W, 3).

    Returns:
      (1, H', W', 3) uint8; (h, w) of the picture in it; (H, W) of the picture itself.
    """
    pixels = _pixels(picture)
    look = View(self.config.short, self.config.long, self.config.canvases)
    seen = look({'image': pixels})['image']
    canvas = smallest_canvas(seen.shape[:2], self.config.canvases)
    padded = np.zeros((1, *canvas, 3), np.uint8)
    padded[0, : seen.shape[0], : seen.shape[1]] = seen
    return padded, seen.shape[:2], pixels.shape[:2]

  def _question(self, label: int, where: np.ndarray, seen: Any, size: Any) -> Question:
    """What `question` gives beside the canvas."""
    rows = [np.array(pair, np.int32) for pair in (seen, size)]
    return Question(self.module, self.config, self.variables, np.int32(label), where, *rows)


def _pixels(picture: Any) -> np.ndarray:
  """(H, W, 3) uint8 of a file, an image or an array, upright and in sRGB."""
  if isinstance(picture, str | os.PathLike):
    return read_image(Path(picture))
  if isinstance(picture, Image.Image):
    return np.asarray(predictions.read(picture))
  array = np.asarray(picture)
  if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
    raise UserError(
      f'a picture is a file, a Pillow image or a uint8 array (H, W, 3), not {array.dtype} '
      f'{array.shape}'
    )
  if not array.size:
    raise UserError('the image has no pixels')
  return array


def _apply(variables: Any, images: Any, sizes: Any, module: nn.Module, config: DenseConfig) -> Any:
  """Normalises canvases and asks the module."""
  limits = None if sizes is None else jnp.asarray(sizes, jnp.int32)
  pixels = normalise(jnp.asarray(images), limits, config.mean, config.std)
  if config.kind == 'detector':
    return module.apply(variables, pixels, train=False, sizes=limits)
  return module.apply(variables, pixels, train=False)


_forward = jit(_apply, static_argnames=('module', 'config'))


@dataclasses.dataclass(frozen=True, repr=False)
class Detector(_Dense):
  """A detector with its weights; see `_Dense`. Called with images it gives `Detections`.

  Explanations and attacks take what it says of one place, `question`.
  """

  KIND = 'detector'

  def predict(self, picture: Any, *, least_score: float = 0.0) -> Objects:
    """Finds the objects of a picture.

    Args:
      picture: a file, a Pillow image or a uint8 array (H, W, 3) of any size.
      least_score: results under it are left out; from 0 to 1.

    Returns:
      The objects, in pixels of the picture.

    Raises:
      UserError: what is no picture, another least score, or outputs that are no numbers.
    """
    if not isinstance(least_score, int | float | np.number) or not 0 <= least_score <= 1:
      raise UserError(f'least_score is a number from 0 to 1, not {least_score!r}')
    canvas, seen, size = self.view(picture)
    found = jax.device_get(self(canvas, np.array([seen], np.int32)))
    _check_finite(found.scores)
    return objects_of(found, 0, seen, size, least_score)

  def question(self, picture: Any, found: Objects, index: int = 0) -> tuple[np.ndarray, Question]:
    """Is one of the objects there? What explanations and attacks ask of a detector.

    `images, question = detector.question('photo.jpg', detector.predict('photo.jpg'), 0)`, then
    `explain.group_cam(question, images)`, or `attacks.pgd(question, images, [1], ...)`, whose label
    says that it is there.

    Args:
      picture: as `predict` takes it.
      found: what `predict` found on it, or `Objects` of your own.
      index: which of them.

    Returns:
      The canvas, float32 (1, H, W, 3) in [0, 1], and a function of such to one logit (B, 1), whose
      sigmoid is the object's score.

    Raises:
      UserError: what is no picture, or no such object.
    """
    if not -len(found.boxes) <= index < len(found.boxes):
      raise UserError(f'there is no object {index}: {plural(len(found.boxes), "object")} was found')
    canvas, seen, size = self.view(picture)
    scale = np.array([seen[1] / size[1], seen[0] / size[0]] * 2, np.float32)
    label = class_number(int(found.labels[index]), self.class_names)
    box = np.asarray(found.boxes[index], np.float32) * scale
    return _floats(canvas), self._question(label, box, seen, size)


def _floats(canvas: np.ndarray) -> np.ndarray:
  """A canvas in [0, 1]."""
  return canvas.astype(np.float32) / np.float32(255)


def objects_of(
  found: Detections,
  row: int,
  seen: tuple[int, int],
  size: tuple[int, int],
  least_score: float = 0.0,
) -> Objects:
  """One picture's results in its own pixels.

  Args:
    found: of a batch, on the host.
    row: which picture.
    seen: (h, w) of it on the canvas.
    size: (H, W) of it.
    least_score: results under it are left out.
  """
  there, scores, labels = (np.asarray(x[row]) for x in (found.valid, found.scores, found.labels))
  kept = there & (scores >= least_score)
  scale = np.array([size[1] / seen[1], size[0] / seen[0]] * 2, np.float32)
  limits = np.array([size[1], size[0]] * 2, np.float32)
  boxes = np.clip(np.asarray(found.boxes[row])[kept] * scale, 0, limits)
  masks = None
  if found.masks is not None:
    frames: Any = np.asarray(found.masks[row])[kept]
    corners: Any = boxes
    masks = np.zeros((len(frames), *size), bool)
    for i in range(len(frames)):  # one at a time: a hundred planes of a photograph are 400 MB
      masks[i] = np.asarray(paste_masks(frames[i : i + 1], corners[i : i + 1], size))[0] >= 0.5
  return Objects(boxes, scores[kept], labels[kept], masks)


@dataclasses.dataclass(frozen=True, repr=False)
class Segmenter(_Dense):
  """A segmenter with its weights; see `_Dense`. Called with images it gives logits of pixels."""

  KIND = 'segmenter'

  def predict(self, picture: Any) -> np.ndarray:
    """The class of every pixel of a picture.

    Args:
      picture: a file, a Pillow image or a uint8 array (H, W, 3) of any size.

    Returns:
      (H, W) int32, 0..K - 1.

    Raises:
      UserError: what is no picture, or logits that are no numbers.
    """
    canvas, seen, size = self.view(picture)
    logits = np.asarray(self(canvas, np.array([seen], np.int32)))[0]
    _check_finite(logits)
    return enlarge_to(logits[: seen[0], : seen[1]], size).argmax(-1).astype(np.int32)

  def question(
    self, picture: Any, label: int | str, mask: np.ndarray | None = None
  ) -> tuple[np.ndarray, Question]:
    """Are these pixels of that class? What explanations and attacks ask of a segmenter.

    Args:
      picture: as `predict` takes it.
      label: the class, by its name or number.
      mask: (H, W) bool of the picture, the pixels that are asked about; by default those that the
        segmenter gives the class to.

    Returns:
      As `Detector.question`; the sigmoid of the logit is the mean over those pixels of their
      probability of the class.

    Raises:
      UserError: what is no picture, no such class, a mask of another shape, or without a pixel.
    """
    number = class_number(label, self.class_names)
    if len(self.class_names) == 1:
      raise UserError('the segmenter has one class, which every pixel is of: nothing to ask')
    canvas, seen, size = self.view(picture)
    asked: Any = self.predict(picture) == number if mask is None else np.asarray(mask)
    if asked.shape != size or asked.dtype != bool:
      raise UserError(f'mask is bool {size} as the picture, got {asked.dtype} {asked.shape}')
    if not asked.any():
      name = self.class_names[number]
      what = f'no pixel is {name} here' if mask is None else 'the mask has no pixel'
      raise UserError(f'{what}: give the mask of the pixels that are asked about')
    share = np.zeros(canvas.shape[1:3], np.float32)
    share[: seen[0], : seen[1]] = _shares(asked, seen)
    return _floats(canvas), self._question(number, share, seen, size)


def _shares(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """How much of a mask lies in each pixel of another size, their sum 1."""
  picture = Image.fromarray(mask.astype(np.float32))
  shares = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BOX))
  return shares / shares.sum()


def enlarge_to(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Bilinear resizing of (h, w, K) to (H, W, K) at pixel centres, without antialiasing.

  As mmsegmentation brings logits to the size that is judged (align_corners False).
  """
  for axis, side in enumerate(size):
    n = values.shape[axis]
    if n == side:
      continue
    at = np.clip((np.arange(side) + 0.5) * n / side - 0.5, 0, n - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, n - 1)
    shape = [1] * values.ndim
    shape[axis] = side
    share = (at - low).astype(np.float32).reshape(shape)
    values = np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
  return values


def _check_finite(values: Any) -> None:
  """Raises `UserError` for outputs that say nothing, which would look like an empty picture."""
  if not np.isfinite(values).all():
    raise UserError('the model gives outputs that are not finite: its weights may have diverged')


def _directory(name: str | os.PathLike[str]) -> Path:
  """The model directory of a name, brought here from the Hub where it is there."""
  return model_dir.resolve(hub.fetch(name) if hub.is_remote(name) else name)


def kind_at(name: str | os.PathLike[str]) -> str:
  """'detector' or 'segmenter' where a model directory holds one, else ''.

  Args:
    name: as `Detector.load` takes it, or a checkpoint, which holds a classifier.

  Raises:
    UserError: there is none of that name.
  """
  if not hub.is_remote(name) and model_dir.checkpoint(name) is not None:
    return ''
  try:
    fields = json.loads((_directory(name) / model_dir.CONFIG).read_text(encoding='utf-8-sig'))
  except (OSError, ValueError):
    return ''  # whoever opens it says what is wrong
  kind = fields.get('kind', '') if isinstance(fields, dict) else ''
  return kind if kind in KINDS else ''


def load_dense_model(name: str | os.PathLike[str]) -> Any:
  """The `Detector` or `Segmenter` of a name; errors as `Detector.load`."""
  return (Segmenter if kind_at(name) == 'segmenter' else Detector).load(name)


for _kind in (Detector, Segmenter):
  jax.tree_util.register_dataclass(
    _kind, data_fields=['variables'], meta_fields=['module', 'config', 'class_names']
  )
