"""What a model is trained for: the one place that tells classifying from detecting and segmenting.

`model.name` decides. All else of a run (loop, state, optimiser, checkpoints, resuming, records) is
the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
from jax.sharding import Mesh

from rest_jax.data.sources import DataSources
from rest_jax.models.dense_registry import kind_of
from rest_jax.train import classifying, dense
from rest_jax.train.classifying import Tensors
from rest_jax.train.config import Config
from rest_jax.train.gradients import GradientFunction


class Purpose(Protocol):
  """What one purpose does in its own way; a module each, `classifying` and `dense`."""

  def check(self, config: Config) -> None:
    """Refuses a config that would fail later, before any data is opened."""
    ...

  def create(self, config: Config, num_classes: int, axis: str | None = None) -> nn.Module:
    """The model outside of the mapped axis, or inside of it."""
    ...

  def init_side(self, config: Config) -> int:
    """Pixels a side of the picture that parameters are initialised on."""
    ...

  def sizes(self, config: Config) -> str:
    """How large pictures are to the model, in words."""
    ...

  def initial(self, config: Config, num_classes: int) -> tuple[Tensors, str]:
    """The weights that `model.init` names, and a line that says what was taken."""
    ...

  def load_sources(self, config: Config) -> DataSources:
    """The data set."""
    ...

  def train_batches(self, config: Config, source: Any) -> Any:
    """The endless iterator over this process's rows of training batches."""
    ...

  def test_batches(self, config: Config, source: Any) -> Any:
    """What is judged of a split."""
    ...

  def inputs(
    self,
    config: Config,
    num_classes: int,
    model: nn.Module,
    variables: Any,
    batch: dict[str, jax.Array],
    key: jax.Array,
  ) -> tuple[jax.Array, Any]:
    """On a device: images as the loss takes them, and what is learnt from them."""
    ...

  def gradients(self, model: nn.Module, config: Config) -> GradientFunction:
    """The gradient function of the loss, of one micro-batch."""
    ...

  def measuring(
    self, model: nn.Module, config: Config, mesh: Mesh, class_names: Sequence[str]
  ) -> tuple[Callable[..., Any], Callable[[Any, Any], dict[str, Any]]]:
    """The evaluation step, and (variables, source) -> result, see `measured`."""
    ...

  def release(
    self,
    config: Config,
    variables: Any,
    class_names: tuple[str, ...],
    directory: Path,
    card: str,
  ) -> None:
    """Writes the model directory."""
    ...


def purpose_of(config: Config) -> Purpose:
  """What the model of a config is for."""
  return dense if kind_of(config.model.name) else classifying
