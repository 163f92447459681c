"""The rules of layers: patterns that Megatron-LM evaluates, windows that do not count a token itself, and defaults of
ropes and gated activations. See `rules.py`.
"""

import ast
from collections.abc import Iterator

from megascratch.config.megatron.command_line import Given
from megascratch.config.megatron.rule import Becomes, Options, number_of, words_of

MOST_LAYERS = 100_000


def pattern_of(given: Given | None) -> list[int] | None:
    """The numbers of a pattern: of `4`, or of a list such as `([1]*3+[0])*12`; None if there is none, or it is
    neither."""
    if given is None or len(given.words) != 1:
        return None
    try:
        found = _evaluated(ast.parse(given.words[0], mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return [found] if isinstance(found, int) else found


def _evaluated(node: ast.expr) -> int | list[int]:
    """Raises: ValueError for anything but sums and products of whole numbers and lists of them."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.List):
        numbers = []
        for each in node.elts:
            number = _evaluated(each)
            if not isinstance(number, int):
                raise ValueError
            numbers.append(number)
        return numbers
    if isinstance(node, ast.BinOp):
        left = _evaluated(node.left)
        right = _evaluated(node.right)
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
        if isinstance(node.op, ast.Mult):
            if isinstance(left, int):
                left, right = right, left
            if isinstance(left, list) and isinstance(right, int):
                if len(left) * right > MOST_LAYERS:
                    raise ValueError
                return left * right
    raise ValueError


def window_of(options: Options) -> tuple[int, int] | None:
    """The numbers of `--window-size`: tokens before and after a token; None if it is missing or is not two numbers."""
    words = words_of(options, "window-size")
    try:
        before, after = (int(number) for number in words[0].strip("()").split(","))
    except (IndexError, ValueError):
        return None
    return before, after


def windows(options: Options) -> Iterator[Becomes]:
    """`--window-size 127,0` says how many tokens a token sees before itself: a window of 128."""
    window = window_of(options)
    if window is None or window[0] < 0:
        return
    yield Becomes("sliding_window", window[0] + 1, "--window-size, and the token itself")
    pattern = pattern_of(options.get("window-attn-skip-freq"))
    if pattern is not None:
        yield Becomes("window_attn_skip_freq", pattern, "--window-attn-skip-freq")


def layers_without_rope(options: Options) -> Iterator[Becomes]:
    """A pattern may be an expression."""
    pattern = pattern_of(options.get("no-rope-freq"))
    if pattern is not None:
        yield Becomes("no_rope_freq", pattern, "--no-rope-freq")


def stretched_rope(options: Options) -> Iterator[Becomes]:
    """`--use-rope-scaling` is that of Llama 3.1, from 8,192 tokens on, by 8 unless another factor is given."""
    if "use-rope-scaling" in options:
        reason = "--use-rope-scaling: as in Llama 3.1"
        yield Becomes("rope_original_max_position_embeddings", 8192, reason)
        yield Becomes("rope_scaling_factor", 8.0, reason)


def width_of_quick_geglu(options: Options) -> Iterator[Becomes]:
    """The width of this gated MLP is that of one without a gate."""
    hidden = number_of(options, "hidden-size")
    if "quick-geglu" in options and "ffn-hidden-size" not in options and hidden:
        yield Becomes("ffn_hidden_size", 4 * hidden, "--quick-geglu: 4 x hidden size")


def context_exchange(options: Options) -> Iterator[Becomes]:
    """All layers have the same way."""
    ways = set(words_of(options, "cp-comm-type"))
    if len(ways) == 1:
        yield Becomes("cp_comm_type", ways.pop(), "--cp-comm-type")


def unreadable_pattern(options: Options) -> str:
    """A pattern is a number or a list."""
    for name in ("window-attn-skip-freq", "no-rope-freq"):
        if name in options and words_of(options, name) and pattern_of(options[name]) is None:
            return (
                f"{options[name].typed} is not a pattern of layers: give one number, or a list with one 0 or 1 for "
                "each layer, such as ([1]*3+[0])*12"
            )
    return ""


def window_of_another_form(options: Options) -> str:
    """A causal window has nothing after a token."""
    if not words_of(options, "window-size"):
        return ""
    window = window_of(options)
    if window is None or window[1] not in (0, -1):
        return f"{options['window-size'].typed} must be the tokens before a token and 0: --window-size 127,0"
    return ""


def several_exchanges(options: Options) -> str:
    """Layers cannot differ in how they share a sequence."""
    ways = list(dict.fromkeys(words_of(options, "cp-comm-type")))
    if len(ways) < 2:
        return ""
    return f"--cp-comm-type has {' and '.join(ways)} for different layers, and all have one here: give one"
