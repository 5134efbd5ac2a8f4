"""A new denoiser is one decorated function: help, evaluation, study and report know it."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defence_toys import CLASSES, data, linear_model

from rest_jax.attacks.registry import as_attacks
from rest_jax.attacks.threat import Threat
from rest_jax.defend import command, denoiser, evaluate_defences, list_denoisers, noise_study
from rest_jax.defend.denoise import denoisers, register
from rest_jax.defend.denoise.denoisers import Denoiser, in_pixels, step
from rest_jax.defend.found import Found
from rest_jax.defend.report import write_report


def _faded(images, strength):
  return images * (1 - strength) + 0.5 * strength


@pytest.fixture(autouse=True)
def toy(monkeypatch):
  """The toy, known while a test runs."""
  monkeypatch.setattr(denoisers, '_REGISTERED', {**denoisers.DENOISERS})

  @register('toy_fade', family='spatial', source='this test')
  def toy_fade(strength: float) -> Denoiser:
    """Fades to grey."""
    return in_pixels('toy_fade', strength, step(_faded))


class Model:
  """A linear model with what a report says of a classifier."""

  class_names = tuple(map(str, range(CLASSES)))
  input_size = 6
  config = types.SimpleNamespace(model='linear')

  def __init__(self):
    self.function = linear_model()

  def __call__(self, images):
    return self.function(images)


def test_registry_and_help_know_it(capsys):
  assert 'toy_fade' in list_denoisers('spatial')
  out = denoiser('toy_fade', 1.0)(jnp.zeros((1, 2, 2, 3)))
  np.testing.assert_array_equal(out, np.full((1, 2, 2, 3), 0.5))
  assert command.parse(['defend.py', '--help'], 'Usage.') is None
  assert 'toy_fade' in capsys.readouterr().out


def test_evaluation_study_and_report_know_it(tmp_path):
  model = Model()
  images, labels = data(model.function, count=8)
  words = ('--defense', 'toy_fade', '--attack', 'fgsm', '--eps', '0.05', '--output', tmp_path)
  asked = command.parse(['defend.py', *map(str, words)], '')
  defences = {'toy_fade 0.5': denoiser('toy_fade', 0.5)}
  evaluation = evaluate_defences(
    model,
    images,
    labels,
    defences,
    threats=Threat('linf', 0.05),
    attack='fgsm',
    key=jax.random.key(0),
    check_health=False,
  )
  row = evaluation.row('toy_fade 0.5', 'fgsm', 0.05)
  assert row.adaptive is not None
  study = noise_study(model, images, labels, images, ['toy_fade'], strengths=(0.5,), bands=0)
  assert study.denoisers[-1].denoiser == 'toy_fade'
  found = Found(
    command=asked,
    classifier=model,
    data_name='toys',
    images=images,
    labels=labels,
    adversarial=images,
    defences=defences,
    attacks=as_attacks(['fgsm']),
    evaluation=evaluation,
  )
  write_report(dataclasses.replace(found, seconds=1.0))
  text = (tmp_path / 'report.md').read_text(encoding='utf-8')
  assert '`toy_fade` (spatial domain). Strength from 0 to 1: Fades to grey.' in text
  assert 'toy_fade 0.5,fgsm,linf,0.05' in (tmp_path / 'results.csv').read_text(encoding='utf-8')
