"""Training: module, data, callbacks, ``run(config, folder)``."""
