"""Where the numbers of a run go in addition to metrics.jsonl (`--log-to`): TensorBoard, trackers, OpenTelemetry.

sink           what a sink is, the numbers of a row, and the libraries that each needs
tensorboard    event files
trackers       Weights & Biases and trackio, which have the same calls
open_telemetry metrics for a collector
chosen         the sinks that the settings name, each guarded: an error is reported once and ends only this sink
"""
