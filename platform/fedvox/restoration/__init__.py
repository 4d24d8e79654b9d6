"""Restoration: MR images from incomplete or noisy measurements, with a diffusion prior trained on patches.

prior, unet           the denoiser with EDM preconditioning, in 2D, 2.5D or 3D
volumes, training     its images, and its training for the Ray shell and the loop that all trainings share
"""
