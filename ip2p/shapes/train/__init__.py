"""The recipe of the tiny base models: autoencoder, CLIP, denoiser and language model, each trained from scratch."""
