"""What the defence experiment compares: its configs, its training and its models."""

import json
import time
from typing import Any

import numpy as np

EPS = 8 / 255
SIDE = 32  # pixels: AutoAttack on 64 x 64 takes four times as long
ALL = (1, 2, 3, 4)
# Layers of 8 DCT bands: name to strategy and the stages that they stand behind.
ARMS = {
  'none': None,
  'low_pass': ('low_pass', (1,)),
  'uniform': ('uniform', (1,)),
  'soft_threshold': ('soft_threshold', (1,)),
  'wiener': ('wiener', (1,)),
  'learned': ('learned', (1,)),
  'wiener_all': ('wiener', ALL),
  'learned_all': ('learned', ALL),
}
# Denoiser and strength.
DENOISERS = {
  'gaussian': 0.5,
  'median': 0.5,
  'bit_depth': 0.5,
  'jpeg': 0.5,
  'dct_soft': 0.5,
  'wavelet': 0.5,
  'total_variation': 0.5,
  'pca': 0.5,
  'autoencoder': 1.0,
}
BASE_EPOCHS = 2.0
ARM_EPOCHS = 0.64


def base_config(seed: int):
  """Adversarial training from the zoo's model, Linf 8/255, three steps of PGD an update."""
  from configs import digit_scenes_at

  config = digit_scenes_at.get_config('short')
  config.seed = seed
  config.data.image_size = SIDE
  config.data.cache = False
  config.adversarial.eps = EPS
  config.adversarial.steps = 3
  config.adversarial.eval_steps = 0  # the attacks come after the training
  config.optim.lr = 5e-4
  config.train.epochs = config.train.eval_every = BASE_EPOCHS
  return config


def compression_of(arm: str) -> dict | None:
  """Options of the arm's layers, as `create_model` takes them."""
  if ARMS[arm] is None:
    return None
  strategy, stages = ARMS[arm]
  return {'strategy': strategy, 'bands': 8, 'stages': stages}


def arm_config(args, arm: str, seed: int):
  """The same for `ARM_EPOCHS` more, from the seed's base, with the arm's layers."""
  config = base_config(seed)
  config.seed = 100 + seed  # other batches than the base has seen
  start = f'{arm}_{seed}_start' if arm.startswith('wiener') else f'base_{seed}/model'
  config.model.init = str(args.work_dir / start)
  if (options := compression_of(arm)) is not None:
    config.model.overrides.compression = options
  config.optim.lr = 5e-4
  config.train.epochs = config.train.eval_every = ARM_EPOCHS
  return config


def train_all(args) -> None:
  """Trains what is missing, and keeps how long it took."""
  kept = args.work_dir / 'training.json'
  times = json.loads(kept.read_text()) if kept.exists() else {}
  for seed in range(args.seeds):
    for name in ('base', *ARMS):
      run = f'{name}_{seed}'
      if run in times:
        continue
      times[run] = _train(args, name, seed)
      kept.write_text(json.dumps(times, indent=1) + '\n')
      print(run, times[run], flush=True)


def _train(args, name: str, seed: int) -> dict:
  from rest_jax.train.loop import train

  began = time.perf_counter()
  if name.startswith('wiener'):
    _measured_start(args, name, seed)
  config = base_config(seed) if name == 'base' else arm_config(args, name, seed)
  results = train(config, args.work_dir / f'{name}_{seed}')
  seconds = round(time.perf_counter() - began, 1)
  return {'updates': results['step'], 'seconds': seconds, 'top1': results['last']['top1']}


def _measured_start(args, arm: str, seed: int) -> None:
  """The base with layers whose gains were measured on training images under PGD."""
  from rest_jax import Classifier, defend

  base = Classifier.load(args.work_dir / f'base_{seed}' / 'model')
  clean, adv = under_attack(base, SIDE, 512, seed)
  with_layers = defend.add_compression(base, compression_of(arm))
  defend.with_wiener_gains(with_layers, clean, adv).save(args.work_dir / f'{arm}_{seed}_start')


def under_attack(model, side: int, count: int, seed: int):
  """Training images of a size, and what PGD-20 makes of them."""
  import jax

  from rest_jax import attacks

  images, labels = _read('train', count, side)
  key = jax.random.key(seed)
  options = {'eps': EPS, 'steps': 20, 'stop_early': False, 'query_batch': 64}
  return images, np.asarray(attacks.pgd(model, images, labels, key=key, **options))


def _read(split: str, count: int, side: int = SIDE):
  """The first images of a split at the experiment's size, and their labels."""
  from rest_jax import data

  sources = data.load('digit_scenes')
  batches = data.eval_batches(getattr(sources, split), batch_size=count, image_size=side)
  batch = next(iter(batches))
  return np.asarray(batch['image'], np.float32) / 255, np.asarray(batch['label'])


def load_images(args):
  """Test images float32 (N, 32, 32, 3) in [0, 1], and their labels."""
  return _read('test', max(args.images, args.auto_attack_images))


def plain_model(args, seed: int):
  """The arm without a layer: undefended but for its adversarial training."""
  from rest_jax import Classifier

  return Classifier.load(args.work_dir / f'none_{seed}' / 'model')


def defended(args, name: str, seed: int) -> Any:
  """A row's defence: a model of its own, or a denoiser in front of the plain one."""
  from rest_jax import Classifier, defend

  if name in ARMS:
    return defend.Defended(Classifier.load(args.work_dir / f'{name}_{seed}' / 'model'))
  options = {'basis': _read('train', 256)[0]} if name == 'pca' else {}
  return defend.denoiser(name, DENOISERS[name], **options)


def target(args, name: str, seed: int):
  """What an attack that knows the defence differentiates."""
  from rest_jax import defend

  if name == 'none':
    return plain_model(args, seed)
  defence = defended(args, name, seed)
  if name in ARMS:
    return defence.model
  return defend.attackable(plain_model(args, seed), defence)
