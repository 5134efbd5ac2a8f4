"""Adversarial attacks on any function of images in [0, 1] to logits.

  adv = attacks.apgd(logits_fn, images, labels, key=key, norm='linf', eps=8 / 255)

`logits_fn` is a `Classifier` or any JAX function of float32 images (B, H, W, C) in [0, 1]. Every
attack gives images of the same shape, in the ball and in [0, 1].
"""

from rest_jax.attacks.algorithm import run
from rest_jax.attacks.apgd import apgd
from rest_jax.attacks.gradient_steps import bim, fgsm, mi_fgsm, pgd
from rest_jax.attacks.projections import distances, norm_of, project, random_start
from rest_jax.attacks.rounding import finish
from rest_jax.attacks.threat import NORMS, Threat

__all__ = [
  'NORMS',
  'Threat',
  'apgd',
  'bim',
  'distances',
  'fgsm',
  'finish',
  'mi_fgsm',
  'norm_of',
  'pgd',
  'project',
  'random_start',
  'run',
]
