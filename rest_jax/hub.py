"""Model directories on the Hugging Face Hub: 'hf://owner/name' in the place of a directory.

What is there is a model directory like any other: config.json, model.safetensors, labels.txt and
README.md, whose first lines are the metadata by which the Hub lists it. Nothing of it is executed.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from rest_jax.errors import UserError
from rest_jax.text import plural

if TYPE_CHECKING:
  from rest_jax.models.classifier import Classifier
  from rest_jax.models.dense_model import Detector, Segmenter

  Model = Classifier | Detector | Segmenter

# What the Hub calls the task, by the class of a model.
_TASKS = {
  'Classifier': 'image-classification',
  'Detector': 'object-detection',
  'Segmenter': 'image-segmentation',
}
PREFIX = 'hf://'
_NAME = re.compile(r'[\w.-]+/[\w.-]+')
_FILES = ['config.json', 'model.safetensors', 'labels.txt', 'README.md']


def is_remote(name: object) -> TypeGuard[str]:
  """Whether a name is of a model on the Hub."""
  return isinstance(name, str) and name.startswith(PREFIX)


def fetch(name: str) -> Path:
  """Brings a model directory here, or finds the copy that is here already.

  Args:
    name: 'hf://owner/name' or 'hf://owner/name@revision'; where the Hub is and who asks is told
      by HF_ENDPOINT and HF_TOKEN, as everywhere in huggingface_hub.

  Returns:
    The directory in the cache of huggingface_hub.

  Raises:
    UserError: no such repository, no access, no network, or the extra is not installed.
  """
  repository, _, revision = name.removeprefix(PREFIX).partition('@')
  _check_name(repository)
  client = _client()
  with _one_line(f'cannot load {name}'):
    place = client.snapshot_download(
      repository, revision=revision or None, allow_patterns=_FILES, endpoint=_endpoint()
    )
  return Path(place)


def push(
  model: Model,
  repository: str,
  *,
  card: str = '',
  license: str = '',
  tags: tuple[str, ...] = (),
  private: bool | None = None,
  token: str | None = None,
  message: str = 'Model of rest_jax',
) -> str:
  """Uploads a classifier, a detector or a segmenter as a model directory.

  Args:
    model: what is uploaded, weights in float32.
    repository: 'owner/name'; made where it is not there.
    card: text of README.md with the measured results; metadata are put before it where it has none.
    license: for the metadata, such as 'apache-2.0'.
    tags: for the metadata, beside the library's own.
    private: of a new repository; the owner's default if None.
    token: who uploads; HF_TOKEN or the stored login by default.
    message: of the commit.

  Returns:
    The name under which `load` of the same class finds it.

  Raises:
    UserError: a bad name, no access, no network, or the extra is not installed.
  """
  _check_name(repository)
  client = _client()
  with tempfile.TemporaryDirectory() as folder:
    place = Path(folder) / 'model'
    text = card or _default_card(model, repository)
    model.save(place, card=with_metadata(text, model, license, tags))
    api = client.HfApi(endpoint=_endpoint(), token=token)
    with _one_line(f'cannot upload to {repository}'):
      api.create_repo(repository, private=private, exist_ok=True)
      api.upload_folder(repo_id=repository, folder_path=place, commit_message=message)
  return f'{PREFIX}{repository}'


def with_metadata(card: str, model: Model, license: str = '', tags: tuple[str, ...] = ()) -> str:
  """A card that begins with the Hub's metadata (YAML between two lines of dashes).

  Args:
    card: Markdown; one that begins with metadata stays as it is.
    model: whose card it is.
    license: a name of the Hub's list; left out where empty.
    tags: added to the library's own.

  Returns:
    The card.
  """
  if card.startswith('---\n'):
    return card
  task = _TASKS[_kind(model)]
  own = [task, 'jax', 'flax', model.config.model]
  lines = ['library_name: rest_jax', f'pipeline_tag: {task}']
  lines += [f'license: {license}'] if license else []
  lines += ['tags:', *(f'- {tag}' for tag in dict.fromkeys([*own, *tags]))]
  return '\n'.join(['---', *lines, '---', '', card])


def _kind(model: Model) -> str:
  """'Classifier', 'Detector' or 'Segmenter', of a class derived from one of them too."""
  return next(kind.__name__ for kind in type(model).__mro__ if kind.__name__ in _TASKS)


def _default_card(model: Model, repository: str) -> str:
  config, kind = model.config, _kind(model)
  names = ', '.join(model.class_names[:10])
  more = ', ...' if len(model.class_names) > 10 else ''
  side = getattr(model, 'input_size', None)
  size = f', {side} px' if side else ''
  return '\n'.join(
    [
      f'# {repository.partition("/")[2]}',
      '',
      f'{config.model}, {plural(config.num_classes, "class")} ({names}{more}){size}.',
      '',
      '```python',
      f'from rest_jax import {kind}',
      '',
      f"{kind.lower()} = {kind}.load('{PREFIX}{repository}')",
      '```',
      '',
    ]
  )


def _check_name(repository: str) -> None:
  if not _NAME.fullmatch(repository):
    raise UserError(f'a model on the Hub is called owner/name, not {repository!r}')


def _client() -> Any:
  try:
    import huggingface_hub  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError(
      f"models on the Hub need {error.name}: pip install 'rest_jax[hub]' (in a clone '.[hub]')"
    ) from error
  return huggingface_hub


def _endpoint() -> str | None:
  """Read at the call: huggingface_hub itself reads it once, when it is imported."""
  return os.environ.get('HF_ENDPOINT') or None


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
  """Turns what huggingface_hub raises, of many kinds and lines, into one line."""
  try:
    yield
  except (OSError, ValueError) as error:  # its HTTP errors are OSErrors, its bad names ValueErrors
    raise UserError(
      f'{what}: {" ".join(str(error).split()) or type(error).__name__}; check the name, the '
      'network and HF_TOKEN'
    ) from error
