"""Ranks that die, hang or stand still become an end with a report, and a new start.

    launch   starts the ranks of one machine, watches them, starts them again        (megascratch pretrain)
    nodes    starts torchrun on one of several machines, and watches it                (megascratch pretrain --nnodes)
    beside   one process per machine that watches the ranks that torchrun started
    fork_server, folders, telling    ranks end with the launcher; folders in memory; what is said once for all ranks
    watch    looks at ranks from outside, takes their stacks, ends them
    report   what was seen in, who is to blame out: pure text

Nothing here loads torch, so a supervisor is small and starts at once.
"""
