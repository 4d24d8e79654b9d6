"""Restoration: MR images from incomplete or noisy measurements, with a diffusion prior trained on patches.

prior, unet           the denoiser with EDM preconditioning, in 2D, 2.5D or 3D
volumes, training     its images, and its training for the Ray shell and the loop that all trainings share
tiling, memory        a whole image by patches, and which patches a memory holds
physics, solvers      operators of real images and plug-and-play solvers, on deepinv; baselines beside them
kspace, problem       from files to what a solver takes
restore, output       one restoration, and what it leaves in its folder
study                 held-out slices of the MNI152 T1
"""
