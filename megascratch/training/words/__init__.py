"""The words in which a run reports (`--log-format`): console lines, and the tags of its numbers in sinks.

interface       what words are
megascratch     ours
megatron        Megatron-LM's, for its parsers, dashboards and tests
"""
