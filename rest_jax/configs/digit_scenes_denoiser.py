"""A small denoising autoencoder on digit_scenes: the zoo's digit_scenes_denoiser.

Source: residual learning as in DnCNN (arXiv 1608.03981) on 2x2 pixels as channels (FFDNet, arXiv
1710.04026), at a size of ours; `rest_jax/train/denoising.py` says which noise it learns to remove.
Command: python train.py --config configs/digit_scenes_denoiser.py
Evaluations give the PSNR of noisy test images before and after denoising. The clean scenes have
sensor noise of their own, with a deviation of up to 9 of 255, which nothing can tell from the rest.
Result: 30.07 dB before, 31.39 dB after, at a deviation of 8/255; 190 kB of weights.
Time and device: 2 min on 2 CPU cores that were busy otherwise.
"""

from rest_jax.train.config import default_config


def get_config():
  """Returns the config."""
  config = default_config()

  config.model.name = 'denoising_autoencoder'
  config.denoise.noise = 16 / 255
  config.denoise.eval_noise = 8 / 255

  config.data.name = 'digit_scenes'
  config.data.image_size = 64
  config.data.cache = True
  config.data.eval_batch_size = 256
  # It gives pixels, so it takes pixels.
  config.data.mean = (0.0, 0.0, 0.0)
  config.data.std = (1.0, 1.0, 1.0)

  config.optim.lr = 2e-3
  config.optim.weight_decay = 0.0
  config.optim.clip_norm = 1.0
  config.optim.warmup_epochs = 0.1

  config.train.epochs = 1.5
  config.train.batch_size = 32
  config.train.eval_every = 0.5
  return config
