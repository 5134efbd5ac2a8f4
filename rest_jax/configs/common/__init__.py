"""Recipes that several configs share."""
