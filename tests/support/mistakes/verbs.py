"""The same mistakes with every verb: no arguments, wrong flags, inputs that are not there or not readable, outputs that
cannot be written or would replace an input."""

from typing import NamedTuple

from tests.support.mistakes.row import Mistake

DONE = "runs/done/checkpoints"


class Verb(NamedTuple):
    """A verb with a command that works in the folder of `world.py`."""

    name: str
    words: str
    """The words of a good command after the name; {input} and {output} are files."""
    input: str
    """A good input, as `words` name it."""
    output: str = ""
    """A good output; '': none."""
    torch: bool = False
    slow: bool = False

    def command(self, input: str = "", output: str = "") -> str:
        """The good command with another input or output."""
        words = self.words.format(input=input or self.input, output=output or self.output)
        return f"{self.name} {words}".strip()


VERBS = [
    Verb("pretrain", "--config {input} --output-dir {output}", "ok.yaml", "runs/new"),
    Verb(
        "preprocess",
        "--input {input} --output-prefix {output} --tokenizer-model chars.json",
        "input.txt",
        "new",
    ),
    Verb("tokenizer train", "--input {input} --output {output}", "input.txt", "new.json"),
    Verb("tokenizer encode", "--tokenizer-model {input} river", "chars.json"),
    Verb("tokenizer report", "--tokenizer-model {input} --input input.txt", "chars.json"),
    Verb("tokenizer check", "--tokenizer-model {input} --random 0", "chars.json"),
    Verb("data inspect", "{input}", "corpus_text_document"),
    Verb("data validate", "{input}", "corpus_text_document"),
    Verb(
        "data merge",
        "--input {input} one_text_document --output-prefix {output}",
        "corpus_text_document",
        "both",
    ),
    Verb(
        "data split",
        "{input} --output-prefix {output} --fractions 0.5 0.5",
        "corpus_text_document",
        "part",
    ),
    Verb(
        "curate",
        "--exact-duplicates --input {input} --output {output}",
        "train.jsonl",
        "kept.jsonl",
    ),
    Verb(
        "conversations",
        "--input {input} --output-prefix {output} --tokenizer-type ByteTokenizer",
        "chat.jsonl",
        "chat",
    ),
    Verb("schedule show", "{input}", "1f1b"),
    Verb("schedule csv", "{input} --output {output}", "1f1b", "new.csv"),
    Verb("evaluate", "--load {input} --input input.txt", DONE, torch=True),
    Verb(
        "generate",
        "--load {input} --prompt a --max-new-tokens 2 --output {output}",
        DONE,
        "text.txt",
        torch=True,
    ),
    Verb("checkpoint inspect", "{input}", DONE, torch=True),
    Verb("checkpoint verify", "{input}", DONE, torch=True),
    Verb("checkpoint reshard", "{input} --output {output}", DONE, "runs/resharded", torch=True),
    Verb("dry-run", "--config {input} --world 2", "ok.yaml", torch=True),
    Verb(
        "verify",
        "--config {input} --tensor-model-parallel-size 2",
        "ok.yaml",
        torch=True,
        slow=True,
    ),
    Verb("doctor", "--config {input}", "ok.yaml", torch=True, slow=True),
]
HAVE_DEFAULTS = ("verify", "doctor")
OF_ARGPARSE = ("unknown flag", "flag without its value", "misspelt flag", "no arguments")


def of_verb(verb: Verb) -> list[Mistake]:
    """The mistakes that can be made with this verb."""
    flags = [word for word in verb.words.split() if word.startswith("--")]
    cases = {"unknown flag": (f"{verb.command()} --xyzzy 1", ("--xyzzy",))}
    if flags:
        cases["flag without its value"] = (
            verb.command().split(flags[-1])[0] + flags[-1],
            (flags[-1],),
        )
        misspelt = flags[0][:4] + flags[0][5:]
        cases["misspelt flag"] = (
            verb.command().replace(flags[0], misspelt, 1),
            (misspelt, f"did you mean {flags[0]}?"),
        )
    if verb.name not in HAVE_DEFAULTS:
        cases["no arguments"] = (verb.name, ())
    if verb.name != "data validate":
        cases["missing input"] = (verb.command(input="nothere"), ("nothere",))
    if verb.output:
        cases["output below a file"] = (verb.command(output="digits.txt/below"), ("digits.txt",))
    if verb.name in ("tokenizer train", "curate"):
        cases["output is the input"] = (verb.command(output=verb.input), (verb.input,))
    rows = []
    for fault, (words, says) in cases.items():
        row = Mistake(
            f"{verb.name}: {fault}",
            words,
            says,
            verb.command(),
            fix_needs_torch=verb.torch,
            fix_is_slow=verb.slow,
        )
        rows.append(row)
    return rows


VERB_ROWS = [row for verb in VERBS for row in of_verb(verb)]
