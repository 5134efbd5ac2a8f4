"""Figures of dense tasks: average precision of boxes and masks, the IoU of classes of pixels."""

from rest_jax.metrics.average_precision import AveragePrecision
from rest_jax.metrics.confusion import Confusion

__all__ = ['AveragePrecision', 'Confusion']
