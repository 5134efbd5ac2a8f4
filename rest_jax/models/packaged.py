"""Models of the zoo whose weights come with another Python package: a card here, the file there.

Such a directory of the zoo has config.json and README.md, and PACKAGE, a line that names the
package. The package is looked up by its metadata; nothing of it is imported or executed.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from rest_jax.errors import UserError
from rest_jax.models import imagenet

PACKAGE = 'package.txt'
_SMALL = 'cifar10 (ten kinds of animals and vehicles) and digit_scenes (handwritten digits)'


def is_packaged(directory: Path) -> bool:
  """Whether a model directory leaves its weights to a package."""
  return (directory / PACKAGE).is_file()


def checkpoint(directory: Path) -> Path:
  """The weights of such a model, a `.pth` inside the installed package.

  Raises:
    UserError: the package is not installed, or has no weights.
  """
  package, hint = (directory / PACKAGE).read_text(encoding='utf-8').splitlines()[:2]
  try:
    files = metadata.distribution(package).files or []
  except metadata.PackageNotFoundError as error:
    raise UserError(
      f'{directory.name} has its weights in the package {package}, which is not installed: '
      f'{hint}; without it there are {_SMALL}'
    ) from error
  found = [Path(str(file.locate())) for file in files if file.suffix == '.pth']
  if not found or not found[0].is_file():
    raise UserError(f'the package {package} has no weights: install it again, {hint}')
  return found[0]


def load(directory: Path, module: Any) -> tuple[Any, tuple[str, ...]]:
  """Variables and class names of such a model.

  Args:
    directory: of the zoo.
    module: what its config.json describes.

  Returns:
    The variables, float32, and ImageNet's classes in words.

  Raises:
    UserError: the package is not installed, or its file does not fit.
  """
  # Not at the top: convert needs the classifier, which needs this.
  from rest_jax.models import convert

  path = checkpoint(directory)
  try:
    return convert.from_pytorch(convert.load_state_dict(path), module), imagenet.words()
  except UserError as error:
    raise UserError(f'{directory.name}: {path} does not fit: {error}') from error
