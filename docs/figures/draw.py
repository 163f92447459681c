"""Draws the diagrams of README and documentation: `python docs/figures/draw.py` writes the SVG files next to it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from drawing import BLUE, GREEN, GREY, RED, WHITE, YELLOW, Drawing

FOLDER = Path(__file__).resolve().parent


def one_model_eight_ranks() -> Drawing:
    """README: the way of the data, and TP 2 x PP 2 x DP 2."""
    d = Drawing(974, 378, "From raw text to a checkpoint, and one model on eight ranks")
    steps = [
        "raw text\nJSONL, a document a line",
        "tokenizer\ntext to ids",
        "token files\n.bin/.idx, sample i",
        "model on ranks\nforward, backward, step",
        "checkpoint\nglobal names and boxes",
        "any layout\nresume, evaluate, generate",
    ]
    for number, words in enumerate(steps):
        x = 12 + number * 162
        d.box(x, 14, 140, 50, words, BLUE, 11)
        if number:
            d.arrow(x - 22, 39, x - 3, 39)
    for dp in range(2):
        top = 84 + dp * 116
        d.box(12, top, 950, 106, fill=WHITE)
        d.text(72, top + 48, f"copy {dp} (dp {dp})", 13, bold=True)
        d.text(72, top + 66, "reads its own samples", 10)
        for pp, layers in enumerate(("embedding, layers 0, 1", "layers 2, 3, norm, head")):
            x = 140 + pp * 420
            d.text(x + 180, top + 18, f"stage {pp}: {layers}", 11, bold=True)
            for tp in range(2):
                half = "first" if tp == 0 else "second"
                rank = pp * 4 + dp * 2 + tp
                place = f"rank {rank}: pp {pp} dp {dp} tp {tp}"
                words = f"{place}\n{half} half of every matrix\nhalf of the optimizer state"
                d.box(x + tp * 184, top + 28, 174, 66, words, (GREEN, YELLOW)[tp])
        d.arrow(500, top + 61, 556, top + 61, "F3, B2 ...")
    d.text(
        487,
        332,
        "TP sums inside a stage. PP sends between stages. DP sums between copies. "
        "Loss, gradients and weights equal the one-process run.",
        12,
    )
    d.legend(
        120,
        350,
        [
            (BLUE, "a form of the data"),
            (GREEN, "tensor rank 0"),
            (YELLOW, "tensor rank 1"),
            (WHITE, "one copy of the model"),
            ("->", "activations, and gradients back"),
        ],
    )
    return d


def merges() -> Drawing:
    """Tutorial 1: byte-pair encoding."""
    d = Drawing(760, 250, "Byte-pair encoding merges the most frequent pair, again and again")
    rows = [
        ("bytes", ["i", "m", "p", "o", "r", "t", "␣", "o", "s"], ()),
        ("merge o r", ["i", "m", "p", "or", "t", "␣", "o", "s"], (3,)),
        ("merge or t", ["i", "m", "p", "ort", "␣", "o", "s"], (3,)),
        ("merge i m, then im p", ["imp", "ort", "␣", "o", "s"], (0,)),
        ("merge imp ort, ␣ o", ["import", "␣o", "s"], (0, 1)),
    ]
    for number, (name, tokens, fresh) in enumerate(rows):
        y = 16 + number * 38
        d.text(150, y + 20, name, 12, anchor="end")
        x = 170.0
        for place, token in enumerate(tokens):
            width = 22 + 9 * len(token)
            d.box(x, y, width, 28, token, YELLOW if place in fresh else BLUE, 13, bold=False)
            x += width + 8
    d.text(560, 120, "one box, one id", 13, bold=True)
    d.text(560, 138, "9 ids become 3", 12)
    d.legend(
        170,
        220,
        [(BLUE, "token"), (YELLOW, "token made by this merge"), (WHITE, "␣ stands for a space")],
    )
    return d


def token_files() -> Drawing:
    """Tutorial 2: documents, the tape of ids, samples."""
    d = Drawing(820, 300, "Documents become one tape of ids, and samples are cut from it")
    documents = [("document 0", 190, BLUE), ("document 1", 130, GREEN), ("document 2", 230, YELLOW)]
    x = 130.0
    d.text(112, 44, "JSONL", 12, anchor="end", bold=True)
    d.text(112, 114, ".bin", 12, anchor="end", bold=True)
    d.text(112, 172, ".idx", 12, anchor="end", bold=True)
    d.text(112, 232, "samples", 12, anchor="end", bold=True)
    for name, width, fill in documents:
        d.box(x, 24, width, 32, name, fill)
        d.arrow(x + width / 2, 56, x + width / 2, 92)
        d.box(x, 96, width - 26, 30, "ids", fill, bold=False)
        d.box(x + width - 26, 96, 26, 30, "eod", GREY, 10, bold=False)
        d.arrow(x, 160, x, 130)
        d.text(x + 4, 176, "begins here", 10, anchor="start")
        x += width
    for number in range(3):
        d.box(
            130 + number * 180,
            214,
            190,
            28,
            f"sample {number}: seq_length + 1 ids",
            WHITE,
            11,
            bold=False,
        )
    d.text(
        430,
        262,
        "Neighbouring samples share one id: the last label of one is the first input of the next.",
        11,
    )
    d.legend(
        130,
        278,
        [(BLUE, "ids of a document"), (GREY, "end of document"), (WHITE, "what the model reads")],
    )
    return d


def transformer() -> Drawing:
    """Tutorial 3: the model as a list of layers."""
    d = Drawing(720, 400, "The Transformer as a list of layers, with shapes")
    left = [
        ("ids  [b, s]", GREY),
        ("embedding  [s, b, h]", BLUE),
        ("layers.0", GREEN),
        ("layers.1 ...", GREEN),
        ("final_norm", YELLOW),
        ("head  [s·b, v]", BLUE),
        ("loss: -log p(next id)", GREY),
    ]
    for number, (words, fill) in enumerate(left):
        y = 16 + number * 50
        d.box(20, y, 200, 34, words, fill, 12, bold=False)
        if number:
            d.arrow(120, y - 16, 120, y - 1)
    d.box(290, 20, 400, 320, fill=WHITE)
    d.text(490, 42, "one layer", 13, bold=True)
    d.arrow(222, 133, 288, 133, dashed=True)
    inside = [
        (60, "norm1", YELLOW),
        (106, "attention: q, k, v; softmax; proj", GREEN),
        (198, "norm2", YELLOW),
        (244, "mlp: h → ffn → h", GREEN),
    ]
    for y, words, fill in inside:
        d.box(330, y, 240, 34, words, fill, 12, bold=False)
    for top in (60, 198):
        d.arrow(450, top + 35, 450, top + 45)
        d.arrow(450, top + 81, 450, top + 95)
        d.text(450, top + 110, "+", 18, bold=True)
        d.arrow(610, top - 4, 610, top + 104, dashed=True)
        d.arrow(608, top + 105, 462, top + 105, dashed=True)
    d.text(630, 140, "residual", 11, anchor="start")
    d.legend(
        20,
        372,
        [
            (BLUE, "vocabulary"),
            (GREEN, "matrix products"),
            (YELLOW, "norm"),
            (GREY, "input, output"),
            ("-->", "residual, or close-up"),
        ],
    )
    d.text(490, 362, "s sequence, b micro-batch, h hidden, v vocabulary", 11)
    return d


def tensor_parallel() -> Drawing:
    """Tutorial 5: column-parallel, then row-parallel."""
    d = Drawing(820, 270, "A column-parallel and a row-parallel matrix need one sum")
    d.box(20, 90, 90, 60, "x\nboth ranks", GREY)
    for rank, fill in enumerate((GREEN, YELLOW)):
        y = 24 + rank * 130
        d.arrow(112, 120, 168, y + 35)
        d.box(172, y, 150, 70, f"A, columns {rank}\nColumnParallelLinear", fill)
        d.arrow(324, y + 35, 368, y + 35)
        d.box(372, y, 100, 70, f"f(x A{rank})\nhalf the width", fill)
        d.arrow(474, y + 35, 508, y + 35)
        d.box(512, y, 140, 70, f"B, rows {rank}\nRowParallelLinear", fill)
        d.arrow(654, y + 35, 698, 120)
    d.box(702, 84, 100, 72, "sum\nall-reduce\nover tp", RED)
    d.text(420, 244, "forward: one sum. backward: one sum, at x.", 12)
    d.legend(
        100,
        250,
        [
            (GREEN, "held by tensor rank 0"),
            (YELLOW, "held by tensor rank 1"),
            (GREY, "on both"),
            (RED, "communication"),
        ],
    )
    return d


FLOORS = [
    ("api", "what `import megascratch` offers"),
    ("commands", "one file per verb"),
    (
        "verification · inference · doctor",
        "comparison of layouts, use of a model, checks of machines",
    ),
    ("training", "setup, trainer, loop"),
    ("model · curation", "the list of layers; filters for raw text"),
    (
        "data · layers · pipeline · optim · data_parallel · checkpoint · supervision",
        "the parts of a run",
    ),
    ("tokenizer · parallel · storage", "text to ids; ranks; addresses"),
    ("config · runtime", "settings and their rules; fault points, heartbeat"),
]


def floors() -> Drawing:
    """Architecture: who may import whom."""
    d = Drawing(760, 516, "Floors of the code: imports only go down")
    for number, (rooms, what) in enumerate(FLOORS):
        y = 16 + number * 58
        d.box(90, y, 640, 44, f"{rooms}\n{what}", (BLUE, GREEN)[number % 2], 13)
        d.text(60, y + 28, str(len(FLOORS) - 1 - number), 16, bold=True)
    d.arrow(28, 30, 28, 456)
    d.legend(
        90,
        490,
        [
            (BLUE, "even floor"),
            (GREEN, "odd floor"),
            ("->", "allowed direction of imports"),
            (WHITE, "box: the packages of a floor"),
        ],
    )
    return d


STEP = [
    ("training/loop.py", "takes the next batches", BLUE),
    ("data/samples/microbatches.py", "samples of this rank", BLUE),
    ("training/trainer.py", "train_step", GREEN),
    ("pipeline/runtime.py", "runs F3, B1, ...", GREEN),
    ("pipeline/stage.py", "one micro-batch", GREEN),
    ("model/chunk.py, layers/", "forward, loss, backward", GREEN),
    ("data_parallel/base.py", "sums gradients", YELLOW),
    ("optim/grad_norm.py", "global norm, clipping", YELLOW),
    ("data_parallel/sharded_optimizer.py", "optimizer, weights to all", YELLOW),
    ("training/report.py", "prints the row", BLUE),
]


def training_step() -> Drawing:
    """Architecture: one step, file by file."""
    d = Drawing(900, 270, "One training step, file by file")
    for number, (file, what, fill) in enumerate(STEP):
        row, column = divmod(number, 4)
        x = 20 + column * 218
        y = 20 + row * 76
        d.box(x, y, 200, 50, f"{number + 1}. {what}\n{file}", fill, 12)
        if column:
            d.arrow(x - 18, y + 25, x - 2, y + 25)
        elif row:
            d.arrow(x + 760, y - 26, x + 110, y - 2, dashed=True)
    d.legend(
        20,
        246,
        [
            (BLUE, "around the step"),
            (GREEN, "forward and backward"),
            (YELLOW, "update"),
            ("->", "then"),
            ("-->", "continues in the next row"),
        ],
    )
    return d


GRADIENT = [
    ("layer's backward", "layers/linear.py", GREEN),
    ("weight.grad_sink", "parallel/grad_sink.py", GREEN),
    ("W may come later", "pipeline/stage.py", GREEN),
    ("slot in a bucket, fp32", "data_parallel/buckets.py", YELLOW),
    ("sum over dp", "data_parallel/ddp.py, zero1.py", RED),
    ("sums over tp and pp", "data_parallel/partial_grads.py, base.py", RED),
    ("global norm, clip", "optim/grad_norm.py", YELLOW),
    ("optimizer on this rank's range", "data_parallel/sharded_optimizer.py", YELLOW),
    ("weights to all ranks", "data_parallel/zero1.py", RED),
]


def gradient() -> Drawing:
    """Architecture: from a layer's backward to the moved weight."""
    d = Drawing(900, 280, "The way of a gradient")
    for number, (what, where, fill) in enumerate(GRADIENT):
        row, column = divmod(number, 3)
        x = 20 + column * 292
        y = 20 + row * 76
        d.box(x, y, 270, 50, f"{number + 1}. {what}\n{where}", fill, 12)
        if column:
            d.arrow(x - 22, y + 25, x - 2, y + 25)
        elif row:
            d.arrow(x + 720, y - 26, x + 140, y - 2, dashed=True)
    d.legend(
        20,
        254,
        [
            (GREEN, "inside backward, per micro-batch"),
            (YELLOW, "on this rank"),
            (RED, "where gradients or weights of several ranks meet"),
            ("-->", "next row"),
        ],
    )
    return d


