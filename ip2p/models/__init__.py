"""Base models: how they are loaded, how their texts are encoded and how their denoisers are widened."""
