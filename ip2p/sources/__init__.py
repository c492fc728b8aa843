"""Data that people bring: where it lies, how its rows are read and what its columns are called."""
