"""What defend.py looks at before it touches any data: everything but the data itself."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np

from rest_jax.attacks.threat import Threat
from rest_jax.callables import as_function
from rest_jax.defend.command import Command
from rest_jax.defend.denoise.denoisers import DENOISERS, denoiser
from rest_jax.defend.denoise.pca import fit_patch_pca
from rest_jax.defend.evaluation import check_threats
from rest_jax.defend.features import at_layer
from rest_jax.errors import UserError
from rest_jax.evaluation.fingerprint import weights_hash
from rest_jax.layers import with_layer
from rest_jax.models.classifier import Classifier
from rest_jax.opening import check_data

SETTINGS = 'settings.json'


def check_before_data(command: Command, classifier: Classifier) -> None:
  """Tries what a command line asks for on the shapes that the model takes.

  Args:
    command: from `command.parse`.
    classifier: of `--model`.

  Raises:
    UserError: a radius that holds every image, a defence that does not fit the model, a data set
      that is not the model's, or an output folder of another model or other settings, or one that
      cannot be written.
  """
  side = classifier.input_size
  shape = (1, side, side, 3)
  check_threats([Threat(command.norm, eps) for eps in command.eps], shape)  # pyright: ignore
  for name in command.defense:
    _check_fits(name, classifier, shape)
  check_settings(command, pinned(command, classifier))
  check_data(command.data, classifier, command.model, command.output)


def pinned(command: Command, classifier: Classifier) -> dict[str, Any]:
  """What results of one folder have in common and is known before the data.

  What may grow is not pinned: images, radii, attacks, defences, strengths.
  """
  return {
    'model': weights_hash(classifier),
    'data': command.data,
    'input_size': classifier.input_size,
    'steps': command.steps,
    'draws': command.draws,
    'seed': command.seed,
  }


def check_settings(command: Command, now: dict[str, Any]) -> bool:
  """Compares with the settings of the results that the output folder holds.

  Args:
    command: says which folder.
    now: settings; those of them that the folder's file has not are others too.

  Returns:
    Whether there is such a file.

  Raises:
    UserError: it cannot be read, or has other settings.
  """
  path = command.output / SETTINGS
  try:
    then = json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError):
    return False
  except (OSError, ValueError) as error:
    raise UserError(f'cannot read {path} ({error}); give another --output') from error
  other = [name for name in now if then.get(name) != now[name]] if isinstance(then, dict) else ['?']
  if other:
    raise UserError(
      f'{command.output} holds results with another {" and ".join(other)}; give another --output'
    )
  return True


def _check_fits(name: str, classifier: Classifier, shape: tuple[int, ...]) -> None:
  """Asks for shapes alone; whatever a denoiser has to be fitted to is made up."""
  images, function = jax.ShapeDtypeStruct(shape, np.float32), as_function(classifier)
  try:
    if '@' in name:
      kind, _, layer = name.partition('@')
      defence = at_layer(kind, layer)
      jax.eval_shape(lambda x: with_layer(function, layer, defence, x), images)
    else:
      blank = np.zeros((2, *shape[1:]), np.float32)
      options: dict[str, Any] = {}
      if DENOISERS[name].needs == 'patches':
        options['basis'] = fit_patch_pca(blank)
      tried = denoiser(name, **options)
      jax.eval_shape(lambda x: tried(x, jax.random.key(0)), images)
  except UserError as error:
    raise UserError(f'--defense {name}: {error}') from error
