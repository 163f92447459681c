"""Writes the generated half of the reference as Markdown: settings, command line, Python, formats.

The pages in docs/reference/ have a few words each and include what this file writes into docs/reference/generated/.
It runs before every build, so the reference is that of the code. By hand: `python docs/generate_reference.py`.
"""

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from megascratch.commands import VERBS
from megascratch.commands.parsers.base import Parser
from megascratch.config.declare import Setting, help_texts
from megascratch.config.fields import SECTIONS, SETTINGS, flag
from megascratch.config.megatron.options import CLASSES, Option, options
from megascratch.config.megatron.rules import RULES
from megascratch.config.resume_rules import KINDS

PYTHON = {
    "The library": [
        "megascratch.api.run_config",
        "megascratch.api.training",
        "megascratch.api.language_model",
        "megascratch.api.text_tokenizer",
        "megascratch.api.token_dataset",
        "megascratch.api.proof",
    ],
    "Settings": [
        "megascratch.config.load",
        "megascratch.config.laws",
        "megascratch.config.resolve",
    ],
    "Parts of your own": ["megascratch.config.registry", "megascratch.layers.sublayer"],
    "Tokenizers": ["megascratch.tokenizer"],
    "Token files and samples": [
        "megascratch.data.tokens.token_files",
        "megascratch.data.samples.dataset",
        "megascratch.data.samples.batch",
        "megascratch.data.samples.microbatches",
    ],
    "Ranks": [
        "megascratch.config.layout",
        "megascratch.parallel.grid",
        "megascratch.parallel.mesh",
        "megascratch.parallel.shard",
    ],
    "Pipeline": [
        "megascratch.pipeline.schedule",
        "megascratch.pipeline.passes",
        "megascratch.pipeline.simulate",
        "megascratch.pipeline.stage",
        "megascratch.pipeline.runtime",
    ],
    "Training": [
        "megascratch.training.setup",
        "megascratch.training.trainer",
        "megascratch.training.state",
        "megascratch.training.loop",
    ],
    "Checkpoints": [
        "megascratch.checkpoint",
        "megascratch.checkpoint.open_checkpoint",
        "megascratch.checkpoint.tools.dcp",
    ],
    "Evaluation and generation": [
        "megascratch.inference.load",
        "megascratch.inference.evaluate",
        "megascratch.inference.sampling",
        "megascratch.inference.generate",
        "megascratch.inference.complete",
    ],
    "Proof": ["megascratch.verification.verify", "megascratch.verification.layouts"],
}
"""Headline -> modules worth calling from Python; their public names are listed."""

FORMATS = {
    "Token ids, `.bin`": "megascratch.data.tokens.token_files",
    "Index of the token ids, `.idx`": "megascratch.data.tokens.idx_format",
    "Manifest of a corpus, `.json`": "megascratch.data.tokens.manifest",
    "Digests of a corpus, `.digests`": "megascratch.data.tokens.digests",
    "Loss mask of a corpus": "megascratch.data.tokens.loss_mask",
    "Checkpoint: a step's folder": "megascratch.checkpoint.steps",
    "Checkpoint: `manifest.json`": "megascratch.checkpoint.format.manifest",
    "Checkpoint: `chunks.bin`": "megascratch.checkpoint.format.chunk_table",
    "Checkpoint: `manifest.json` of format 2": "megascratch.checkpoint.format.format_2",
    "Checkpoint: `.safetensors` files": "megascratch.checkpoint.format.file_format",
    "Checkpoint: `validation.json`": "megascratch.checkpoint.validation_loss",
    "Pipeline schedule, `.csv`": "megascratch.pipeline.csv_schedule",
    "Times of the stages, `.csv`": "megascratch.pipeline.stage_times",
    "Skipped samples, `.jsonl`": "megascratch.training.health.skipped_samples",
    "Heartbeat of a rank": "megascratch.runtime.heartbeat",
}
"""Headline -> the module whose docstring is the specification."""


