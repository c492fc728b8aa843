"""The embedded domain: scenes drawn by code, an oracle that reads them back, and the tiny base models trained on them."""
