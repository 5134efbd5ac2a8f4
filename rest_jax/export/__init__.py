"""Models as files that run without this library: StableHLO for JAX, ONNX for everything else.

`Classifier.export` calls `export`, which takes any function of images. Beside the program lies a
`.json` that says what goes in and what comes out.
"""

from rest_jax.export.program import FORMATS, export

__all__ = ['FORMATS', 'export']
