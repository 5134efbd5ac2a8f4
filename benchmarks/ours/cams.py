"""Group-CAM, Score-CAM and their measures on the library's models."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ours.models import build, weights
from benchmarks.ours.programs import program
from benchmarks.work import Work
from rest_jax import Classifier, explain
from rest_jax.explain import metrics
from rest_jax.explain.queries import chunked, layer_gradient


def classifier(model: str, size: int) -> Classifier:
  """A classifier with weights of noise: time and memory do not depend on them."""
  variables = weights(build(model, 'float32'), 1, size, size, 3)
  return Classifier.create(model, variables, num_classes=1000, input_size=size)


def pictures(batch: int, size: int) -> jax.Array:
  """Images of noise in [0, 1]."""
  return jnp.asarray(np.random.default_rng(1).random((batch, size, size, 3), np.float32))


def group_cam(
  model: str, size: int, batch: int = 1, groups: int = 32, query_batch: int = 16
) -> Work:
  """`explain.group_cam` as a user calls it."""
  subject, images = classifier(model, size), pictures(batch, size)
  options: Any = {'groups': groups, 'query_batch': query_batch}
  return Work(lambda: jax.block_until_ready(explain.group_cam(subject, images, **options)))


def group_cam_each(
  model: str, size: int, batch: int = 1, groups: int = 32, query_batch: int = 16
) -> Work:
  """The same images one by one."""
  subject, images = classifier(model, size), pictures(batch, size)
  options: Any = {'groups': groups, 'query_batch': query_batch}

  def call():
    for i in range(batch):
      jax.block_until_ready(explain.group_cam(subject, images[i : i + 1], **options))

  return Work(call)


def passes(model: str, size: int, groups: int = 32, query_batch: int = 16) -> Work:
  """What Group-CAM of one image cannot do without: G + 1 forward passes and one gradient."""
  point, images = explain.tap(classifier(model, size)), pictures(1, size)

  def run(point, images):
    queries = jnp.broadcast_to(images, (groups + 1, *images.shape[1:]))
    gradients = layer_gradient(point, images, None).gradients
    return gradients, chunked(point, queries, query_batch)

  return program(run, point, images)


def score_cam(model: str, size: int, query_batch: int = 16) -> Work:
  """`explain.score_cam`: a forward pass for each channel."""
  subject, images = classifier(model, size), pictures(1, size)
  return Work(
    lambda: jax.block_until_ready(explain.score_cam(subject, images, query_batch=query_batch))
  )


def curves(model: str, size: int, batch: int = 1, variant: str = 'paper') -> Work:
  """Insertion and deletion of maps of noise."""
  subject, images = classifier(model, size), pictures(batch, size)
  maps = np.random.default_rng(2).random((batch, size, size), np.float32)
  return Work(
    lambda: jax.block_until_ready(
      metrics.insertion_deletion(subject, images, maps, variant=variant)
    )
  )
