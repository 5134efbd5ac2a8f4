"""A model with its weights and with all it takes to go from pixels to class names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from rest_jax.errors import UserError
from rest_jax.models import imagenet, model_dir, packaged, preprocess, registry
from rest_jax.models import predict as predicting
from rest_jax.models.model_config import ModelConfig, freeze, freeze_overrides
from rest_jax.models.published_views import published_view

# Options that say how a model runs, not which it is: a model directory does not keep them.
_RUNTIME = ('dtype', 'bn_axis_name', 'remat')


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A function from images in [0, 1] to logits, and a pytree whose leaves are the weights.

  Normalisation is inside, so whatever looks at the images (masks, attacks, denoisers) speaks
  pixels. A classifier may be an argument of jitted, differentiated and vectorised functions.

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
    kept = {k: v for k, v in (overrides or {}).items() if k not in _RUNTIME}
    module = registry.create_model(model, num_classes, **kept)
    config |= {'overrides': freeze_overrides(kept)}
    frozen = {name: freeze(value) for name, value in config.items()}
    names = tuple(map(str, range(num_classes))) if class_names is None else tuple(class_names)
    _check_names(names, num_classes)
    return cls(module, variables, ModelConfig(model, num_classes, **frozen), names)

  @classmethod
  def load(cls, name: str | os.PathLike[str]) -> Classifier:
    """Reads a model directory.

    Args:
      name: its path, or the name of a model of the zoo.

    Returns:
      The classifier, weights in float32.

    Raises:
      UserError: there is none of that name, or a file of it is damaged or does not fit.
    """
    directory = model_dir.resolve(name)
    config = model_dir.read_config(directory)
    try:
      module = registry.create_model(config.model, config.num_classes, **dict(config.overrides))
      away = packaged.is_packaged(directory)
      expected = {} if away else model_dir.abstract_tensors(module)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
      # UserError, and whatever else a module makes of options that are nonsense.
      raise UserError(f'{directory / model_dir.CONFIG} describes no model: {error}') from error
    if away:
      variables, names = packaged.load(directory, module)
      return cls(module, variables, config, names)
    names = model_dir.read_labels(directory, config.num_classes)
    return cls(module, model_dir.read_variables(directory, expected), config, names)

  @classmethod
  def from_pytorch(
    cls,
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    num_classes: int = 1000,
    drop_head: bool = False,
    ema: bool = False,
    class_names: Sequence[str] | None = None,
  ) -> Classifier:
    """Reads a published PyTorch checkpoint, to be evaluated as its authors did.

    Args:
      path: `.pth` and the like, or `.safetensors`.
      model: name of the registry; by default the file's name without its ending.
      num_classes: classes of the model.
      drop_head: initialise the head anew instead of taking the file's.
      ema: take averaged weights.
      class_names: one a class; by default ImageNet's words for 1,000 classes of the file's own
        head, else '0', '1', ...

    Returns:
      The classifier.

    Raises:
      UserError: a bad file, or one of another model.
    """
    # Not at the top: `python -m rest_jax.models.convert` would find itself imported already.
    from rest_jax.models import convert

    model = Path(path).name.split('.')[0] if model is None else model
    if model not in registry.list_models():
      raise UserError(f'which model is {path}? Say model (--model); there are: {_models()}')
    module = registry.create_model(model, num_classes)
    state_dict = convert.load_state_dict(path, ema=ema)
    try:
      variables = convert.from_pytorch(state_dict, module, drop_head=drop_head)
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
      dtype: 'float32', or 'bfloat16' for half the size (weights are rounded).
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
      card=card or f'# {self.config.model}\n\n{self.config.num_classes} classes.\n',
      dtype=dtype,
      overwrite=overwrite,
    )

  def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
    """Logits.

    Args:
      images: floats (B, H, W, C) in [0, 1], of any size that the model takes.

    Returns:
      float32 (B, K).

    Raises:
      UserError: another rank, channel count or dtype.
    """
    return self._apply(images).astype(jnp.float32)

  def features(self, images: jax.Array | np.ndarray) -> tuple[jax.Array, ...]:
    """The maps after each stage, NHWC; arguments and errors as `__call__`."""
    return self._apply(images, method='features')

  def normalise(self, images: jax.Array | np.ndarray) -> jax.Array:
    """What the module gets: images without mean and deviation, float32; errors as `__call__`."""
    channels, dtype = len(self.config.mean), getattr(images, 'dtype', None)
    shape = tuple(np.shape(images))
    is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if len(shape) != 4 or shape[-1] != channels or not is_float:
      raise UserError(
        f'a classifier takes floats in [0, 1] of shape (B, H, W, {channels}), got {dtype} {shape}; '
        'pixels of 0 to 255 are divided by 255 first, a single image gets a leading axis'
      )
    mean, std = (
      jnp.asarray(v, jnp.float32)[None, None, None] for v in (self.config.mean, self.config.std)
    )
    return (jnp.asarray(images, jnp.float32) - mean) / std

  def preprocess(self, image: Image.Image | np.ndarray) -> np.ndarray:
    """A picture as this classifier was evaluated on it.

    Args:
      image: a Pillow image of any mode and size, or a uint8 array (H, W) or (H, W, 1|3|4).

    Returns:
      float32 (1, input_size, input_size, 3) in [0, 1].

    Raises:
      UserError: what is no image, or too elongated.
    """
    return preprocess.preprocess(
      image,
      size=self.config.input_size,
      resize=self.config.resize,
      crop_pct=self.config.crop_pct,
      interpolation=self.config.interpolation,
    )

  def predict(
    self, pictures: Any, *, top: int = 5, batch_size: int = predicting.BATCH_SIZE
  ) -> list[predicting.Prediction]:
    """The most probable classes of pictures: files, folders, images or arrays.

    Arguments, results and errors as `rest_jax.models.predict.predict`.
    """
    return predicting.predict(self, pictures, top=top, batch_size=batch_size)

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

  def _apply(self, images, **options) -> Any:
    return self.module.apply(self.variables, self.normalise(images), train=False, **options)


def _models() -> str:
  return ', '.join(registry.list_models())


def _check_names(names: tuple[str, ...], num_classes: int) -> None:
  if len(names) != num_classes:
    raise UserError(f'{len(names)} class names for {num_classes} classes')
  broken = [name for name in names if len(name.splitlines()) != 1]
  if broken:
    raise UserError(f'a class name is one line of text, unlike {broken[0]!r}')


jax.tree_util.register_dataclass(
  Classifier, data_fields=['variables'], meta_fields=['module', 'config', 'class_names']
)
