"""Detects dead, hung or stopped ranks, reports the cause, and restarts the job.

    launch             starts, watches and restarts the ranks of one machine       (megascratch pretrain)
    multi_node         starts and watches torchrun on one of several machines      (megascratch pretrain --nnodes)
    torchrun_watcher   one process per machine that watches the ranks that torchrun started
    observe            looks at ranks from outside, collects their stacks, kills them
    report             finds the rank that caused a failure and writes the report; pure text
    fork_server        the process that ranks are forked from; ranks end with the launcher
    folders            folders in memory for heartbeat files
    print_once         prints a message once for all ranks of a machine

Nothing here loads torch, so a supervisor is small and starts at once.
"""
