"""Detectors and segmenters judged on a split: average precision, intersection over union."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.special import softmax

from rest_jax.data.batches import ERROR
from rest_jax.data.canvas import collate
from rest_jax.data.dense_batches import DenseEvalBatches, arrays
from rest_jax.data.geometry import flip, resize
from rest_jax.errors import UserError
from rest_jax.metrics import AveragePrecision, Confusion
from rest_jax.models.dense import MULTIPLE, normalise
from rest_jax.models.dense_model import Objects, enlarge_to, objects_of
from rest_jax.ops.platform import jit
from rest_jax.train.totals import NotFiniteError

AXIS = 'batch'
# (example, what was found on it: Objects, or classes (H, W)) for whoever draws.
Watcher = Callable[[dict[str, Any], Any], None]


def make_step(
  model: nn.Module, kind: str, mean: Sequence[float], std: Sequence[float], mesh: Mesh
) -> Callable[..., Any]:
  """Compiles (variables, images (B, H, W, 3) uint8, sizes (B, 2)) -> the model's outputs.

  The batch is shared over the devices of the mesh, which have to divide it.
  """

  def step(variables, images, sizes):
    pixels = normalise(images, sizes, tuple(mean), tuple(std))
    if kind == 'detector':
      return model.apply(variables, pixels, train=False, sizes=sizes)
    return jnp.asarray(model.apply(variables, pixels, train=False), jnp.float32)

  split = PartitionSpec(AXIS)
  mapped = jax.shard_map(
    step, mesh=mesh, in_specs=(PartitionSpec(), split, split), out_specs=split, check_vma=False
  )
  return jit(mapped)


def local_mesh(mesh: Mesh) -> Mesh:
  """The devices of this process; every process judges the whole split by itself."""
  return mesh if jax.process_count() == 1 else Mesh(np.asarray(jax.local_devices()), (AXIS,))


def replicated(variables: Any, mesh: Mesh) -> Any:
  """Weights on every device of a process's own mesh."""
  if jax.process_count() == 1:
    return variables
  return jax.device_put(jax.device_get(variables), NamedSharding(mesh, PartitionSpec()))


def judge_detector(
  step: Callable[..., Any],
  variables: Any,
  batches: DenseEvalBatches,
  class_names: Sequence[str],
  masks: bool,
  watch: Watcher | None = None,
) -> dict[str, Any]:
  """Average precision over a split, by pycocotools.

  Args:
    step: from `make_step`.
    variables: of the model.
    batches: of the split.
    class_names: the name of each label.
    masks: whether masks are judged beside the boxes.
    watch: called with each picture's truth and what was found.

  Returns:
    AP, AP50, AP75, AP_small, AP_medium, AP_large as shares, 'mask_AP' and so on with masks,
    'classes' with the AP of each, 'judged' of how many of them AP is the mean, and 'count' of the
    pictures.

  Raises:
    NotFiniteError: outputs that are no numbers.
    UserError: a picture or an annotation that cannot be read.
  """
  judge = AveragePrecision(class_names, masks=masks)
  for batch in checked(batches):
    found = jax.device_get(step(variables, batch['image'], batch['size']))
    _check_scores(found.scores, batch['examples'])
    for row, example in enumerate(batch['examples']):
      seen = tuple(int(side) for side in batch['size'][row])
      own = objects_of(found, row, seen, example['image'].shape[:2])  # pyright: ignore
      judge.add(example, _as_found(own, masks))
      if watch is not None:
        watch(example, own)
  figures = judge.figures()
  result = {name: value for name, value in figures['box'].items() if name != 'classes'}
  if masks:
    result |= {f'mask_{n}': value for n, value in figures['mask'].items() if n != 'classes'}
  classes = {kind: part['classes'] for kind, part in figures.items()}
  judged = int(np.count_nonzero(~np.isnan(list(classes['box'].values()))))
  return {**result, 'classes': classes, 'judged': judged, 'count': len(batches.source)}


def _as_found(own: Objects, masks: bool) -> dict[str, Any]:
  fields = {'boxes': own.boxes, 'scores': own.scores, 'labels': own.labels}
  return fields | ({'masks': own.masks} if masks else {})


