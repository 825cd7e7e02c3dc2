"""Experiments with denoising diffusion probabilistic models.

A forward process q is fixed by a schedule. A network's prediction and a sigma turn it into a reverse process
p. An objective, at a timestep, fits p to the data. A sampler walks it from noise to images. A metric measures
what came out. Each of these words is a module here and a folder of conf/.
"""
