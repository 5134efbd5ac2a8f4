"""How good a map is: measures of faithfulness and of place, with bootstrap intervals."""

from rest_jax.evaluation.intervals import Interval, bootstrap
from rest_jax.explain.fills import fill_images
from rest_jax.explain.metrics.faithfulness import (
  Curves,
  DropIncrease,
  drop_increase,
  insertion_deletion,
  step_at,
)
from rest_jax.explain.metrics.imputation import Road, impute, road
from rest_jax.explain.metrics.pointing import box_masks, centre_maps, energy_share, pointing_game
from rest_jax.explain.metrics.sanity import rank_correlation, structural_similarity

__all__ = [
  'Curves',
  'DropIncrease',
  'Interval',
  'Road',
  'bootstrap',
  'box_masks',
  'centre_maps',
  'drop_increase',
  'energy_share',
  'fill_images',
  'impute',
  'insertion_deletion',
  'pointing_game',
  'rank_correlation',
  'road',
  'step_at',
  'structural_similarity',
]
