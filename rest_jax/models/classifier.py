"""A model with its weights and with all it takes to go from pixels to class names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import module as linen_module
from jax.core import Tracer
from PIL import Image

from rest_jax import hub, ops
from rest_jax.errors import UserError, as_line
from rest_jax.models import imagenet, model_dir, predictions, pytorch, registry
from rest_jax.models.model_config import ModelConfig, freeze, freeze_overrides, published_view
from rest_jax.models.summary import summary
from rest_jax.ops.platform import jit
from rest_jax.text import plural

# Options that say how a model runs, not which it is: a model directory does not keep them.
_RUNTIME = ('dtype', 'bn_axis_name', 'remat')
_RIGHT: set[tuple[Any, ...]] = set()  # shapes and dtypes of which an array was in range
_FAR_BEYOND = 10  # of [0, 1]; a picture of 0 to 255 without a level above it is black


@dataclasses.dataclass(frozen=True, repr=False)
class Classifier:
  """A function from images in [0, 1] to logits, and a pytree whose leaves are the weights.

  Normalisation is inside, so whatever looks at the images (masks, attacks, denoisers) speaks
  pixels. A classifier may be an argument of jitted, differentiated and vectorised functions; called
  outside of them it compiles itself, once for each shape of images.

  Attributes:
    module: Linen module, called as `module.apply(variables, normalised, train=False)`.
    variables: its variables; the only leaves.
    config: model name and options, mean and std, input size and resize policy.
    class_names: one a class.
  """

  module: nn.Module
  variables: Any
  config: ModelConfig
  class_names: tuple[str, ...]

  def __repr__(self) -> str:
    return summary(self)

  @classmethod
  def create(
    cls,
    model: str,
    variables: Any,
    *,
    num_classes: int,
    overrides: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    **config: Any,
  ) -> Classifier:
    """Bundles trained variables.

    Args:
      model: name of the registry.
      variables: as `module.init` gives them.
      num_classes: outputs of the model.
      overrides: what `create_model` got beside; those of runtime (dtype, remat, bn_axis_name) are
        left out.
      class_names: one a class; '0', '1', ... by default.
      **config: other attributes of `ModelConfig`: mean, std, input_size, resize, crop_pct,
        interpolation.

    Returns:
      The classifier.

    Raises:
      UserError: an unknown model or option, or a wrong number of class names.
    """
    kept = {k: freeze(v) for k, v in (overrides or {}).items() if k not in _RUNTIME}
    module = registry.create_model(model, num_classes, **kept)
    config |= {'overrides': freeze_overrides(kept)}
    frozen = {name: freeze(value) for name, value in config.items()}
    names = check_text(map(str, range(num_classes)) if class_names is None else class_names)
    if len(names) != num_classes:
      raise UserError(f'{plural(len(names), "class name")} for {plural(num_classes, "class")}')
    return cls(module, variables, ModelConfig(model, int(num_classes), **frozen), names)

  @classmethod
  def load(
    cls,
    name: str | os.PathLike[str],
    architecture: str | None = None,
    *,
    ema: bool = False,
    head_advice: Any = None,
  ) -> Classifier:
    """Opens a model, whatever holds it; every script opens `--model` so.

    Args:
      name: a model directory, the work directory of a training, the name of a model of the zoo, or
        a PyTorch checkpoint (see `from_pytorch`), or 'hf://owner/name', a model directory on the
        Hugging Face Hub ('hf://owner/name@revision' for one state of it).
      architecture: of a checkpoint: name of the registry; by default what its file is called.
      ema: of a checkpoint: take its averaged weights.
      head_advice: of a checkpoint: as in `from_pytorch`.

    Returns:
      The classifier, weights in float32.

    Raises:
      UserError: there is none of that name, a file of it is damaged or does not fit, weights are
        not finite, or `architecture` or `ema` for what is no checkpoint.
    """
    if not hub.is_remote(name) and (file := model_dir.checkpoint(name)) is not None:
      return cls.from_pytorch(file, model=architecture, ema=ema, head_advice=head_advice)
    directory = model_dir.resolve(hub.fetch(name) if hub.is_remote(name) else name)
    if architecture is not None or ema:
      raise UserError(
        f'architecture and ema are for checkpoints such as rest_small.pth; {name} is a model '
        'directory, which says itself what it holds: leave them out'
      )
    return cls._from_directory(directory)

  @classmethod
  def _from_directory(cls, directory: Path) -> Classifier:
    config = model_dir.read_config(directory)
    try:
      module = registry.create_model(config.model, config.num_classes, **dict(config.overrides))
      away = model_dir.is_packaged(directory)
      expected = {} if away else model_dir.abstract_tensors(module)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
      # UserError, and whatever else a module makes of options that are nonsense.
      raise UserError(
        f'{directory / model_dir.CONFIG} describes no model: {as_line(error)}'
      ) from error
    if away:
      return cls(module, _packaged(directory, module), config, imagenet.words())
    names = model_dir.read_labels(directory, config.num_classes)
    return cls(module, model_dir.read_variables(directory, expected), config, names)

  @classmethod
  def from_pytorch(
    cls,
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    num_classes: int | None = None,
    drop_head: bool = False,
    ema: bool = False,
    class_names: Sequence[str] | None = None,
    head_advice: Any = None,
  ) -> Classifier:
    """Reads a published PyTorch checkpoint, to be evaluated as its authors did.

    Args:
      path: `.pth` and the like, or `.safetensors`.
      model: name of the registry; by default the file's name without its ending.
      num_classes: classes of the model; by default those of the file's head.
      drop_head: initialise the head anew instead of taking the file's; for as many classes as there
        are class names, or 1000, where their number is not given.
      ema: take averaged weights.
      class_names: one a class; by default ImageNet's words for 1,000 classes of the file's own
        head, else '0', '1', ...
      head_advice: a `pytorch.HeadAdvice` for errors about the head; speaks of these arguments by
        default.

    Returns:
      The classifier.

    Raises:
      UserError: a bad file, one of another model, or weights that are not finite.
    """
    model = Path(path).name.split('.')[0] if model is None else model
    if model not in registry.list_models():
      raise UserError(
        f'which model is {path}? Say its architecture (--architecture), one of {_models()}'
      )
    state_dict = pytorch.load_state_dict(path, ema=ema)
    if num_classes is None and not drop_head:
      num_classes = pytorch.count_classes(state_dict, registry.create_model(model))
    if num_classes is None:
      num_classes = 1000 if class_names is None else len(class_names)
    module = registry.create_model(model, num_classes)
    advice = {} if head_advice is None else {'head_advice': head_advice}
    try:
      variables = pytorch.from_pytorch(state_dict, module, drop_head=drop_head, **advice)
    except UserError as error:
      raise UserError(f'{path} is not a checkpoint of {model}: {error}') from error
    if class_names is None and num_classes == imagenet.CLASSES and not drop_head:
      class_names = imagenet.words()
    view = published_view(model)
    return cls.create(model, variables, num_classes=num_classes, class_names=class_names, **view)

  def save(
    self,
    directory: str | os.PathLike[str],
    *,
    card: str = '',
    dtype: str = 'float32',
    overwrite: bool = True,
  ) -> None:
    """Writes the model directory: config.json, model.safetensors, labels.txt, README.md.

    It is written beside its place and renamed: an existing model directory is replaced once the
    new one is complete, and files of it that are not ours stay.

    Args:
      directory: where.
      card: the text of README.md, with measured results; a line by default.
      dtype: 'float32', or 'bfloat16' or 'float16' for half the size (weights are rounded).
      overwrite: whether an existing model directory may be replaced.

    Raises:
      UserError: the model is not in the registry, the variables are another model's, or the place
        cannot be written.
    """
    if self.config.model not in registry.list_models():
      raise UserError(f'{self.config.model!r} is not in the registry, so it could not be loaded')
    wrong = model_dir.misfits(
      model_dir.shapes(model_dir.abstract_tensors(self.module)),
      model_dir.shapes(model_dir.flatten(self.variables)),
    )
    if wrong:
      raise UserError(f'the variables are not those of {self.config.model}: {wrong}')
    model_dir.write(
      directory,
      self.config,
      self.variables,
      self.class_names,
      card=card or f'# {self.config.model}\n\n{plural(self.config.num_classes, "class")}.\n',
      dtype=dtype,
      overwrite=overwrite,
    )

  def export(self, path: str | os.PathLike[str], **options: Any) -> Path:
    """Writes a program that gives these logits without this library: `.stablehlo` or `.onnx`.

    Args:
      path: the file; what goes in and comes out is told in `<path>.json`.
      **options: of `rest_jax.export.export`.

    Returns:
      The path.

    Raises:
      UserError: as `rest_jax.export.export`.
    """
    from rest_jax.export import export

    return export(self, path, **options)

  def push_to_hub(self, repository: str, **options: Any) -> str:
    """Uploads the model directory to a repository of the Hugging Face Hub.

    Args:
      repository: 'owner/name'; made where it is not there.
      **options: of `rest_jax.hub.push`.

    Returns:
      What `Classifier.load` and `--model` take: 'hf://owner/name'.

    Raises:
      UserError: as `rest_jax.hub.push`.
    """
    return hub.push(self, repository, **options)

  def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Logits.

    Args:
      images: floats (B, H, W, C) in [0, 1], of any size that the model takes.

    Returns:
      float32 (B, K).

    Raises:
      UserError: another rank, channel count or dtype, or levels of 0 to 255.
    """
    return self._apply(images, '__call__').astype(jnp.float32)

  def features(self, images: jax.Array | np.ndarray) -> tuple[jax.Array, ...]:
    """The maps after each stage, NHWC; arguments and errors as `__call__`."""
    return self._apply(images, 'features')

  def normalise(self, images: jax.Array | np.ndarray) -> jax.Array:
    """What the module gets: images without mean and deviation, float32; errors as `__call__`."""
    self._check_images(images)
    return _normalise(images, (self.config.mean, self.config.std))

  def _check_images(self, images: Any) -> None:
    channels, dtype = len(self.config.mean), getattr(images, 'dtype', None)
    shape = tuple(np.shape(images))
    is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if len(shape) != 4 or shape[-1] != channels or not is_float:
      raise UserError(
        f'a classifier takes floats in [0, 1] of shape (B, H, W, {channels}), got {dtype} {shape}; '
        'pixels of 0 to 255 are divided by 255 first, a single image gets a leading axis'
      )
    check_scale(images)

  def preprocess(self, image: Image.Image | np.ndarray) -> np.ndarray:
    """A picture as this classifier was evaluated on it.

    Args:
      image: a Pillow image of any mode and size, or a uint8 array (H, W) or (H, W, 1|3|4).

    Returns:
      float32 (1, input_size, input_size, 3) in [0, 1].

    Raises:
      UserError: what is no image, or too elongated.
    """
    return predictions.preprocess(
      image,
      size=self.config.input_size,
      resize=self.config.resize,
      crop_pct=self.config.crop_pct,
      interpolation=self.config.interpolation,
    )

  def predict(
    self, pictures: Any, *, top: int = 5, batch_size: int = predictions.BATCH_SIZE
  ) -> list[predictions.Prediction]:
    """The most probable classes of pictures: files, folders, images or arrays.

    Arguments, results and errors as `rest_jax.models.predictions.predict`.
    """
    return predictions.predict(self, pictures, top=top, batch_size=batch_size)

  def views(self, pictures: Any) -> list[predictions.View]:
    """Pictures as this classifier will see them, one by one; none is read yet.

    Args:
      pictures: as `predict` takes them.

    Raises:
      UserError: none, a folder without any, or what is no picture.
    """
    return [predictions.View(self, source) for source in predictions.expand(pictures)]

  @property
  def mean(self) -> tuple[float, ...]:
    """Mean a channel, in [0, 1]."""
    return self.config.mean

  @property
  def std(self) -> tuple[float, ...]:
    """Deviation a channel, in [0, 1]."""
    return self.config.std

  @property
  def input_size(self) -> int:
    """Pixels a side that `preprocess` makes."""
    return self.config.input_size

  @property
  def num_classes(self) -> int:
    """Outputs; 0 without a head."""
    return self.config.num_classes

  def _apply(self, images, method: str) -> Any:
    self._check_images(images)
    config = (self.config.mean, self.config.std)
    if runs_alone(self.module, self.variables, images):
      return _compiled(self.variables, images, self.module, config, method, ops.form())
    return _forward(self.variables, images, self.module, config, method)


