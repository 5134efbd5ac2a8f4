"""Linen models: `create_model` builds one, `list_models` names them."""

from rest_jax.models.registry import create_model, list_models, register

__all__ = ['create_model', 'list_models', 'register']
