"""The embedded domain: scenes drawn by code, an oracle that reads them back, and tiny base models trained on them."""
