"""The maths of paired rendering (prompt-to-prompt) on fused attention; models come as arguments."""
