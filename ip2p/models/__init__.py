"""Base models: one file per architecture, and how their parts and pipelines are loaded.

`architecture` holds the interface. Every module of this folder that has an `ARCHITECTURE` is a base that can be used;
`noise/` has a file per noise process.
"""
