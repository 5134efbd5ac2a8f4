"""The attacks' health checks of a defended model, kept so that they are not run twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from rest_jax.attacks.evaluation_sample import SampleRows, keys_of
from rest_jax.attacks.health import HealthCheck, check_model_health
from rest_jax.attacks.judge import judge
from rest_jax.attacks.threat import Threat
from rest_jax.evaluation.batches import chunks
from rest_jax.evaluation.files import write_json
from rest_jax.evaluation.fingerprint import weights_hash

SAMPLE = 32  # images; as in any short attack, more of them hardly change what is raised
FILE = 'health.json'


def defended_health(
  judged: Partial,
  attacked: Partial,
  data: tuple[np.ndarray, np.ndarray],
  *,
  threat: Threat,
  key: jax.Array,
  directory: Path | None,
) -> list[HealthCheck]:
  """Checks a defended model on the first images that it classifies correctly.

  Args:
    judged: the defended model.
    attacked: the same with the gradients that the adaptive attack follows.
    data: images float32 (N, H, W, C) and labels (N,).
    threat: the radius at which steps and radius are compared.
    key: one PRNG key.
    directory: where they are kept; None for nowhere.

  Returns:
    The checks that look at the model; what was kept, where it is of the same model and settings.
  """
  path = None if directory is None else directory / FILE
  settings = {
    'model': weights_hash(attacked),
    'threat': [threat.norm, float(threat.eps)],
    'seed': np.asarray(jax.random.key_data(key)).ravel().tolist(),
    'sample': SAMPLE,
    # They grow with --limit, until there are enough of them.
    'images': weights_hash(tuple(one[: 2 * SAMPLE] for one in data)),
  }
  kept = None if path is None else _kept(path, settings)
  if kept is not None:
    return kept
  checks = check_model_health(attacked, _sample(judged, data, key), threat)
  if path is not None:
    found = [dataclasses.asdict(check) for check in checks]
    write_json(path, {'settings': settings, 'checks': found})
  return checks


def _sample(judged: Partial, data: tuple[np.ndarray, np.ndarray], key: jax.Array):
  images, labels = data[0][: 2 * SAMPLE], data[1][: 2 * SAMPLE]
  rows = SampleRows(SAMPLE)
  for chunk in chunks(images, labels, None, None):
    at = np.arange(2 * SAMPLE) % len(chunk.images)
    keys = keys_of(key, chunk.indices[at])
    found = judge(judged, chunk.images[at], chunk.labels[at], keys).predicted
    rows.add(chunk, found[: len(chunk.images)] == chunk.labels)
  return rows.sample(key)


def _kept(path: Path, settings: dict[str, Any]) -> list[HealthCheck] | None:
  """What an earlier run wrote; None where that is missing, damaged or of something else."""
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
    if found['settings'] == settings and settings['model'] is not None:
      return [HealthCheck(**check) for check in found['checks']]
  except (OSError, ValueError, KeyError, TypeError):
    pass
  return None
