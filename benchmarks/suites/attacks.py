"""Suite of the attacks: PGD, APGD and AutoAttack on plain networks."""

from __future__ import annotations

from benchmarks.cases import Case, Options, Ours, Theirs, suite


@suite('attacks')
def attacks(options: Options) -> list[Case]:
  """Attacks.

  On the zoo's ResNet-20 for CIFAR-10 as a plain JAX function, and as a torch module with the same
  weights; images of CIFAR-10 with --data_dir, of noise otherwise. ResNet-18 has weights of noise.
  The peers: torchattacks' PGD, the authors' APGD and AutoAttack. AutoAttack is timed in processes
  that have just begun: compilation counts. What withstands is in the JSON file as 'robust'.
  """
  count, steps = (16, 2) if options.quick else (200, 20)
  of = 'noise' if options.data_dir is None else 'cifar10'
  given = {
    'path': str(options.output / f'resnet20_{count}_{of}.npz'),
    'images': count,
    'data_dir': options.data_dir,
  }
  small = 0.5 / 255
  on_18 = dict(images=64, steps=steps, eps=8 / 255)
  cases = [
    _case('PGD', 'resnet20', 'pgd', {**given, 'steps': steps, 'eps': small}, 'python'),
    _case('APGD', 'resnet20', 'apgd', {**given, 'steps': 5 * steps, 'eps': small}, 'autoattack'),
  ]
  if options.quick:
    return cases
  cases.append(_case('PGD', 'resnet18', 'pgd_resnet18', on_18, 'python'))
  for norm, eps in (('l2', 0.1), ('linf', small)):
    params = {**given, 'norm': norm, 'eps': eps}
    cases.append(_case('AutoAttack', 'resnet20', 'auto_attack', params, 'autoattack', once=True))
  return cases


def _case(name: str, model: str, task: str, params, peer: str, once: bool = False) -> Case:
  about = {
    'attack': name,
    'model': model,
    'images': params['images'],
    'norm': params.get('norm', 'linf'),
    'eps': f'{params["eps"]:.4g}',
    'steps': params.get('steps', ''),
  }
  sides = {'ours': Ours(f'attacks.{task}', params), 'peer': Theirs(f'attacks.{task}', params, peer)}
  return Case(about, sides, items=params['images'], once=once)
