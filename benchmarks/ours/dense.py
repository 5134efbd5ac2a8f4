"""Detectors and segmenters: all that evaluation does, and a training step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.boxes import CLASSES, boxes_of
from benchmarks.ours.models import weights
from benchmarks.ours.programs import program
from benchmarks.work import Work
from rest_jax.models import create_detector, create_segmenter
from rest_jax.models.dense import Targets
from rest_jax.ops.platform import jit


def _image(height: int, width: int) -> jax.Array:
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.standard_normal((1, height, width, 3), np.float32))


def detect(model: str, height: int, width: int) -> Work:
  """Detections of one image, suppression too."""
  detector = create_detector(model, CLASSES, backbone={'bn_frozen': True})
  variables = weights(detector, 1, 64, 64, 3)
  return program(lambda v, x: detector.apply(v, x).scores, variables, _image(height, width))


def segment(model: str, height: int, width: int) -> Work:
  """Logits of every pixel of one image."""
  segmenter = create_segmenter(model, 150)
  variables = weights(segmenter, 1, 64, 64, 3)
  return program(lambda v, x: segmenter.apply(v, x), variables, _image(height, width))


class DetectorStep:
  """Losses, gradients and an AdamW update on one image with ten objects."""

  def __init__(self, model: str, height: int, width: int):
    detector = create_detector(model, CLASSES, backbone={'bn_frozen': True})
    rest = weights(detector, 1, 64, 64, 3)
    params = rest.pop('params')
    boxes = boxes_of(height, width)
    targets = Targets(jnp.asarray(boxes)[None], jnp.arange(len(boxes), dtype=jnp.int32)[None])
    self.optimizer = optax.adamw(1e-4)
    self.held: Any = (params, self.optimizer.init(params))
    self.given = (rest, targets, _image(height, width))
    self.step = jit(self._step(detector), donate_argnums=(0, 1))

  def _step(self, detector):
    def step(params, state, rest, targets, image):
      def loss(params):
        losses, _ = detector.apply(
          {**rest, 'params': params},
          image,
          targets,
          method='losses',
          mutable=['batch_stats'],
          rngs={'dropout': jax.random.key(2)},
        )
        return sum(losses.values())

      updates, state = self.optimizer.update(jax.grad(loss)(params), state, params)
      return optax.apply_updates(params, updates), state

    return step

  def __call__(self) -> None:
    self.held = jax.block_until_ready(self.step(*self.held, *self.given))


def detector_step(model: str, height: int, width: int) -> Work:
  """A training step of a detector."""
  return Work(DetectorStep(model, height, width))
