"""Suites of the published models: forward passes, gradients, training steps, memory."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.cases import Case, Options, Ours, Theirs, suite

RESTS = tuple(
  f'{family}_{size}'
  for family, sizes in (('rest', ('lite', 'small', 'base', 'large')),
                        ('restv2', ('tiny', 'small', 'base', 'large')))
  for size in sizes
)  # fmt: skip
BOTH = ('rest_small', 'restv2_tiny')
Shape = tuple[str, int, int, str]  # model, batch, pixels a side, dtype


def peer_of(model: str) -> str:
  """The peer that has a model."""
  return 'rest' if model.startswith('rest') else 'python'


def compare(task: str, shapes: Iterable[Shape], fresh: bool = False) -> list[Case]:
  """Cases of a task that both sides have under the same name and arguments."""
  cases = []
  for model, batch, size, dtype in shapes:
    params = dict(model=model, batch=batch, size=size, dtype=dtype)
    what = task.rpartition('.')[2]
    about = {'work': what, 'model': model, 'batch': batch, 'px': size, 'dtype': dtype}
    sides = {'ours': Ours(task, params), 'peer': Theirs(task, params, peer_of(model))}
    cases.append(Case(about, sides, items=batch, fresh=fresh))
  return cases


def _shapes(options: Options) -> list[Shape]:
  """Every model at one shape; two at more batches, dtypes and sizes; a network of convolutions."""
  models = options.models
  if options.quick:
    return [(model, 2, 64, 'float32') for model in models or ('rest_lite',)]
  if models:
    return [(model, batch, 224, 'float32') for model in models for batch in (1, 8)]
  return [
    *((model, 8, 224, 'float32') for model in RESTS),
    *((model, batch, 224, 'float32') for model in BOTH for batch in (1, 64)),
    *((model, 8, 224, 'bfloat16') for model in BOTH),
    *((model, 1, size, 'float32') for model in BOTH for size in (384, 512, 1024)),
    ('resnet50', 8, 224, 'float32'),
  ]


@suite('forward')
def forward(options: Options) -> list[Case]:
  """Forward passes.

  Logits in evaluation mode, weights of noise. The peers: the authors' ResT and ResTv2, and
  torchvision's ResNet, in channels_last; bfloat16 there is automatic mixed precision.
  """
  return compare('models.forward', _shapes(options))


@suite('gradient')
def gradient(options: Options) -> list[Case]:
  """Forward and backward passes.

  The gradient of all parameters of the mean log-sum-exp of the logits, in training mode.
  """
  shapes = [shape for shape in _shapes(options) if shape[2] < 1024 and shape[1] < 64]
  return compare('models.gradient', shapes)


@suite('training')
def training(options: Options) -> list[Case]:
  """Whole training steps.

  The step of the model's config: uint8 images are augmented and normalised, the loss, its
  gradients, clipping, AdamW and the average of the weights. The authors' model does cross-entropy,
  clipping and AdamW with automatic mixed precision, eager and through torch.compile. On a GPU the
  batch is the largest power of two that fits ours, the sides run one after the other, and 'fed' is
  the step with the reading of JPEGs in front of it.
  """
  on_gpu = options.device == 'gpu'
  if options.quick and not options.models:
    return [_small_step()]
  dtype = 'bfloat16' if on_gpu else 'float32'
  size, batch = (64, 2) if options.quick else (224, 0 if on_gpu else 8)
  cases = []
  for model in options.models or BOTH:
    params = dict(model=model, batch=batch, size=size, dtype=dtype)
    about = {'work': 'step', 'model': model, 'px': size, 'dtype': dtype}
    sides: dict[str, Ours | Theirs] = {'ours': Ours('models.step', params)}
    for name, compiled in (('eager', False), ('torch.compile', True)):
      if on_gpu or not compiled:
        sides[name] = Theirs('models.step', {**params, 'compiled': compiled}, peer_of(model))
    cases.append(Case(about, sides, items=batch, alone=on_gpu))
    if not options.quick:
      reading = dict(pictures=512, workers=8 if on_gpu else 1)
      fed = Ours('models.fed', {**params, 'batch': batch or 256, **reading})
      cases.append(Case({**about, 'work': 'fed'}, {'ours': fed}, items=batch or 256))
  return cases


def _small_step() -> Case:
  """The step of digit_scenes with a model that compiles in seconds."""
  overrides = dict(widths=(8, 16, 32, 64), depths=(1, 1, 1, 1), reductions=(4, 2, 1, 1))
  params = dict(model='digit_scenes', batch=4, size=32, dtype='float32', overrides=overrides)
  about = {'work': 'step', 'model': 'digit_scenes', 'px': 32, 'dtype': 'float32'}
  return Case(about, {'ours': Ours('models.step', params)}, items=4)


@suite('memory')
def memory(options: Options) -> list[Case]:
  """First call and peak memory.

  A process for each side, so that the peak is its own. The first call of ours is tracing and
  compilation without a cache.
  """
  if options.quick:
    return compare('models.forward', [('rest_lite', 1, 96, 'float32')], fresh=True)
  models = options.models or BOTH
  shapes = [(model, *shape) for model in models for shape in ((8, 224), (1, 512), (1, 1024))]
  typed = [(model, batch, size, 'float32') for model, batch, size in shapes]
  return [
    *compare('models.forward', typed, fresh=True),
    *compare('models.gradient', typed, fresh=True),
  ]
