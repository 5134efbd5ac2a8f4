"""Attacks on a ResNet-20 that is a plain function, and on the library's ResNet-18."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.autoattack_models import load_split, resnet20
from benchmarks.ours.models import build, weights
from benchmarks.work import Work
from rest_jax import Classifier, attacks
from rest_jax.models.pytorch import to_pytorch


def subject(path: str, images: int, data_dir: str | None) -> tuple[Any, np.ndarray, np.ndarray]:
  """The zoo's ResNet-20 as a plain function, with images and their labels.

  Args:
    path: .npz that is written unless it is there, for the other side: weights under PyTorch's
      names, 'images' float32 (N, 32, 32, 3) in [0, 1] and 'labels' int32 (N,).
    images: how many.
    data_dir: of TFDS; None: smooth noise, labelled by the model.

  Returns:
    The function, images, labels.
  """
  if not Path(path).exists():
    _write_subject(Path(path), images, data_dir)
  with np.load(path) as file:
    held = dict(file)
  pictures, labels = held.pop('images'), held.pop('labels')
  return resnet20(held), pictures, labels


def _write_subject(path: Path, count: int, data_dir: str | None) -> None:
  zoo = Classifier.load('cifar10')
  held = {name: np.asarray(value) for name, value in to_pytorch(zoo.variables, zoo.module).items()}
  if data_dir is None:
    rng = np.random.default_rng(0)
    coarse = jnp.asarray(rng.random((count, 8, 8, 3), np.float32))
    images = np.asarray(jax.image.resize(coarse, (count, 32, 32, 3), 'cubic')).clip(0, 1)
    labels = np.asarray(jnp.argmax(resnet20(held)(jnp.asarray(images)), axis=-1), np.int32)
  else:
    images, labels = load_split(data_dir, 'test')
    images, labels = images[:count], labels[:count]
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix('.part.npz')
  content: dict[str, Any] = {**held, 'images': images, 'labels': labels}
  np.savez(temporary, **content)
  temporary.rename(path)


def pgd(path: str, images: int, data_dir: str | None, steps: int, eps: float) -> Work:
  """PGD in Linf of all images for all steps."""
  model, pictures, labels = subject(path, images, data_dir)
  options: Any = dict(eps=eps, steps=steps, step_size=eps / 4, stop_early=False)
  return _work(attacks.pgd, model, pictures, labels, options)


def apgd(path: str, images: int, data_dir: str | None, steps: int, eps: float) -> Work:
  """APGD on cross-entropy in Linf."""
  model, pictures, labels = subject(path, images, data_dir)
  return _work(attacks.apgd, model, pictures, labels, dict(eps=eps, steps=steps))


def auto_attack(path: str, images: int, data_dir: str | None, norm: str, eps: float) -> Work:
  """The standard version of AutoAttack."""
  model, pictures, labels = subject(path, images, data_dir)
  return _work(attacks.auto_attack, model, pictures, labels, dict(norm=norm, eps=eps))


def pgd_resnet18(images: int, steps: int, eps: float) -> Work:
  """PGD on the ResNet-18 of CIFAR, with weights of noise."""
  module = build('resnet18_cifar', 'float32', {'num_classes': 10})
  variables = weights(module, 1, 32, 32, 3)
  rng = np.random.default_rng(1)
  pictures = rng.random((images, 32, 32, 3), np.float32)
  labels = rng.integers(0, 10, images).astype(np.int32)
  model = jax.tree_util.Partial(lambda v, x: module.apply(v, x, train=False), variables)
  options: Any = dict(eps=eps, steps=steps, step_size=eps / 4, stop_early=False)
  return _work(attacks.pgd, model, pictures, labels, options)


def _work(attack: Any, model: Any, images: np.ndarray, labels: np.ndarray, options) -> Work:
  """The attack as a user calls it, and which images withstood it."""
  found: dict[str, Any] = {}

  def call():
    adv = attack(model, images, labels, key=jax.random.key(0), **options)
    found['adv'] = jax.block_until_ready(adv)

  def facts():
    logits = jax.jit(lambda m, x: m(x))(model, jnp.asarray(found['adv']))
    return {'robust': float(np.mean(np.argmax(np.asarray(logits), -1) == labels))}

  return Work(call, facts)
