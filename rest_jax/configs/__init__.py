"""Experiments, one a file: `get_config()` and a docstring with source, command and result.

They come with the package and are found by name: `--config rest_small`, `--config
digit_scenes:full`. In a clone `configs` is another name of this folder.
"""

from __future__ import annotations

from pathlib import Path

from rest_jax.errors import UserError

FOLDER = Path(__file__).parent


def names() -> list[str]:
  """The configs that come with the package, sorted."""
  return sorted(path.stem for path in FOLDER.glob('*.py') if path.stem != '__init__')


def find(name: str) -> Path:
  """The file of a config.

  Args:
    name: a Python file, or one of `names()`; 'configs/' before and '.py' behind may be there.

  Raises:
    UserError: there is none.
  """
  if Path(name).is_file():
    return Path(name)
  stem = name.removeprefix('configs/').removesuffix('.py')
  if stem in names():
    return FOLDER / f'{stem}.py'
  there = ', '.join(f'configs/{one}.py' for one in names())
  raise UserError(f'no config file {name!r}; there are: {there}')
