"""Compiles a pipeline schedule: adds the transfers to the orders of all ranks and proves that they cannot deadlock.

    orders = [SCHEDULES[name].make(rank, ranks, microbatches, chunks, group) for rank in range(ranks)]
    orders = add_transfers(orders, placement)
    check(orders, placement)

The default `placement` is a loop. A receive in an order means "post it"; the action that uses it waits for it. A send
starts after the action that computes its message, and no action waits for it.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, pairwise

from megascratch.config.errors import UserError
from megascratch.config.registry import facts_of, look_up
from megascratch.pipeline.schedule import COMPUTE, SCHEDULES, Action, Maker, Placement, Schedule

Orders = Sequence[Sequence[Action]]
RankAction = tuple[int, Action]  # a rank and its action
# source, target, whether to the next rank: two ranks can have one link of each kind
LinkKey = tuple[int, int, bool]

# operation -> its transfer, and how many virtual stages away the other end is
_SENDS = {"F": ("SF", 1), "B": ("SB", -1), "I": ("SB", -1)}
_RECEIVES = {"F": ("RF", -1), "B": ("RB", 1), "I": ("RB", 1)}


class ScheduleError(ValueError):
    """A schedule that would hang or give wrong gradients; the message names the rank and the action."""


def compile_order(
    schedule: str,
    ranks: int,
    microbatches: int,
    chunks: int = 1,
    group: int | None = None,
    placement: Placement | None = None,
) -> tuple[tuple[Action, ...], ...]:
    """The complete and proved order of every rank, cached.

    Args:
        schedule: a key of SCHEDULES, or a registered name.
        placement: replaces the placement of the schedule: evaluation uses the one that the model was built for.

    Raises:
        UserError: the schedule does not fit these numbers, or one that a user registered is wrong.
        ScheduleError: a schedule of the package is wrong.
    """
    found = schedule_of(schedule)
    placement = placement or placement_of(schedule, ranks, chunks)
    if schedule in SCHEDULES:
        return _compiled(found.make, microbatches, group, placement)
    size = f"with {ranks} stages and {microbatches} micro-batches"
    try:
        return _compiled(found.make, microbatches, group, placement)
    except ScheduleError as error:
        raise UserError(f"the schedule {schedule} is wrong {size}: {error}") from error
    except (TypeError, IndexError, KeyError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the schedule {schedule} fails {size}: {reason}") from error


@lru_cache(maxsize=64)
def _compiled(
    make: Maker, microbatches: int, group: int | None, placement: Placement
) -> tuple[tuple[Action, ...], ...]:
    orders = []
    for rank in range(placement.ranks):
        order = make(rank, placement.ranks, microbatches, placement.chunks, group)
        for action in order:
            _require_action(rank, action, placement)
            if not 0 <= action.microbatch < microbatches:
                raise ScheduleError(
                    f"rank {rank} runs {action}, but the micro-batches of the step are 0 to {microbatches - 1}"
                )
        orders.append(order)
    complete = add_transfers(orders, placement)
    check(complete, placement)
    return tuple(map(tuple, complete))


def _require_action(rank: int, action: Action, placement: Placement) -> None:
    is_action = isinstance(action, Action) and action.op in COMPUTE
    if not is_action or action.microbatch < 0 or not 0 <= action.chunk < placement.chunks:
        raise ScheduleError(
            f"rank {rank} has {action!s}, which is not Action(op, microbatch, chunk) with op of {', '.join(COMPUTE)} "
            f"and a chunk below {placement.chunks}"
        )


def placement_of(schedule: str, ranks: int, chunks: int = 1) -> Placement:
    """The placement of the chunks in a schedule."""
    return Placement(ranks, chunks, schedule_of(schedule).folded)


def schedule_of(name: str) -> Schedule:
    """A row of SCHEDULES, or a function that a user registered. Raises: UserError for an unknown name."""
    found = look_up("schedule", name, SCHEDULES)
    if isinstance(found, Schedule):
        return found
    return Schedule(found, facts_of("schedule", name)["folded"])


def looped_placement(orders: Orders) -> Placement:
    """The default placement of orders: a loop."""
    return Placement(len(orders), chunks_of(orders))


# ---- transfers -------------------------------------------------------------------------------------------------


def add_transfers(orders: Orders, placement: Placement | None = None) -> list[list[Action]]:
    """Adds a send after each action whose result another rank needs, and a receive before each action that needs one.

    The receives of a link are in the order of its sends. Each is posted one action before it is needed, so that the
    transfer overlaps with that action. Neighbouring virtual stages on one rank need no transfer.
    """
    placement = placement or looped_placement(orders)
    # the receives of each link, in the order of its sends
    arriving: dict[LinkKey, deque[Action]] = defaultdict(deque)
    for rank, order in enumerate(orders):
        for action in order:
            send = _send(rank, action, placement)
            if send is not None:
                _, receive = placement.other_end(rank, send)
                arriving[link_of(rank, send, placement)].append(receive)
    return [_with_transfers(rank, order, arriving, placement) for rank, order in enumerate(orders)]


def _with_transfers(
    rank: int, order: Sequence[Action], arriving: dict[LinkKey, deque[Action]], placement: Placement
) -> list[Action]:
    """The order of one rank with its transfers; takes its receives out of `arriving`."""
    posted: set[Action] = set()
    early: list[list[Action]] = [[] for _ in order]  # by action: the receives to post before it
    for position, action in enumerate(order):
        receive = _receive(rank, action, placement)
        if receive is None:
            continue
        queue = arriving[link_of(rank, receive, placement)]
        while receive not in posted:
            first = queue.popleft() if queue else receive  # never sent: `check` will say so
            posted.add(first)
            early[max(position - 1, 0)].append(first)
    complete: list[Action] = []
    for receives, action in zip(early, order, strict=True):
        complete += receives
        complete.append(action)
        send = _send(rank, action, placement)
        if send is not None:
            complete.append(send)
    return complete


def link_of(rank: int, transfer: Action, placement: Placement) -> LinkKey:
    """The directed link that a transfer of `rank` uses; the messages of a link arrive in the order of its sends."""
    peer, _ = placement.other_end(rank, transfer)
    down = placement.goes_down(transfer)
    if transfer.op in ("SF", "SB"):
        return rank, peer, down
    return peer, rank, down


def _send(rank: int, action: Action, placement: Placement) -> Action | None:
    """The send that follows `action`; None if there is none."""
    return _transfer(rank, action, placement, _SENDS)


def _receive(rank: int, action: Action, placement: Placement) -> Action | None:
    """The receive that `action` waits for; None if there is none."""
    return _transfer(rank, action, placement, _RECEIVES)


def _transfer(
    rank: int, action: Action, placement: Placement, kinds: dict[str, tuple[str, int]]
) -> Action | None:
    if action.op not in kinds:
        return None
    op, step = kinds[action.op]
    peer_stage = placement.virtual_stage(rank, action.chunk) + step
    if not 0 <= peer_stage < placement.stages:
        return None
    peer, _ = placement.place(peer_stage)
    return None if peer == rank else action._replace(op=op)


# ---- proof -----------------------------------------------------------------------------------------------------


def check(orders: Orders, placement: Placement | None = None, blocking_sends: bool = False) -> None:
    """Proves that `orders` run to the end and compute every gradient once, summed in a fixed order.

    Args:
        blocking_sends: a send also waits until its receive is posted (transports without buffers).

    Raises:
        ScheduleError: names the rank and the action.
    """
    actions = list(chain.from_iterable(orders))
    microbatches = 1 + max(action.microbatch for action in actions)
    backward = any(action.op in ("B", "I", "W") for action in actions)
    placement = placement or looped_placement(orders)
    for rank, order in enumerate(orders):
        for chunk in range(placement.chunks):
            of_chunk = [action for action in order if action.chunk == chunk]
            _check_each_once(rank, of_chunk, chunk, microbatches, backward)
        _check_inputs_posted(rank, order, placement)
    _check_paired(orders, placement)
    deque(topological_order(orders, placement, blocking_sends), maxlen=0)


def chunks_of(orders: Orders) -> int:
    """The number of model chunks per rank."""
    return 1 + max(action.chunk for action in chain.from_iterable(orders))


def _check_each_once(
    rank: int, order: list[Action], chunk: int, microbatches: int, backward: bool
) -> None:
    """Checks that each micro-batch has one forward and, when training, one backward (B, or I and W), in order."""
    at = {action: position for position, action in enumerate(order)}
    for action, times in Counter(order).items():
        if times > 1:
            raise ScheduleError(f"rank {rank} runs {action} more than once")
    for m in range(microbatches):
        forward, whole, input_grad, weight_grad = (Action(op, m, chunk) for op in COMPUTE)
        if whole in at and (input_grad in at or weight_grad in at):
            raise ScheduleError(f"rank {rank} runs {whole} and again its parts I and W")
        wanted = [forward]
        if backward and input_grad in at:
            wanted += [input_grad, weight_grad]
        elif backward:
            wanted.append(whole)
        for action in wanted:
            if action not in at:
                raise ScheduleError(f"rank {rank} lacks {action}")
        for before, after in pairwise(wanted):
            if at[before] > at[after]:
                raise ScheduleError(f"rank {rank} runs {after} before {before}")
    for ops in ("BI", "BW"):
        backwards = [action for action in order if action.op in ops]
        for before, after in pairwise(backwards):
            if before.microbatch > after.microbatch:
                raise ScheduleError(
                    f"rank {rank} runs {after} after {before}: gradients add up in the order of "
                    "the micro-batches, so that every schedule gives the same bits"
                )


def _check_inputs_posted(rank: int, order: Sequence[Action], placement: Placement) -> None:
    """Checks that each input was posted before its use, and each message computed before its send."""
    seen: set[Action] = set()
    for action in order:
        receive = _receive(rank, action, placement)
        if receive is not None and receive not in seen:
            raise ScheduleError(
                f"rank {rank} runs {action} without its input: no {receive} before it"
            )
        producers = {"SF": ("F",), "SB": ("B", "I")}.get(action.op, ())
        sources = [action._replace(op=op) for op in producers]
        if sources and not seen.intersection(sources):
            raise ScheduleError(f"rank {rank} runs {action} before {sources[0]}")
        seen.add(action)


def _check_paired(orders: Orders, placement: Placement) -> None:
    """Checks that on every directed link the receives match the sends, in the same order."""
    sent: dict[LinkKey, list[Action]] = defaultdict(list)  # as the receiver names them
    received: dict[LinkKey, list[Action]] = defaultdict(list)
    for rank, order in enumerate(orders):
        for action in order:
            if action.op in ("SF", "SB"):
                _, receive = placement.other_end(rank, action)
                sent[link_of(rank, action, placement)].append(receive)
            elif action.op in ("RF", "RB"):
                received[link_of(rank, action, placement)].append(action)
    for link in sorted({*sent, *received}, key=lambda link: (link[:2], not link[2])):
        _check_same_order(link, sent[link], received[link], placement)


def _check_same_order(
    link: LinkKey, sent: list[Action], received: list[Action], placement: Placement
) -> None:
    source, target, _ = link
    all_sent = set(sent)
    all_received = set(received)
    for receive in received:
        if receive not in all_sent:
            raise ScheduleError(
                f"rank {target} waits forever at {receive}: rank {source} never sends it"
            )
    for receive in sent:
        if receive not in all_received:
            _, send = placement.other_end(target, receive)
            raise ScheduleError(f"rank {source} sends {send}, but rank {target} never receives it")
    for theirs, ours in zip(sent, received, strict=True):
        if theirs != ours:
            _, send = placement.other_end(target, theirs)
            raise ScheduleError(
                f"rank {target} receives {ours} where rank {source} sends {send}: a link delivers "
                "in the order of its sends"
            )


def topological_order(
    orders: Orders, placement: Placement | None = None, blocking_sends: bool = False
) -> Iterator[RankAction]:
    """Every (rank, action) in an order in which they can run.

    Raises:
        ScheduleError: ranks wait for each other in a circle.
    """
    placement = placement or looped_placement(orders)
    position = [0] * len(orders)  # by rank: the next action
    done: set[RankAction] = set()
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(orders):
            while position[rank] < len(order):
                action = order[position[rank]]
                needed = dependency_of(rank, action, placement, blocking_sends)
                if needed is not None and needed not in done:
                    break
                yield rank, action
                done.add(completion_key(rank, action))
                position[rank] += 1
                moved = True
    heads = {}  # the action at which each rank is blocked
    for rank, order in enumerate(orders):
        if position[rank] < len(order):
            heads[rank] = order[position[rank]]
    if heads:
        raise ScheduleError(_circle(heads, placement, blocking_sends))


def completion_key(rank: int, action: Action) -> RankAction:
    """The key under which others wait for `action`: I has the key of B, since it gives the same result."""
    if action.op == "I":
        action = action._replace(op="B")
    return rank, action


def dependency_of(
    rank: int, action: Action, placement: Placement, blocking_sends: bool = False
) -> RankAction | None:
    """The `completion_key` of the action on another rank or chunk that must end before `action` can start."""
    if action.op in ("SF", "SB"):
        return placement.other_end(rank, action) if blocking_sends else None
    receive = _receive(rank, action, placement)
    if receive is not None:
        return placement.other_end(rank, receive)
    if action.op not in _RECEIVES:
        return None
    _, step = _RECEIVES[action.op]
    needed_stage = placement.virtual_stage(rank, action.chunk) + step
    if not 0 <= needed_stage < placement.stages:
        return None
    peer, chunk = placement.place(needed_stage)
    op = "F" if action.op == "F" else "B"
    return peer, Action(op, action.microbatch, chunk)


def _circle(heads: dict[int, Action], placement: Placement, blocking_sends: bool) -> str:
    """Describes the cycle of ranks that wait for each other, from the first blocked rank."""
    rank = min(heads)
    path: dict[int, str] = {}
    while rank in heads and rank not in path:
        needed = dependency_of(rank, heads[rank], placement, blocking_sends)
        assert needed is not None  # a rank that needs nothing is not blocked
        peer, action = needed
        path[rank] = f"rank {rank} waits at {heads[rank]} for {action} of rank {peer}"
        rank = peer
    return "circular wait: " + "; ".join(path.values())


# ---- picture ---------------------------------------------------------------------------------------------------


def draw(orders: Orders) -> list[str]:
    """One line per rank: `F0 F1 B0 ...`."""
    return [" ".join(map(str, order)) for order in orders]
