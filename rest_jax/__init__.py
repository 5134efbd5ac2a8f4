"""ResT and ResTv2, Group-CAM and denoising defences, in JAX."""

__version__ = '0.1.0'
