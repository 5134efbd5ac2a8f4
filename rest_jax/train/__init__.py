"""Training: configuration, optimizer, the mapped step, the loop, checkpoints, metrics.

`loop.train(config, workdir)` is the main path; `config.default_config()` lists every setting.
"""
