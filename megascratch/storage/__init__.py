"""Object storage behind fsspec: names of places (`place.py`) and what is asked of a store (`store.py`); no torch."""
