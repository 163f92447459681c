"""Reads command lines of Megatron-LM: what each of its flags means here, and which of its defaults differ."""
