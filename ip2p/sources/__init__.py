"""Data that users bring: where it is, how its rows are read, and what its columns are called."""
