"""Suite of the attention: EMSA against plain multi-head self-attention as tokens grow."""

from __future__ import annotations

from benchmarks.cases import Case, Options, Ours, Theirs, suite

# Stages of rest_small: channels, heads, reduction.
STAGES = {'stage 1': (64, 1, 8), 'stage 2': (128, 2, 4), 'stage 3': (256, 4, 2)}


@suite('attention')
def attention(options: Options) -> list[Case]:
  """EMSA beside plain self-attention.

  The attention of a stage of rest_small on a square map: EMSA with its reduction of the keys, and
  multi-head self-attention over all tokens (MSA) with as many heads; the authors' EMSA too.
  """
  sides = (16,) if options.quick else (14, 28, 56, 112)
  stages = ['stage 2'] if options.quick else list(STAGES)
  cases = []
  for stage in stages:
    width, heads, reduction = STAGES[stage]
    for side in sides:
      if side < reduction or side > 56 * 64 // width:
        continue
      for backward in (False, True):
        cases.append(_case(stage, side, width, heads, reduction, backward))
  return cases


def _case(stage: str, side: int, width: int, heads: int, reduction: int, backward: bool) -> Case:
  about = {'layer': stage, 'tokens': side * side, 'work': 'gradient' if backward else 'forward'}
  common = dict(batch=1, side=side, width=width, heads=heads, backward=backward)
  emsa = {**common, 'reduction': reduction, 'mix': True}
  task = 'attention.attention'
  return Case(
    about,
    {
      'EMSA': Ours(task, emsa),
      'MSA': Ours(task, {**common, 'reduction': 1, 'mix': False}),
      "authors' EMSA": Theirs(task, emsa, 'rest'),
    },
  )
