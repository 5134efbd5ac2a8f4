"""The ImageNet-1k recipes of ResT and ResTv2, shared by the configs of the eight models.

Sources: ResT, arXiv 2105.13677, section 4.1; ResTv2, arXiv 2204.07366, section 4.1; and the
authors' code, github.com/wofmanaf/ResT. Learning rates scale with the batch, so `--batch_size`
may be changed to what the devices hold.

An image goes through random resized crop (bicubic), mirroring and RandAugment on the host, then
random erasing (noise in every pixel), mixup or cutmix of the batch and normalisation on the device.
The papers also name colour jitter 0.4. The authors' code passes it to timm's `create_transform`
together with a RandAugment policy, and timm then leaves colour jitter out; so it is out here.

Where this differs from the authors' run: bfloat16 stands for their float16 AMP; the images of large
JPEGs are decoded at half size or less where the crop keeps 224 pixels (`data.scaled_decoding`).

Time: 300 epochs are 384 million images, so 107,000 / (images per second) hours. Nothing here has
been trained on ImageNet, so neither time nor accuracy of these configs has been measured.

Data: `imagenet2012` of TFDS, which has to be prepared once; train.py says how.
"""

from rest_jax.train.config import Config, default_config


def recipe_v1(model: str, drop_path: float) -> Config:
  """ResT: 300 epochs, batch 2048, learning rate 5e-4 x batch/512, three views of an image a batch.

  Args:
    model: rest_lite, rest_small, rest_base or rest_large.
    drop_path: largest rate of stochastic depth.

  Returns:
    The config.
  """
  config = _shared(model, drop_path)
  config.data.eval_crop_pct = 0.875  # resize to 256, crop 224
  config.augment.repeats = 3

  config.optim.lr = 5e-4
  config.optim.lr_batch = 512
  config.optim.warmup_epochs = 5.0
  config.optim.min_lr = 1e-5
  config.optim.clip_norm = 5.0
  return config


def recipe_v2(model: str, drop_path: float) -> Config:
  """ResTv2: 300 epochs, batch 2048, learning rate 1.5e-4 x batch/256, averaged weights.

  Args:
    model: restv2_tiny, restv2_small, restv2_base or restv2_large.
    drop_path: largest rate of stochastic depth.

  Returns:
    The config.
  """
  config = _shared(model, drop_path)
  config.data.eval_crop_pct = 1.0

  config.optim.lr = 1.5e-4
  config.optim.lr_batch = 256
  config.optim.warmup_epochs = 50.0
  config.optim.min_lr = 1e-6
  config.optim.clip_norm = 1.0

  config.train.ema = 0.9999
  return config


def imagenet(model: str, drop_path: float) -> Config:
  """ImageNet-1k at 224 px with batches of 2048, crops and mirroring; no recipe yet.

  Args:
    model: a name of `list_models()`.
    drop_path: largest rate of stochastic depth.

  Returns:
    The config.
  """
  config = default_config()
  config.model.name = model
  config.model.overrides = {'drop_path_rate': drop_path}
  config.model.dtype = 'bfloat16'

  config.data.name = 'imagenet2012'
  config.data.test_split = 'validation'
  config.data.image_size = 224
  config.data.eval_resize = 'resize_crop'
  config.data.workers = 8
  config.data.scaled_decoding = True

  config.augment.crop_scale = (0.08, 1.0)
  config.augment.interpolation = 'bicubic'
  config.augment.flip = True

  config.optim.warmup_lr = 1e-6

  config.train.batch_size = 2048
  config.log.every = 50
  return config


def _shared(model: str, drop_path: float) -> Config:
  config = imagenet(model, drop_path)

  config.augment.rand_augment = 'rand-m9-mstd0.5-inc1'
  config.augment.mixup = 0.8
  config.augment.cutmix = 1.0
  config.augment.switch_prob = 0.5
  config.augment.erasing = 0.25
  config.augment.label_smoothing = 0.1

  config.optim.weight_decay = 0.05
  config.train.epochs = 300.0
  return config
