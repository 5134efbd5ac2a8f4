"""The run of defend.py: opens model and data, evaluates the defences, studies them, reports.

Everything but the data itself is looked at before any data is touched.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rest_jax.attacks.registry import Attack, named_attack
from rest_jax.attacks.threat import Threat
from rest_jax.callables import as_function
from rest_jax.data.sample import take_sample
from rest_jax.defend.command import PGD_STEPS, Command, takes_steps
from rest_jax.defend.denoise.autoencoder import DEFAULT as AUTOENCODER
from rest_jax.defend.denoise.denoisers import DENOISERS, denoiser
from rest_jax.defend.denoise.pca import fit_patch_pca
from rest_jax.defend.evaluate import (
  DefenceEvaluation,
  check_threats,
  evaluate_defences,
  images_at_a_time,
  made_without,
)
from rest_jax.defend.features import at_layer
from rest_jax.defend.figures import draw_bands, draw_spectra, draw_study
from rest_jax.defend.found import Found, Study
from rest_jax.defend.report import write_report
from rest_jax.defend.spectra import perturbation_spectra
from rest_jax.defend.study import noise_study
from rest_jax.errors import UserError
from rest_jax.evaluation.files import write_json
from rest_jax.evaluation.fingerprint import weights_hash
from rest_jax.layers import with_layer
from rest_jax.models.classifier import Classifier
from rest_jax.opening import (
  Judged,
  check_data,
  open_classifier,
  open_judged,
  open_training,
  read_examples,
)
from rest_jax.text import legible, plural

PATCH_IMAGES = 200  # of the training split, which the principal components are fitted to
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


def run(command: Command) -> int:
  """Evaluates what a command line asks for, and writes the report.

  Args:
    command: from `command.parse`.

  Returns:
    The exit status, 0.

  Raises:
    UserError: no such model or data, a defence that does not fit them, a radius that holds every
      image, or an output folder of another model or other settings.
  """
  began = time.monotonic()
  classifier = open_classifier(command.model, command.architecture, command.ema)
  check_before_data(command, classifier)
  judged = open_judged(
    command.data,
    command.data_dir,
    classifier,
    command.model,
    split=command.split,
    limit=command.limit,
    seed=command.seed,
  )
  classifier, count = judged.classifier, len(judged.sample)
  images, labels, _ = read_examples(judged.sample, classifier, 0, count)
  threats = check_threats([Threat(command.norm, eps) for eps in command.eps], images.shape)  # pyright: ignore
  attacks = [_attack(name, command.steps) for name in command.attack]
  defences = _defences(command, judged)
  _pin(command, judged)
  print(legible(judged.line))
  amounts = [plural(len(defences), 'defence'), plural(len(attacks), 'attack')]
  print(f'{", ".join(amounts)}, {plural(count, "image")} of {legible(command.data)}')
  with _Bar(len(attacks), len(defences), command.adaptive) as bar:
    evaluation = evaluate_defences(
      classifier,
      images,
      labels,
      defences,
      threats=threats,
      attack=attacks,
      key=jax.random.key(command.seed),
      adaptive=command.adaptive,
      draws=command.draws,
      output_dir=command.output / 'attacks',
      batch_size=command.batch_size,
      progress=bar.say,
    )
    found = _found(command, judged, (images, labels), defences, attacks, evaluation)
    if command.study == 'noise':
      found = dataclasses.replace(found, study=run_study(found, bar.say))
    seconds = time.monotonic() - began
    bar.say('report', 0)
    line = write_report(dataclasses.replace(found, seconds=seconds))
  print(line)
  return 0


class _Bar:
  """A bar over the pieces of work; silent where nobody looks."""

  def __init__(self, attacks: int, defences: int, adaptive: bool):
    # An attack on the undefended model, one through each defence, checks of all, a report.
    total = attacks * (1 + defences * adaptive) + 2
    hidden = not sys.stderr.isatty()
    self._bar = tqdm(total=total, unit='step', disable=hidden, dynamic_ncols=True)
    self._text, self._images = '', 0

  def __enter__(self) -> _Bar:
    return self

  def __exit__(self, *_: Any) -> None:
    self._bar.close()

  def say(self, text: str, images: int) -> None:
    """What is at work, and how many more images of it are through."""
    if text != self._text:
      self._bar.update(bool(self._text) and self._bar.n < (self._bar.total or 0))
      self._text, self._images = text, 0
    self._images += images
    self._bar.set_description(f'{text}, {plural(self._images, "image")}' if self._images else text)


def _attack(name: str, steps: int | None) -> Attack:
  """PGD takes 20 steps, the field's usual measure; the others what they take by themselves."""
  steps = PGD_STEPS if steps is None and name == 'pgd' else steps
  if steps is None or not takes_steps(name):
    return named_attack(name)
  return named_attack(name, steps=steps)


