"""Does the maths of paired rendering (prompt-to-prompt) on fused attention; models are passed in."""
