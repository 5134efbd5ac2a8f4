"""Suite of the denoisers."""

from __future__ import annotations

from benchmarks.cases import Case, Options, Ours, suite


@suite('denoisers')
def denoisers(options: Options) -> list[Case]:
  """Denoisers.

  Each of the registry that needs nothing but images, at half of its strength, beside the Gaussian
  blur: the first side is the denoiser, the second the Gaussian.
  """
  from rest_jax.defend.denoise.denoisers import DENOISERS

  size, batch = (32, 2) if options.quick else (224, 8)
  names = [name for name, info in DENOISERS.items() if info.needs is None]
  if options.quick:
    names = [name for name in names if name in ('gaussian', 'jpeg', 'median')]
  params = dict(batch=batch, size=size)
  return [
    Case(
      {'denoiser': name, 'images': batch, 'px': size},
      {
        'denoiser': Ours('denoisers.denoise', {'name': name, **params}),
        'gaussian': Ours('denoisers.denoise', {'name': 'gaussian', **params}),
      },
      items=batch,
    )
    for name in names
  ]