def _defences(command: Command, judged: Judged) -> dict[str, Any]:
  """Label to defence, each at every strength."""
  found = {}
  for name in command.defense:
    options = _options(name, command, judged)
    for strength in command.strength:
      if '@' in name:
        kind, _, layer = name.partition('@')
        defence = at_layer(kind, layer, strength)
      else:
        defence = denoiser(name, strength, **options)
      found[f'{name} {strength:g}'] = defence
  return found


def _options(name: str, command: Command, judged: Judged) -> dict[str, Any]:
  needs = None if '@' in name else DENOISERS[name].needs
  if needs == 'patches':
    return {'basis': _patch_images(command, judged)}
  if needs == 'autoencoder' and command.data != 'digit_scenes':
    print(f'{name}: {AUTOENCODER} of the zoo was trained on digit_scenes', file=sys.stderr)
  return {}


def _patch_images(command: Command, judged: Judged) -> np.ndarray:
  """A balanced sample of the training split; where there is none, of the images themselves."""
  classifier = judged.classifier
  try:
    _, source = open_training(command.data, command.data_dir, classifier, command.model)
  except UserError as error:
    print(f'pca is fitted to the images that are judged: {error}', file=sys.stderr)
    source = judged.data.images
  sample = take_sample(source, len(judged.data.class_names), PATCH_IMAGES)
  return read_examples(sample, classifier, 0, len(sample))[0]


def _pin(command: Command, judged: Judged) -> None:
  """Keeps results of different models, data and settings apart."""
  data = {'split': judged.data.split, 'files': judged.data.digest}
  now = pinned(command, judged.classifier) | data
  if not check_settings(command, now):
    write_json(command.output / SETTINGS, now)


def _found(
  command: Command,
  judged: Judged,
  data: tuple[np.ndarray, np.ndarray],
  defences: dict[str, Any],
  attacks: list[Attack],
  evaluation: DefenceEvaluation,
) -> Found:
  """What the report is about, with the adversarial images of the first attack's largest radius."""
  attack, eps = attacks[0], max(command.eps)
  made = made_without(
    as_function(judged.classifier),
    attack,
    *data,
    key=jax.random.key(command.seed),
    batch_size=images_at_a_time(command.batch_size, len(data[0])),
    directory=command.output / 'attacks',
  )
  return Found(
    command=command,
    classifier=judged.classifier,
    data_name=judged.data.name,
    data_line=judged.line,
    images=data[0],
    labels=data[1],
    adversarial=made.images(Threat(command.norm, eps)),  # pyright: ignore
    defences=defences,
    attacks=attacks,
    evaluation=evaluation,
  )


def run_study(found: Found, say: Callable[[str, int], Any]) -> Study:
  """Studies the denoisers of an evaluation on the perturbations of the undefended model.

  Args:
    found: what was evaluated.
    say: told what is at work.

  Returns:
    The study, as far as it was measured before read from its records; its three figures are drawn.

  Raises:
    UserError: the folder cannot be written.
  """
  say('noise study', 0)
  command, models = found.command, {found.model_name: found.classifier}
  options: dict[str, Any] = dict(batch_size=command.batch_size, output_dir=command.output / 'study')
  data, key = (found.images, found.labels, found.adversarial), jax.random.key(command.seed)
  noise = noise_study(models, *data, found.by_name(), key=key, **options)
  spectra = perturbation_spectra(models, found.images, found.adversarial, **options)
  study, figures = Study(noise, tuple(spectra)), command.output / 'figures'
  draw_study(study.noise, figures / 'study.png')
  draw_bands(study.noise, figures / 'bands.png')
  draw_spectra(study.spectra, figures / 'spectra.png')
  return study
