"""Attacks and defends a classifier: `python defend.py --help`, and rest_jax/commands/defend.py."""

from rest_jax.commands import script

if __name__ == '__main__':
  script('defend')
