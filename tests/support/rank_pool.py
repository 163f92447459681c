"""Runs a function on N gloo ranks: `on_ranks(4, function, *args)` returns the four results in rank order; one pool of
workers lives for the whole test session.
"""

import atexit
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from megascratch.verification.pool import Pool, RankFailed, group_maker, mesh_for, mesh_of

__all__ = ["RankFailed", "group_maker", "mesh_for", "mesh_of", "on_ranks", "session_pool"]

TIMEOUT = 300.0  # of a machine with much else to do; a rank that dies or raises is noticed at once
GRACE = 30.0


@lru_cache(maxsize=1)
def session_pool() -> Pool:
    """The pool that all tests share."""
    pool = Pool(TIMEOUT, grace=GRACE)
    atexit.register(pool.close)
    return pool


def on_ranks(world: int, function: Callable, *args: Any) -> list:
    """Calls a module-level ``function(*args)`` on `world` ranks; results in rank order.

    Raises:
        RankFailed: a rank raised, hung or died.
    """
    return session_pool().run(world, function, *args)
