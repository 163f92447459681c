"""Compute-only orders of all ranks in, playable orders out: transfers are added, the whole is proved, and drawn.

    orders = [SCHEDULES[name](rank, ranks, microbatches, chunks, group) for rank in range(ranks)]
    orders = add_transfers(orders, chunks)
    check(orders)

A receive in an order means "post it": its action waits for it. A send goes out behind its action and nobody waits.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

from megascratch.pipeline.schedule import SCHEDULES, Action, other_end, place, virtual_stage

Orders = Sequence[Sequence[Action]]
Place = tuple[int, Action]  # a rank and its action


class ScheduleError(ValueError):
    """An order that would hang or give wrong gradients; the text names the rank and the action."""


@lru_cache(maxsize=64)
def compile_order(
    schedule: str, ranks: int, microbatches: int, chunks: int = 1, group: int | None = None
) -> tuple[tuple[Action, ...], ...]:
    """The playable order of every rank, proved once; `schedule` is a row of SCHEDULES.

    Raises:
        UserError: the schedule does not fit these numbers.
        ScheduleError: the schedule is wrong.
    """
    orders = [SCHEDULES[schedule](rank, ranks, microbatches, chunks, group) for rank in range(ranks)]
    orders = add_transfers(orders, chunks)
    check(orders)
    return tuple(map(tuple, orders))


# ---- transfers -------------------------------------------------------------------------------------------------


def add_transfers(orders: Orders, chunks: int = 1) -> list[list[Action]]:
    """Puts a send behind each action whose result another rank needs, and posts the receives.

    Receives of one link stand in the order of its sends, each one action earlier than it is needed, so that the
    transfer runs beside that action. Neighbouring virtual stages on one rank hand over without a transfer.
    """
    sending = [[(action, _send(rank, action, len(orders), chunks)) for action in order]
               for rank, order in enumerate(orders)]
    arriving: dict[tuple[int, str], deque[Action]] = defaultdict(deque)
    for rank, pairs in enumerate(sending):
        for _, send in pairs:
            if send is not None:
                peer, receive = other_end(rank, send, len(orders))
                arriving[peer, receive.op].append(receive)
    return [_with_transfers(rank, pairs, arriving, len(orders), chunks) for rank, pairs in enumerate(sending)]


def _with_transfers(
    rank: int,
    pairs: list[tuple[Action, Action | None]],
    arriving: dict[tuple[int, str], deque[Action]],
    ranks: int,
    chunks: int,
) -> list[Action]:
    posted: set[Action] = set()
    early: list[list[Action]] = [[] for _ in pairs]
    for position, (action, _) in enumerate(pairs):
        receive = _receive(rank, action, ranks, chunks)
        if receive is None:
            continue
        queue = arriving[rank, receive.op]
        while receive not in posted:
            first = queue.popleft() if queue else receive  # never sent: `check` will say so
            posted.add(first)
            early[max(position - 1, 0)].append(first)
    order: list[Action] = []
    for receives, (action, send) in zip(early, pairs, strict=True):
        order += [*receives, action] if send is None else [*receives, action, send]
    return order


def _send(rank: int, action: Action, ranks: int, chunks: int) -> Action | None:
    """What goes out behind `action`."""
    return _transfer(rank, action, ranks, chunks, {"F": "SF", "B": "SB", "I": "SB"})


def _receive(rank: int, action: Action, ranks: int, chunks: int) -> Action | None:
    """What `action` waits for."""
    return _transfer(rank, action, ranks, chunks, {"F": "RF", "B": "RB", "I": "RB"})


def _transfer(rank: int, action: Action, ranks: int, chunks: int, kinds: dict[str, str]) -> Action | None:
    if action.op not in kinds:
        return None
    transfer = action._replace(op=kinds[action.op])
    needed = 0 <= _peer_stage(rank, transfer, ranks) < ranks * chunks
    return transfer if needed and other_end(rank, transfer, ranks)[0] != rank else None


def _peer_stage(rank: int, transfer: Action, ranks: int) -> int:
    peer, other = other_end(rank, transfer, ranks)
    return virtual_stage(peer, ranks, other.chunk)


# ---- proof -----------------------------------------------------------------------------------------------------


def check(orders: Orders, blocking_sends: bool = False) -> None:
    """Proves that playing `orders` ends and gives every gradient once, in one order of summation.

    Args:
        blocking_sends: a send also waits until its receive is posted (transports without buffers).

    Raises:
        ScheduleError: names the rank and the action.
    """
    microbatches = 1 + max(action.microbatch for order in orders for action in order)
    backward = any(action.op != "F" for order in orders for action in order if action.op in "FBIW")
    for rank, order in enumerate(orders):
        for chunk in range(chunks_of(orders)):
            _each_once(rank, [a for a in order if a.chunk == chunk], chunk, microbatches, backward)
        _fed(rank, order, len(orders), chunks_of(orders))
    _paired(orders)
    deque(walk(orders, blocking_sends), maxlen=0)


def chunks_of(orders: Orders) -> int:
    """Model chunks per rank."""
    return 1 + max(action.chunk for order in orders for action in order)


def _each_once(rank: int, order: list[Action], chunk: int, microbatches: int, backward: bool) -> None:
    """Every micro-batch forward once and, when training, backward once (B, or I and W), in order."""
    at = {action: position for position, action in enumerate(order)}
    twice = [action for action, times in Counter(order).items() if times > 1]
    if twice:
        raise ScheduleError(f"rank {rank} runs {twice[0]} more than once")
    for m in range(microbatches):
        whole = Action("B", m, chunk) in at
        if whole and (Action("I", m, chunk) in at or Action("W", m, chunk) in at):
            raise ScheduleError(f"rank {rank} runs {Action('B', m, chunk)} and again its parts I and W")
        wanted = ["F"] + (["B"] if whole or Action("I", m, chunk) not in at else ["I", "W"]) * backward
        chain = [Action(op, m, chunk) for op in wanted]
        for action in chain:
            if action not in at:
                raise ScheduleError(f"rank {rank} lacks {action}")
        for before, after in pairwise(chain):
            if at[before] > at[after]:
                raise ScheduleError(f"rank {rank} runs {after} before {before}")
    for ops in ("BI", "BW"):
        backwards = [action for action in order if action.op in ops]
        for before, after in pairwise(backwards):
            if before.microbatch > after.microbatch:
                raise ScheduleError(f"rank {rank} runs {after} after {before}: gradients add up in the order of "
                                    "the micro-batches, so that every schedule gives the same bits")


def _fed(rank: int, order: Sequence[Action], ranks: int, chunks: int) -> None:
    """What is used was posted before, what is sent was computed before."""
    seen: set[Action] = set()
    for action in order:
        receive = _receive(rank, action, ranks, chunks)
        if receive is not None and receive not in seen:
            raise ScheduleError(f"rank {rank} runs {action} without its input: no {receive} before it")
        sources = [action._replace(op=op) for op in {"SF": "F", "SB": "BI"}.get(action.op, "")]
        if sources and not seen.intersection(sources):
            raise ScheduleError(f"rank {rank} runs {action} before {sources[0]}")
        seen.add(action)


def _paired(orders: Orders) -> None:
    """On every directed link the receives are the sends, in the same order."""
    sent: dict[tuple[int, int, str], list[Action]] = defaultdict(list)  # as the receiver names them
    received: dict[tuple[int, int, str], list[Action]] = defaultdict(list)
    for rank, order in enumerate(orders):
        for action in order:
            if action.op in ("SF", "SB"):
                peer, receive = other_end(rank, action, len(orders))
                sent[rank, peer, receive.op].append(receive)
            elif action.op in ("RF", "RB"):
                received[other_end(rank, action, len(orders))[0], rank, action.op].append(action)
    for link in sorted({*sent, *received}):
        _same(link, sent[link], received[link], len(orders))


def _same(link: tuple[int, int, str], sent: list[Action], received: list[Action], ranks: int) -> None:
    source, target, _ = link
    gone, here = set(sent), set(received)
    never_sent, never_received = [a for a in received if a not in gone], [a for a in sent if a not in here]
    if never_sent:
        raise ScheduleError(f"rank {target} waits forever at {never_sent[0]}: rank {source} never sends it")
    if never_received:
        send = other_end(target, never_received[0], ranks)[1]
        raise ScheduleError(f"rank {source} sends {send}, but rank {target} never receives it")
    for theirs, ours in zip(sent, received, strict=True):
        if theirs != ours:
            send = other_end(target, theirs, ranks)[1]
            raise ScheduleError(f"rank {target} receives {ours} where rank {source} sends {send}: a link delivers "
                                "in the order of its sends")


def walk(orders: Orders, blocking_sends: bool = False) -> Iterator[Place]:
    """Every (rank, action) in an order in which it can happen.

    Raises:
        ScheduleError: ranks wait for each other in a circle.
    """
    chunks, position, done = chunks_of(orders), [0] * len(orders), set[Place]()
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(orders):
            while position[rank] < len(order):
                action = order[position[rank]]
                needed = need(rank, action, len(orders), chunks, blocking_sends)
                if needed is not None and needed not in done:
                    break
                yield rank, action
                done.add(done_as(rank, action))
                position[rank], moved = position[rank] + 1, True
    heads = {rank: order[position[rank]] for rank, order in enumerate(orders) if position[rank] < len(order)}
    if heads:
        raise ScheduleError(_circle(heads, len(orders), chunks, blocking_sends))


def done_as(rank: int, action: Action) -> Place:
    """Under which name others wait for `action`: I hands on what B does."""
    return rank, action._replace(op="B") if action.op == "I" else action


def need(rank: int, action: Action, ranks: int, chunks: int, blocking_sends: bool = False) -> Place | None:
    """What on another rank or chunk must be done, by its name of `done_as`, before `action` can start."""
    if action.op in ("SF", "SB"):
        return other_end(rank, action, ranks) if blocking_sends else None
    receive = _receive(rank, action, ranks, chunks)
    if receive is not None:
        return other_end(rank, receive, ranks)
    virtual, step = virtual_stage(rank, ranks, action.chunk), {"F": -1, "B": 1, "I": 1}.get(action.op, 0)
    if not step or not 0 <= virtual + step < ranks * chunks:
        return None
    peer, chunk = place(virtual + step, ranks)
    return peer, Action("F" if action.op == "F" else "B", action.microbatch, chunk)


def _circle(heads: dict[int, Action], ranks: int, chunks: int, blocking_sends: bool) -> str:
    """The ranks that wait for each other, from the first one that is stuck."""
    rank, path = min(heads), dict[int, str]()
    while rank in heads and rank not in path:
        needed = need(rank, heads[rank], ranks, chunks, blocking_sends)
        assert needed is not None  # a rank that needs nothing is not stuck
        path[rank] = f"rank {rank} waits at {heads[rank]} for {needed[1]} of rank {needed[0]}"
        rank = needed[0]
    return "circular wait: " + "; ".join(path.values())


# ---- picture ---------------------------------------------------------------------------------------------------


def draw(orders: Orders) -> list[str]:
    """One line per rank: `F0 F1 B0 ...`."""
    return [" ".join(map(str, order)) for order in orders]