def _packaged(directory: Path, module: nn.Module) -> dict[str, Any]:
  """Variables of a model of the zoo whose weights another package has.

  Raises:
    UserError: the package is not installed, or its file does not fit.
  """
  path = model_dir.packaged_checkpoint(directory)
  try:
    return pytorch.from_pytorch(pytorch.load_state_dict(path), module)
  except UserError as error:
    raise UserError(f'{directory.name}: {path} does not fit: {error}') from error


def _normalise(images: Any, config: tuple[tuple[float, ...], tuple[float, ...]]) -> jax.Array:
  mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in config)
  return (jnp.asarray(images, jnp.float32) - mean) / std


def _forward(variables, images, module: nn.Module, config, method: str, form: str = '') -> Any:
  del form  # of `ops`; a compiled function must not be found again under another one
  return module.apply(variables, _normalise(images, config), train=False, method=method)


# Weights and images are its arguments, so what it keeps of a classifier is its description.
_compiled = jit(_forward, static_argnames=('module', 'config', 'method', 'form'))


def runs_alone(module: nn.Module, variables: Any, images: Any) -> bool:
  """Whether a call may compile by itself: nothing around it traces, or looks into the module."""
  if any(isinstance(x, Tracer) for x in (images, *jax.tree.leaves(variables))):
    return False
  if linen_module._global_interceptor_stack or linen_module._context.capture_stack:
    return False
  try:
    hash(module)
  except TypeError:
    return False  # a module of one's own with attributes that are no constants
  return True