def write_all(folder: Path) -> None:
    """Writes the pages into `folder`; a page that has not changed is not touched."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "settings": settings_page(),
        "command-line": command_line_page(),
        "python": python_page(),
        "formats": formats_page(),
        "megatron-flags": megatron_page(),
    }
    for name, text in pages.items():
        file = folder / f"{name}.md"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


# ---- settings ------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """A table per section: name, type, default, allowed values, what a resume says, meaning."""
    lines = []
    for section, record in SECTIONS.items():
        lines += [f"## {section}", "", inspect.getdoc(record) or "", ""]
        lines += ["| setting | type | default | on resume | meaning |", "|---|---|---|---|---|"]
        for name, meaning in help_texts(record).items():
            setting = SETTINGS[name]
            allowed = f" Must be {setting.interval.words()}." if setting.interval else ""
            idle = f" No effect {setting.needs.otherwise}." if setting.needs else ""
            cells = [
                f"`{name}`",
                _type_words(setting),
                f"`{setting.default}`",
                setting.on_resume.kind,
                meaning + allowed + idle,
            ]
            lines.append(
                "| "
                + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
                + " |"
            )
        lines.append("")
    lines += ["## What a resume says of a change", ""]
    lines += [f"* **{kind}**: {words}." for kind, words in KINDS.items()]
    return "\n".join(lines) + "\n"


def _type_words(setting: Setting) -> str:
    """The choices of a setting, or its type: `list[str] | None` -> list of str."""
    if setting.choices is not None:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    kind = setting.kind
    if get_origin(kind) is list:
        item = get_args(kind)[0]
        if get_origin(item) is Literal:
            return "list of " + ", ".join(f"`{choice}`" for choice in get_args(item))
        items = f"list of {item.__name__}"
        return f"{items}, or str" if setting.may_be_text else items
    return str(kind.__name__)


# ---- command line --------------------------------------------------------------------------------------------------


def command_line_page() -> str:
    """Every verb and sub-verb with its help."""
    lines = []
    for verb, summary in VERBS.items():
        lines += [f"## {verb}", "", f"{summary[0].upper()}{summary[1:]}.", ""]
        for parser in _parsers(verb):
            title = parser.prog.removeprefix("megascratch ")
            lines += [] if title == verb else [f"### {title}", ""]
            lines += ["```text", parser.format_help().rstrip(), "```", ""]
        if parser.takes_settings:
            lines += [
                "Every setting is a flag: see [settings](settings.md), for example `num_layers` is "
                f"`{flag('num_layers')}`. `--config FILE` reads settings from YAML; flags override the file. "
                "A setting that is true or false is switched on by `--NAME` and off by `--no-NAME`.",
                "",
            ]
    return "\n".join(lines) + "\n"


def _parsers(verb: str) -> Iterator[Parser]:
    """The verb's parser and those of its sub-verbs."""
    top = importlib.import_module(f"megascratch.commands.parsers.{verb.replace('-', '_')}").parser()
    yield top
    yield from top.commands().values()


# ---- Python --------------------------------------------------------------------------------------------------------


def python_page() -> str:
    """Signatures and docstrings of what is worth calling."""
    lines = []
    for headline, modules in PYTHON.items():
        lines += [f"## {headline}", ""]
        for module_name in modules:
            module = importlib.import_module(module_name)
            lines += [f"````{{py:module}} {module_name}", "````", ""]
            for name in _public_names(module):
                lines += _entry(module_name, name, getattr(module, name))
    return "\n".join(lines) + "\n"


def _public_names(module: Any) -> list[str]:
    """Those of `__all__`, else functions and classes that are defined here and have a docstring of their own."""
    names = getattr(module, "__all__", None) or [
        name
        for name, thing in vars(module).items()
        if getattr(thing, "__module__", "") == module.__name__
    ]
    found = []
    for name in names:
        thing = getattr(module, name)
        is_callable = inspect.isclass(thing) or inspect.isfunction(thing)
        if is_callable and not name.startswith("_") and thing.__doc__:
            found.append(name)
    return found