def sample() -> Drawing:
    """Architecture: from the position of a run to a batch."""
    d = Drawing(900, 250, "The way of a sample")
    steps = [
        ("consumed samples", "one integer, in TrainState", GREY),
        ("numbers of this rank", "data/samples/microbatches.py", BLUE),
        ("sample i: spans", "data/samples/dataset.py", BLUE),
        ("ids from .bin", "data/tokens/token_files.py", GREEN),
    ]
    for number, (what, where, fill) in enumerate(steps):
        x = 20 + number * 220
        d.box(x, 24, 200, 52, f"{number + 1}. {what}\n{where}", fill, 12)
        if number:
            d.arrow(x - 20, 50, x - 2, 50)
    later = [
        ("collate: Batch", "data/samples/batch.py", GREEN),
        ("read ahead", "data/prefetch.py, a thread", YELLOW),
        ("first stage: ids, last: labels", "training/trainer.py, pipeline/stage.py", YELLOW),
    ]
    for number, (what, where, fill) in enumerate(later):
        x = 20 + number * 292
        d.box(x, 128, 270, 52, f"{number + 5}. {what}\n{where}", fill, 12)
        if number:
            d.arrow(x - 22, 154, x - 2, 154)
    d.arrow(780, 78, 160, 126, dashed=True)
    d.text(
        450,
        204,
        "Steps 1 to 3 are arithmetic: a resume on any layout needs the integer and nothing else.",
        12,
    )
    d.legend(
        20,
        224,
        [
            (GREY, "saved"),
            (BLUE, "computed from files, seed, i"),
            (GREEN, "read"),
            (YELLOW, "handed to the model"),
            ("-->", "next row"),
        ],
    )
    return d