def check_scale(images: Any) -> None:
  """Refuses pixels of 0 to 255 as floats, of which a model says something like of any others.

  On an accelerator they are looked at until one of a shape was right, for which a program is
  compiled anyway: to look at each would empty the queue of what the device has to do.

  Args:
    images: arrays of any dtype.

  Raises:
    UserError: floats far beyond 1; what a filter or noise overshoots passes.
  """
  parts = _parts_at_hand(images)
  most = max((float(part.max()) for part in parts if part.size), default=0.0)
  if most > _FAR_BEYOND:
    raise UserError(
      f'images are floats in [0, 1], got values up to {most:g}; pixels of 0 to 255 are divided by '
      '255 first'
    )
  if parts and isinstance(images, jax.Array):
    _RIGHT.add((images.shape, images.dtype))


def _parts_at_hand(images: Any) -> list[np.ndarray]:
  """What `check_scale` looks at: an array's parts on this host, views where the device is a CPU."""
  if not isinstance(images, np.ndarray | jax.Array) or isinstance(images, Tracer):
    return []
  if not jnp.issubdtype(images.dtype, jnp.floating):
    return []
  if isinstance(images, np.ndarray):
    return [images]
  if not _on_cpu(images) and (images.shape, images.dtype) in _RIGHT:
    return []
  return [np.asarray(shard.data) for shard in images.addressable_shards]


def _on_cpu(array: jax.Array) -> bool:
  return all(device.platform == 'cpu' for device in array.devices())


def _models() -> str:
  return ', '.join(registry.list_models())


def check_text(names: Iterable[str]) -> tuple[str, ...]:
  """Refuses class names that a model directory cannot hold.

  Args:
    names: one a class.

  Returns:
    The names.

  Raises:
    UserError: they are one text, whose letters would be the names; or a name is no text, is empty,
      has several lines, or no UTF-8 (as a folder's can be).
  """
  if isinstance(names, str):
    raise UserError(f'class names are a list, one a class, not the text {names[:40]!r}')
  found = tuple(names)
  for name in found:
    if not isinstance(name, str) or len(name.splitlines()) != 1:
      raise UserError(f'a class name is one line of text, unlike {name!r}')
    try:
      name.encode()
    except UnicodeEncodeError as error:
      raise UserError(
        f'the class name {name!r} is not UTF-8, so no file can hold it: rename the folder'
      ) from error
  return found


jax.tree_util.register_dataclass(
  Classifier, data_fields=['variables'], meta_fields=['module', 'config', 'class_names']
)