def _check_scores(scores: np.ndarray, examples: list[dict[str, Any]]) -> None:
  wrong = [
    e.get('image_id') for e, row in zip(examples, scores, strict=False) if np.isnan(row).any()
  ]
  if wrong:
    raise NotFiniteError(
      f'the outputs for {len(wrong)} pictures are not finite ({", ".join(map(str, wrong[:5]))})'
    )


def judge_segmenter(
  step: Callable[..., Any],
  variables: Any,
  batches: DenseEvalBatches,
  class_names: Sequence[str],
  *,
  scales: Sequence[float] = (1.0,),
  mirrored: bool = False,
  watch: Watcher | None = None,
) -> dict[str, Any]:
  """Intersection over union over a split, judged at the pictures' own sizes.

  Args:
    step: from `make_step`.
    variables: of the model.
    batches: of the split.
    class_names: the name of each class.
    scales: factors of the size at which each picture is looked at; probabilities are averaged.
    mirrored: whether the mirror images are looked at too.
    watch: called with each picture's truth and its classes (H, W).

  Returns:
    miou, accuracy and mean_accuracy as shares, 'classes' with the IoU of each, 'judged' of how many
    of them miou is the mean, and 'count' of the pictures.

  Raises:
    NotFiniteError: logits that are no numbers.
    UserError: a picture or an annotation that cannot be read.
  """
  table = Confusion(len(class_names))
  for batch in checked(batches):
    classes = _segmented(step, variables, batches, batch, tuple(scales), mirrored)
    for example, own in zip(batch['examples'], classes, strict=True):
      table.add(example['segmentation'], own)
      if watch is not None:
        watch(example, own)
  found = table.figures()
  return {
    'miou': found.miou,
    'accuracy': found.accuracy,
    'mean_accuracy': found.mean_accuracy,
    'classes': dict(zip(class_names, found.iou.tolist(), strict=True)),
    'judged': found.judged,
    'count': len(batches.source),
  }


def _segmented(step, variables, batches, batch, scales, mirrored) -> list[np.ndarray]:
  """The classes of every picture of a batch, (H, W) each, from all its views."""
  examples = batch['examples']
  views = [
    (scale, turned) for scale in scales for turned in ((False, True) if mirrored else (False,))
  ]
  if views == [(1.0, False)]:
    return [logits.argmax(-1) for logits in _logits(step, variables, batch, examples)]
  sums: list[Any] = [0.0] * len(examples)
  for scale, turned in views:
    seen = _view(batches, batch, scale, turned)
    for i, logits in enumerate(_logits(step, variables, seen, examples)):
      shares = softmax(logits, axis=-1)
      sums[i] = sums[i] + (shares[:, ::-1] if turned else shares)
  return [total.argmax(-1) for total in sums]


def _logits(step, variables, batch, examples) -> Iterator[np.ndarray]:
  """Logits (H, W, K) of every picture at its own size."""
  found = np.asarray(step(variables, batch['image'], batch['size']))
  for row, example in enumerate(examples):
    height, width = (int(side) for side in batch['size'][row])
    own = found[row, :height, :width]
    if not np.isfinite(own).all():
      raise NotFiniteError(f'the logits of picture {example.get("image_id")} are not finite')
    yield enlarge_to(own, example['image'].shape[:2])


def _view(batches, batch, scale: float, turned: bool) -> dict[str, Any]:
  """The pictures of a batch at another scale, or mirrored, on a canvas of that scale."""
  canvas = batch['image'].shape[1:3]
  pictures = []
  for example in batch['examples']:
    size = batches.view.size(example['image'].shape[:2])
    height, width = (max(round(side * scale), 1) for side in size)
    picture = resize({'image': example['image']}, (height, width))
    pictures.append(flip(picture) if turned else picture)
  pictures += pictures[:1] * (len(batch['image']) - len(pictures))
  rows, columns = (-(-int(np.ceil(side * scale)) // MULTIPLE) * MULTIPLE for side in canvas)
  return arrays(collate(pictures, (rows, columns)))


def checked(batches: Any) -> Iterator[dict[str, Any]]:
  """Batches one after another.

  Raises:
    UserError: what went wrong in making one.
  """
  for number in range(len(batches)):
    batch = batches[number]
    if ERROR in batch:
      raise UserError(batch[ERROR])
    yield batch
