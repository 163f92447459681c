"""Object storage through fsspec: paths and addresses (`path.py`), operations with retries (`store.py`). No torch."""
