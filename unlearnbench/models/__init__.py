"""Denoisers: networks, noise schedule, sampler, training, checkpoints."""
