"""Logits that are not numbers: never right, never robust, and named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import attacks
from rest_jax.attacks.judge import judge, reached
from rest_jax.attacks.queries import image_keys
from rest_jax.callables import as_function
from rest_jax.errors import UserError

IMAGES = np.full((3, 2, 2, 1), 0.5, np.float32)
LABELS = np.zeros(3, np.int32)
KEY = jax.random.key(0)
OPTIONS = {'key': KEY, 'eps': 0.1}


def breaks(images):
  """Right on grey images; NaN on all others."""
  flat = images.reshape(images.shape[0], -1)
  sound = jnp.stack([1 + 0 * flat[:, 0], flat.mean(axis=1) - 0.5, 0 * flat[:, 0]], axis=1)
  # The gradient is that of the sound part, so that attacks move.
  broken = jnp.any(flat != 0.5, axis=1)[:, None]
  return sound + jax.lax.stop_gradient(jnp.where(broken, jnp.nan, 0.0))


def overflows(images):
  return breaks(images) - jax.lax.stop_gradient(jnp.where(jnp.isnan(breaks(images)), -jnp.inf, 0.0))


CALLS = {
  'fgsm': lambda f: attacks.fgsm(f, IMAGES, LABELS, eps=0.1),
  'pgd': lambda f: attacks.pgd(f, IMAGES, LABELS, steps=3, **OPTIONS),
  'mi_fgsm': lambda f: attacks.mi_fgsm(f, IMAGES, LABELS, steps=3, **OPTIONS),
  'apgd': lambda f: attacks.apgd(f, IMAGES, LABELS, steps=3, **OPTIONS),
  'apgd_t': lambda f: attacks.apgd(f, IMAGES, LABELS, steps=3, loss='dlr_targeted', **OPTIONS),
  'cw': lambda f: attacks.cw(f, IMAGES, LABELS, steps=3, search_steps=2),
  'deepfool': lambda f: attacks.deepfool(f, IMAGES, LABELS, steps=3),
  'fab': lambda f: attacks.fab(f, IMAGES, LABELS, steps=3, key=KEY),
  'square': lambda f: attacks.square(f, IMAGES, LABELS, n_queries=5, **OPTIONS),
}


@pytest.mark.parametrize('name', CALLS)
def test_what_is_not_a_number_is_not_robust(name):
  adv = np.asarray(CALLS[name](breaks))
  assert (adv != IMAGES).reshape(3, -1).any(axis=1).all()
  verdict = judge(as_function(breaks), adv, LABELS, image_keys(KEY, 3))
  assert (verdict.predicted == -1).all() and (verdict.undefined == 3).all()
  assert reached(verdict, LABELS, None).all() and reached(verdict, LABELS, LABELS + 1).all()


def test_auto_attack_and_transfer_count_it():
  report = attacks.auto_attack_report(breaks, IMAGES, LABELS, attacks='apgd_ce', **OPTIONS)
  assert report.clean_accuracy == 1 and report.robust_accuracy == 0
  threat = attacks.Threat('linf', 0.1)
  found = attacks.transfer(breaks, breaks, IMAGES, LABELS, threat=threat, key=KEY, attack='fgsm')
  assert found.rate.value == 1 and found.fooled_source.all()


@pytest.mark.parametrize('model', [breaks, overflows])
def test_an_evaluation_counts_and_names_it(model):
  found = attacks.evaluate(
    model, IMAGES, LABELS, threats=attacks.Threat('linf', 0.1), key=KEY, attacks=['fgsm']
  )
  (row,) = found.rows
  assert row.clean_accuracy.value == 1 and row.robust_accuracy.value == 0
  check = next(c for c in found.health if c.name == 'undefined_logits')
  assert check.raised and '3 of 3 images' in check.evidence and '100.00%' in check.evidence


def test_minus_infinity_rules_a_class_out_and_is_no_fault():
  def model(images):
    flat = images.reshape(images.shape[0], -1).mean(axis=1)
    return jnp.stack([0.52 - flat, flat - 0.5, jnp.full_like(flat, -jnp.inf)], axis=1)

  adv = attacks.pgd(model, IMAGES, LABELS, steps=3, **OPTIONS)
  assert (np.asarray(model(adv)).argmax(axis=1) == 1).all()


def undefined_on_one(images):
  flat = images.reshape(images.shape[0], -1)
  bad = jnp.where(flat[:, 0] > 0.9, jnp.nan, 0.0)
  return jnp.stack([1 + 0 * bad, bad, 0 * bad], axis=1)


@pytest.mark.parametrize(
  'name', ['pgd', 'deepfool', 'square', 'auto_attack', 'evaluate', 'transfer']
)
def test_undefined_before_any_attack_is_one_line(name):
  images = IMAGES.copy()
  images[1] = 0.95
  threat = attacks.Threat('linf', 0.1)
  calls = {
    'pgd': lambda: attacks.pgd(undefined_on_one, images, LABELS, query_batch=2, **OPTIONS),
    'deepfool': lambda: attacks.deepfool(undefined_on_one, images, LABELS),
    'square': lambda: attacks.square(undefined_on_one, images, LABELS, **OPTIONS),
    'auto_attack': lambda: attacks.auto_attack(undefined_on_one, images, LABELS, **OPTIONS),
    'evaluate': lambda: attacks.evaluate(
      undefined_on_one, images, LABELS, threats=threat, key=KEY, attacks=['fgsm']
    ),
    'transfer': lambda: attacks.transfer(
      undefined_on_one, undefined_on_one, images, LABELS, threat=threat, key=KEY
    ),
  }
  with pytest.raises(UserError, match=r'3 of \d logits are not finite .*number 1\)') as caught:
    calls[name]()
  assert '\n' not in str(caught.value)
