"""Parts of a user's own, of every kind, as they are written to a file that --import runs; and wrong ones."""

HEAD = """\
import numpy as np
import torch
from torch import nn

from megascratch.config.registry import register
from megascratch.layers.linear import ColumnParallelLinear, RowParallelLinear
from megascratch.layers.sublayer import Mixer, Sublayer
from megascratch.optim.optimizer import Optimizer
from megascratch.parallel.shard import Shard
from megascratch.pipeline.schedule import Action
from megascratch.tokenizer import Tokenizer
from megascratch.tokenizer.interface import fingerprint
"""

ALL_KINDS = (
    HEAD
    + """

@register("norm", "ScaleNorm")
class ScaleNorm(nn.Module):
    def __init__(self, hidden_size, epsilon, *, bias, grad_sum, start=1.0):
        super().__init__()
        self.epsilon = epsilon
        self.shards = {"gain": Shard((hidden_size,), role="norm", fill=start, grad_sum=grad_sum)}
        self.gain = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x):
        return x / (x.norm(dim=-1, keepdim=True) + self.epsilon) * self.gain


@register("activation", "leaky")
def leaky(x, *, slope=0.01):
    return torch.where(x > 0, x, slope * x)


@register("mixer", "shift")
class Shift(Mixer):
    def __init__(self, model, site, *, shift_width=32):
        super().__init__()
        same = {"bias": False, "sequence_parallel": site.sequence_parallel}
        self.read = ColumnParallelLinear(site.hidden_size, shift_width, site.tp, std=site.std, **same)
        self.write = RowParallelLinear(shift_width, site.hidden_size, site.tp, std=site.output_std, **same)

    def forward(self, x, context):
        y = self.read(x)
        before = torch.cat((torch.zeros_like(y[:1]), y[:-1]))
        return self.write(y + before / 2)


@register("feed_forward", "gated")
class Gated(Sublayer):
    def __init__(self, model, site):
        super().__init__()
        same = {"bias": False, "sequence_parallel": site.sequence_parallel}
        width = model.ffn_hidden_size
        self.gate = ColumnParallelLinear(site.hidden_size, width, site.tp, std=site.std, **same)
        self.up = ColumnParallelLinear(site.hidden_size, width, site.tp, std=site.std, **same)
        self.down = RowParallelLinear(width, site.hidden_size, site.tp, std=site.output_std, **same)

    def forward(self, x, context):
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


@register("optimizer", "momentum")
class Momentum(Optimizer):
    state_names = ("momentum",)
    steps = 0

    def __init__(self, stretches, optim, *, beta=0.9):
        self.stretches = stretches
        self.beta = beta

    def step(self, lr):
        self.steps += 1
        for weight, grad, state, decays in self.stretches:
            weight.sub_(lr * state["momentum"].mul_(self.beta).add_(grad))


@register("lr_curve", "power")
def power(done, *, exponent=2.0):
    return (1 - done) ** exponent


@register("schedule", "all_forwards_first")
def all_forwards_first(rank, ranks, microbatches, chunks, group):
    forwards = [Action("F", m) for m in range(microbatches)]
    return forwards + [Action("B", m) for m in range(microbatches)]


@register("data_order", "short_first")
def short_first(lengths, samples, seed, epoch):
    return np.argsort(lengths, kind="stable"), np.arange(samples)


@register("tokenizer", "letters")
class Letters(Tokenizer):
    def __init__(self, path):
        self.vocab_size = 27
        self.eod = 26
        self.fingerprint = fingerprint("letters")

    def encode_bare(self, text, parse_specials=False, continues=False):
        return [ord(letter) - 97 for letter in text if "a" <= letter <= "z"]

    def decode(self, ids):
        return "".join(chr(97 + number) for number in ids if number != 26)
"""
)
"""One of each of the nine kinds, all of them right."""

SETTINGS = {
    "normalization": "ScaleNorm",
    "activation_function": "leaky",
    "mixers": ["attention", "shift"],
    "feed_forwards": ["mlp", "mlp", "gated"],
    "layer_options": ["shift_width=16", "slope=0.1", "start=0.5"],
    "optimizer": "momentum",
    "optimizer_options": ["beta=0.8"],
}
"""Settings of a model and an optimizer made of them."""

NORM = """

class Base(nn.Module):
    def __init__(self, hidden_size, epsilon, *, bias, grad_sum):
        super().__init__()
        self.shards = {"gain": Shard((hidden_size,), role="norm", fill=1.0, grad_sum=grad_sum)}
        self.gain = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x):
        return x * self.gain
"""

WRONG = (
    HEAD
    + NORM
    + """

@register("norm", "NoShard")
class NoShard(Base):
    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.shards = {}


@register("norm", "HalfAShard")
class HalfAShard(Base):
    def __init__(self, hidden_size, *given, **named):
        super().__init__(hidden_size, *given, **named)
        self.shards = {"gain": Shard((2 * hidden_size,), role="norm")}


@register("norm", "Crashes")
class Crashes(Base):
    def forward(self, x):
        return x @ torch.empty(3, 3)


@register("norm", "WrongShape")
class WrongShape(Base):
    def forward(self, x):
        return x.mean(-1, keepdim=True)


@register("activation", "none")
def none(x):
    return None


@register("mixer", "no_mixer")
class NoMixer(Sublayer):
    def __init__(self, model, site):
        super().__init__()

    def forward(self, x, context):
        return x


class Plain(Optimizer):
    state_names = ()
    steps = 0

    def __init__(self, stretches, optim):
        self.stretches = stretches

    def step(self, lr):
        self.steps += 1


register("optimizer", "idle")(Plain)


@register("optimizer", "uncounted")
class Uncounted(Plain):
    def step(self, lr):
        for stretch in self.stretches:
            stretch.weight.sub_(lr)


@register("optimizer", "explodes")
class Explodes(Plain):
    def step(self, lr):
        self.steps += 1
        for stretch in self.stretches:
            stretch.weight.div_(0)


@register("optimizer", "needs_a_weight")
class NeedsAWeight(Plain):
    def step(self, lr):
        self.stretches[0].weight.sub_(lr)


@register("lr_curve", "rises")
def rises(done):
    return 1 + done


@register("lr_curve", "vanishes")
def vanishes(done):
    return float("nan") if done > 0.5 else 1.0


@register("lr_curve", "divides")
def divides(done):
    return 1 / (1 - done)


@register("schedule", "gap")
def gap(rank, ranks, microbatches, chunks, group):
    forwards = [Action("F", m) for m in range(microbatches)]
    return forwards + [Action("B", m) for m in range(1, microbatches)]


@register("schedule", "circle")
def circle(rank, ranks, microbatches, chunks, group):
    return [Action("F", 0), Action("B", 0), Action("F", 1), Action("B", 1)][rank:]


@register("schedule", "words_only")
def words_only(rank, ranks, microbatches, chunks, group):
    return ["F0", "B0"]


@register("schedule", "divides_ranks")
def divides_ranks(rank, ranks, microbatches, chunks, group):
    return [Action("F", 1 // (ranks - 2))]
"""
)
