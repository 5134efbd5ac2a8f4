"""Explains a classifier: `python explain.py --help`, and rest_jax/commands/explain.py."""

from rest_jax.commands import script

if __name__ == '__main__':
  script('explain')
