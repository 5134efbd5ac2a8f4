"""Where the perturbation's energy lies in the features, of which Wiener gains are made."""

import numpy as np
from defense_arms import ALL, SIDE, under_attack

BANDS = 8
ZOO = 'digit_scenes'


def all_energies(args) -> dict:
  """Of the standardly trained model at its own size, and of the base of each seed."""
  from rest_jax import Classifier

  found = {'standard': [_energies(Classifier.load(ZOO), 64, 0)]}
  found['adversarial'] = [
    _energies(Classifier.load(args.work_dir / f'base_{seed}' / 'model'), SIDE, seed)
    for seed in range(args.seeds)
  ]
  return found


def _energies(model, side: int, seed: int, count: int = 256) -> dict:
  """By stage: energy of the perturbation over that of the clean features, and the bands' gains."""
  from rest_jax import defend

  options = {'strategy': 'wiener', 'bands': BANDS, 'stages': ALL}
  measured = defend.measure_bands(
    defend.add_compression(model, options), *under_attack(model, side, count, seed)
  )
  stages = {}
  for stage, (clean, noise) in measured.items():
    clean, noise = clean.sum(axis=1), noise.sum(axis=1)
    gains = [float(s / (s + n)) if s + n else None for s, n in zip(clean, noise, strict=True)]
    stages[str(stage)] = {'share': float(noise.sum() / clean.sum()), 'gains': gains}
  return stages


def energies_table(energies: dict) -> list[str]:
  """Markdown: a row a model and stage; bands that a small map has no frequency in are empty."""
  heads = ['model', 'after stage', 'energy of the perturbation, % of the features']
  heads += [f'band {k}' for k in range(1, BANDS + 1)]
  lines = ['| ' + ' | '.join(heads) + ' |', '|---' * len(heads) + '|']
  for name, models in energies.items():
    for stage in models[0]:
      share = np.mean([model[stage]['share'] for model in models])
      bands = zip(*(model[stage]['gains'] for model in models), strict=True)
      gains = ['' if None in band else f'{np.mean(band):.3f}' for band in bands]
      lines.append(f'| {name} | {stage} | {100 * share:.1f} | ' + ' | '.join(gains) + ' |')
  return lines