def _entry(module_name: str, name: str, thing: Any) -> list[str]:
    kind = "class" if inspect.isclass(thing) else "function"
    lines = [
        f"`````{{py:{kind}}} {module_name}.{name}{_signature(thing)}",
        _markdown(inspect.getdoc(thing) or ""),
    ]
    if kind == "class":
        for method_name, method in vars(thing).items():
            raw = method.__func__ if isinstance(method, classmethod | staticmethod) else method
            if method_name.startswith("_") or not inspect.isfunction(raw) or not raw.__doc__:
                continue
            lines += ["", f"````{{py:method}} {method_name}{_signature(raw, skip_self=True)}"]
            lines += [_markdown(inspect.getdoc(raw) or ""), "````"]
    return [*lines, "`````", ""]


def _signature(thing: Any, skip_self: bool = False) -> str:
    """(a, b=1), without annotations."""
    try:
        parameters = list(inspect.signature(thing).parameters.values())
    except ValueError:
        return ""
    if skip_self and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    text = str(inspect.Signature(plain))
    return re.sub(r"<\w[^>|]*>", "...", text)


def _markdown(docstring: str) -> str:
    """`Args:` and `Raises:` become lists; all else is read as Markdown already, drawings included."""
    blocks = re.split(r"^(Args|Raises|Returns|Yields):\n", docstring, flags=re.MULTILINE)
    text = blocks[0]
    for title, body in zip(blocks[1::2], blocks[2::2], strict=True):
        indented, rest = _leading_indented(body)
        items = re.sub(
            r"^(\w[\w.*]*(?:, \w+)*): ", r"* `\1`: ", textwrap.dedent(indented), flags=re.MULTILINE
        )
        text += f"\n**{title}**\n\n{items}\n{rest}"
    return text


def _leading_indented(text: str) -> tuple[str, str]:
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return "\n".join(lines[:end]), "\n".join(lines[end:])


# ---- formats -------------------------------------------------------------------------------------------------------


def formats_page() -> str:
    """The specifications, which are the docstrings of the modules that read and write."""
    lines = []
    for headline, module_name in FORMATS.items():
        docstring = inspect.getdoc(importlib.import_module(module_name)) or ""
        lines += [f"## {headline}", "", f"Read and written by `{module_name}`.", "", docstring, ""]
    return "\n".join(lines) + "\n"


# ---- Megatron-LM's flags -------------------------------------------------------------------------------------------

CLASS_TITLES = {
    "same": "Settings of the same name",
    "alias": "Other settings",
    "always": "Always so",
    "notice": "Accepted, with a difference",
    "none": "No effect",
    "feature": "Not there yet",
    "refused": "Refused",
    "out": "Other programs",
}


def megatron_page() -> str:
    """What Megatron-LM's defaults become, and its options by class."""
    lines = ["## Defaults", ""]
    lines += [f"* {(rule.__doc__ or '').splitlines()[0]}" for rule in RULES]
    for kind in CLASSES:
        of_kind = [option for option in options() if option.kind == kind]
        lines += ["", f"## {CLASS_TITLES[kind]} ({len(of_kind)})", ""]
        by_words: dict[str, list[str]] = {}
        for option in of_kind:
            by_words.setdefault(_megatron_words(option), []).append(f"`{option.flag}`")
        for words, flags in sorted(by_words.items()):
            lines += [f"**{words}:** {', '.join(flags)}" if words else ", ".join(flags), ""]
    return "\n".join(lines) + "\n"


def _megatron_words(option: Option) -> str:
    """What an option becomes, or the words of its row."""
    parts = []
    for setting, value in option.becomes.items():
        parts.append(f"{setting}: {value}" if value is not None else setting)
    words = option.words[:1].upper() + option.words[1:]
    return ", ".join(f"`{part}`" for part in parts) or words


if __name__ == "__main__":
    write_all(Path(__file__).resolve().parent / "reference" / "generated")
