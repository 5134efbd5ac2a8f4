"""Logits and the four maps of a backbone from one pass, which is half to trace and compile."""

from flax import linen as nn


def logits_and_maps(model, variables, x):
  """What a backbone gives in evaluation, and what its `features` gave to it on the way."""
  seen = []

  def keep(function, args, kwargs, context):
    out = function(*args, **kwargs)
    if context.method_name == 'features' and context.module.path == ():
      seen.append(out)
    return out

  with nn.intercept_methods(keep):
    logits = model.apply(variables, x, train=False)
  (maps,) = seen
  return logits, maps