def checkpoint() -> Drawing:
    """Guide: boxes of whole tensors between two layouts."""
    d = Drawing(
        820,
        260,
        "Ranks write boxes of whole tensors; ranks of any other layout read the parts they need",
    )
    d.text(120, 30, "written on TP 2", 13, bold=True)
    for rank, fill in enumerate((GREEN, YELLOW)):
        d.box(30 + rank * 100, 50, 90, 110, f"rank {rank}\nits columns", fill)
    d.arrow(232, 105, 298, 105, "save")
    d.text(410, 30, "step_00000040/", 13, bold=True)
    d.box(304, 46, 212, 118, fill=WHITE)
    d.box(312, 54, 97, 82, "box\n[0, 0] to [4, 3]", GREEN, 11)
    d.box(411, 54, 97, 82, "box\n[0, 3] to [4, 6]", YELLOW, 11)
    d.text(410, 154, "whole tensor, 4 x 6; no layout", 10)
    d.arrow(520, 105, 586, 105, "load")
    d.text(690, 30, "read on ZeRO-1 with DP 3", 13, bold=True)
    for rank in range(3):
        d.box(
            592,
            50 + rank * 40,
            200,
            34,
            f"rank {rank}: overlaps with its rows",
            BLUE,
            11,
            bold=False,
        )
    d.text(
        410,
        204,
        "A rank of any layout reads the overlap of the boxes that it needs with those in the files.",
        12,
    )
    d.legend(
        60,
        226,
        [
            (GREEN, "written by rank 0"),
            (YELLOW, "written by rank 1"),
            (WHITE, "checkpoint"),
            (BLUE, "wanted by a rank of another layout"),
        ],
    )
    return d


FIGURES = {
    "one-model-eight-ranks": one_model_eight_ranks,
    "merges": merges,
    "token-files": token_files,
    "transformer": transformer,
    "tensor-parallel": tensor_parallel,
    "floors": floors,
    "training-step": training_step,
    "gradient": gradient,
    "sample": sample,
    "checkpoint": checkpoint,
}


def main() -> None:
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
