"""Mistakes in a config file: YAML, types, and names from other tools."""

from tests.support.mistakes.row import Mistake
from tests.support.mistakes.world import OK

RUN = "pretrain --config ok.yaml"


def yaml(name: str, content: str | bytes, *says: str) -> Mistake:
    """A mistake in a config file, fixed by the right file."""
    return Mistake(
        name,
        "pretrain --config bad.yaml",
        says,
        "pretrain --config bad.yaml",
        files={"bad.yaml": content},
        fixed_files={"bad.yaml": OK},
    )


def changed(old: str, new: str) -> str:
    """The good config with one change."""
    assert old in OK
    return OK.replace(old, new, 1)


NAMES = [
    yaml(
        "nanoGPT key block_size",
        changed("seq_length", "block_size"),
        "bad.yaml:2",
        "block_size",
        "seq_length",
    ),
    yaml(
        "nanoGPT key n_embd",
        changed("hidden_size", "n_embd"),
        "bad.yaml:1",
        "n_embd",
        "hidden_size",
    ),
    yaml(
        "nanoGPT key max_iters",
        changed("train_iters", "max_iters"),
        "bad.yaml:4",
        "max_iters",
        "train_iters",
    ),
    yaml(
        "Hugging Face key learning_rate",
        changed("lr:", "learning_rate:"),
        "bad.yaml:3",
        "learning_rate",
        "did you mean lr?",
    ),
    yaml(
        "Hugging Face key num_key_value_heads",
        changed("num_attention_heads: 4", "num_attention_heads: 4, num_key_value_heads: 2"),
        "bad.yaml:1",
        "num_query_groups",
    ),
    yaml(
        "Hugging Face key intermediate_size",
        changed("num_layers", "intermediate_size: 64, num_layers"),
        "bad.yaml:1",
        "ffn_hidden_size",
    ),
]

YAML = [
    yaml(
        "Windows line ends and a tab",
        OK.replace("\n", "\r\n").replace("optim: ", "optim:\r\n\t"),
        "bad.yaml:4",
    ),
    yaml("bytes of another encoding", OK.encode() + b"# caf\xe9\n", "bad.yaml:5", "UTF-8"),
    yaml(
        "quoted number",
        changed("num_layers: 2", "num_layers: '2'"),
        "bad.yaml:1",
        "num_layers",
        "whole number",
        "'2'",
    ),
    yaml(
        "number in words",
        changed("seq_length: 16", "seq_length: 16 tokens"),
        "bad.yaml:2",
        "seq_length",
        "16 tokens",
    ),
    yaml(
        "yes for true",
        changed("{lr: 1.0e-3}", "{lr: 1.0e-3, bf16: yes}"),
        "bad.yaml:3",
        "bf16",
        "true or false",
    ),
    yaml(
        "on for true",
        changed("{lr: 1.0e-3}", "{lr: 1.0e-3, bf16: on}"),
        "bad.yaml:3",
        "bf16",
        "true or false",
    ),
    yaml(
        "1 for true",
        changed("{lr: 1.0e-3}", "{lr: 1.0e-3, bf16: 1}"),
        "bad.yaml:3",
        "bf16",
        "true or false",
    ),
    yaml("number with a comma", changed("1.0e-3", "[0,001]"), "bad.yaml:3", "lr", "a number"),
    yaml(
        "float for a whole number in YAML",
        changed("train_iters: 2", "train_iters: 2.5"),
        "bad.yaml:4",
        "train_iters",
        "whole number",
    ),
    yaml(
        "missing space after the colon",
        changed("seq_length: 16", "seq_length:16"),
        "bad.yaml:2",
        "seq_length:16",
    ),
    yaml(
        "bracket that is not closed",
        changed("[corpus_text_document]", "[corpus_text_document"),
        "bad.yaml:",
    ),
    yaml(
        "key in the wrong section",
        changed("{lr: 1.0e-3}", "{lr: 1.0e-3, seed: 7}"),
        "bad.yaml:3",
        "seed",
        "section training",
    ),
    yaml("list of settings", "- num_layers: 2\n- lr: 1\n", "bad.yaml", "a list"),
    yaml(
        "config of a Hugging Face model",
        '{"architectures": ["LlamaForCausalLM"], "hidden_size": 64}',
        "bad.yaml",
        "Hugging Face",
        "megascratch init",
    ),
    yaml("two documents", OK + "---\n" + OK, "bad.yaml", "single document"),
    yaml("empty config", "", "train-iters", "data-path"),
    yaml("binary file", b"\x00\x01\xff" * 9, "bad.yaml:1", "UTF-8"),
    Mistake(
        "config is a folder", "pretrain --config runs", ("config file runs", "is a folder"), RUN
    ),
    Mistake(
        "two configs at odds",
        "pretrain --config ok.yaml --config more.yaml",
        ("more.yaml:1", "did you mean hidden_size?"),
        "pretrain --config ok.yaml --config more.yaml",
        files={"more.yaml": "hiden_size: 64\n"},
        fixed_files={"more.yaml": "hidden_size: 64\n"},
    ),
    Mistake(
        "import of a missing file",
        f"{RUN} --import my_layers.py",
        ("my_layers.py", "cannot be"),
        f"{RUN} --import my_layers.py",
        fixed_files={"my_layers.py": ""},
    ),
    Mistake(
        "import of a broken file",
        f"{RUN} --import my_layers.py",
        ("my_layers.py", "my_layers.py:2"),
        f"{RUN} --import my_layers.py",
        files={"my_layers.py": "x = 1\nfrom nowhere import y\n"},
        fixed_files={"my_layers.py": ""},
    ),
]


CONFIG_ROWS = [*NAMES, *YAML]
