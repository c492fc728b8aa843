"""The recipe of the tiny base models: VAE, CLIP, denoiser and language model, each trained from scratch on drawn scenes."""
