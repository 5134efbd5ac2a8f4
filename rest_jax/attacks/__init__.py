"""Adversarial attacks on any function of images in [0, 1] to logits.

  adv = attacks.apgd(logits_fn, images, labels, key=key, norm='linf', eps=8 / 255)
  made = [attacks.APGD(steps=50), 'square']
  threat = attacks.Threat('linf', '8/255')
  found = attacks.evaluate(logits_fn, images, labels, key=key, attacks=made, threats=threat)

`logits_fn` is a `Classifier` or any JAX function of float32 images (B, H, W, C) in [0, 1]. Every
attack gives images of the same shape, in the ball and in [0, 1].
"""

from rest_jax.attacks.algorithm import Algorithm, State, register_state, run
from rest_jax.attacks.auto_pgd import APGD, apgd
from rest_jax.attacks.ball import distances, finish, norm_of, project, random_start
from rest_jax.attacks.driver import IterativeAttack
from rest_jax.attacks.ensemble import AutoAttack, auto_attack, auto_attack_report
from rest_jax.attacks.evaluation import Evaluation, epsilon_grid, evaluate
from rest_jax.attacks.fast_adaptive_boundary import FAB, fab
from rest_jax.attacks.figures import draw_attacks
from rest_jax.attacks.health import CHECKS, HealthCheck
from rest_jax.attacks.minimum_norm import CW, DeepFool, cw, deepfool
from rest_jax.attacks.projected_gradient import FGSM, MIFGSM, PGD, bim, fgsm, mi_fgsm, pgd
from rest_jax.attacks.record import Record, RunName, robust_accuracy_curve
from rest_jax.attacks.registry import Attack, list_attacks, named_attack, register
from rest_jax.attacks.square_attack import Square, square
from rest_jax.attacks.threat import Threat
from rest_jax.attacks.transferability import transfer, transfer_attack, transfer_matrix
from rest_jax.attacks.wrappers import bpda, chain, eot, in_bfloat16
from rest_jax.evaluation.intervals import accuracy_interval
from rest_jax.inputs import NORMS

__all__ = [
  'APGD',
  'CHECKS',
  'CW',
  'FAB',
  'FGSM',
  'MIFGSM',
  'NORMS',
  'PGD',
  'Algorithm',
  'Attack',
  'AutoAttack',
  'DeepFool',
  'Evaluation',
  'HealthCheck',
  'IterativeAttack',
  'Record',
  'RunName',
  'Square',
  'State',
  'Threat',
  'accuracy_interval',
  'apgd',
  'auto_attack',
  'auto_attack_report',
  'bim',
  'bpda',
  'chain',
  'cw',
  'deepfool',
  'distances',
  'draw_attacks',
  'eot',
  'epsilon_grid',
  'evaluate',
  'fab',
  'fgsm',
  'finish',
  'in_bfloat16',
  'list_attacks',
  'mi_fgsm',
  'named_attack',
  'norm_of',
  'pgd',
  'project',
  'random_start',
  'register',
  'register_state',
  'robust_accuracy_curve',
  'run',
  'square',
  'transfer',
  'transfer_attack',
  'transfer_matrix',
]
