"""`megascratch curate`: JSONL in, the texts worth training on out, and a report of what was dropped and why.

    megascratch curate --input web.jsonl --output clean.jsonl --gopher-quality --gopher-repetition --exact-duplicates \\
        --near-duplicates --decontaminate heldout.jsonl --report report.json
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from megascratch.commands.bad_lines import BadLines
from megascratch.commands.flags import add_input
from megascratch.commands.outputs import require_no_input
from megascratch.config.errors import UserError
from megascratch.config.fields import nearest
from megascratch.config.printable import printable
from megascratch.curation.curate import CurationReport, Curator, Settings
from megascratch.curation.quality import Limits
from megascratch.data.text.sources import Source, find_sources


def main(argv: Sequence[str]) -> int:
    """The verb. Raises: UserError for what the user can mend."""
    options = _parser().parse_args(argv)
    output = Path(options.output)
    values = {name: getattr(options, name) for name in Settings._fields if name != "limits"}
    values["decontaminate"] = tuple(options.decontaminate)
    sources = find_sources(options.input, options.input_format)
    paths = [source.path for source in sources]
    read = [("--input", path) for path in paths] + [("--decontaminate", path) for path in options.decontaminate]
    require_no_input([("--output", output), ("--report", options.report)], read)
    require_no_input([("--report", options.report)], [("--output", output)])
    doubled = {path for path in paths if paths.count(path) > 1}
    if doubled:
        raise UserError(f"--input names {', '.join(sorted(doubled))} more than once: name each file once")
    curator = Curator(Settings(**values, limits=_limits(options.limit)))
    bad_lines = BadLines()
    _write(curator, sources, output, bad_lines)
    bad_lines.tell_rest()
    if options.report:
        _write_report(curator.report, Path(options.report))
    _say(curator.report, output)
    return 0


def _limits(words: Sequence[str]) -> Limits:
    """NAME=VALUE over the defaults."""
    kinds = {name: type(value) for name, value in vars(Limits()).items()}
    changed = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in kinds:
            raise UserError(f"--limit {word}: unknown limit {name}{nearest(name, list(kinds))}; use {', '.join(kinds)}")
        try:
            changed[name] = kinds[name](value)
        except ValueError:
            kind = kinds[name]
            raise UserError(f"--limit {word}: {name} takes {kind.__name__}, such as {name}={kind(1)}") from None
    return Limits(**changed)


def _write(curator: Curator, sources: Sequence[Source], output: Path, bad_lines: BadLines) -> None:
    """The file appears when it is whole."""
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            for line in curator.keep(sources, bad_lines.tell):
                file.write(line + b"\n")
            if curator.report.lines == curator.report.bad_lines:
                names = ", ".join(source.path for source in sources[:5])
                raise UserError(f"{names}: no text in it, {curator.report.bad_lines} bad lines; nothing written")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}; nothing is left behind") from error
    finally:
        partial.unlink(missing_ok=True)


def _write_report(report: CurationReport, path: Path) -> None:
    try:
        path.write_text(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--report {path} cannot be written: {error.strerror}; the output is written") from error


def _say(report: CurationReport, output: Path) -> None:
    texts = max(report.lines - report.bad_lines, 1)
    print(
        f"wrote {printable(output)}: {report.kept:,} of {report.lines:,} lines ({report.bytes_kept:,} of "
        f"{report.bytes_read:,} bytes of text), {report.changed:,} of them changed, {report.bad_lines:,} bad lines"
    )
    for rule, times in report.dropped.most_common():
        example = report.examples[rule][0]
        print(
            f"  {rule:<28}{times:>10,} {times / texts:>7.2%}  e.g. "
            f"{printable(example['place'])}: {printable(example['reason'])}"
        )
    if report.evaluation_texts_too_short:
        short, texts = report.evaluation_texts_too_short, report.evaluation_texts
        print(f"  {short:,} of {texts:,} evaluation texts are too short to look for")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megascratch curate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, default = parser.add_argument, Settings()
    add_input(parser)
    add("--output", required=True, metavar="FILE", help="JSONL: the lines that pass, as they were")
    add("--report", metavar="FILE", help="JSON: how many texts each rule dropped, with examples")
    add("--json-key", default=default.json_key, metavar="KEY", help="where a line keeps its text (default: text)")
    add("--strict", action="store_true", help="stop at the first bad line, write nothing")
    add("--gopher-quality", action="store_true", help="length, symbols, bullets, stop words (arXiv 2112.11446)")
    add("--gopher-repetition", action="store_true", help="repeated lines, paragraphs and n-grams (the same paper)")
    add("--c4", action="store_true", help="lines that end a sentence alone, no code, no lorem ipsum (arXiv 1910.10683)")
    add("--limit", action="append", default=[], metavar="NAME=VALUE", help="another limit of these rules")
    add("--decontaminate", nargs="+", default=[], metavar="FILE", help="drop what shares n-grams with it")
    add("--decontaminate-key", default=default.decontaminate_key, metavar="KEY", help="their key (default: text)")
    add(
        "--decontaminate-words",
        type=int,
        default=default.decontaminate_words,
        metavar="N",
        help="words of a shared n-gram (default: 13, as GPT-3; shorter evaluation texts count whole)",
    )
    add("--exact-duplicates", action="store_true", help="keep the first of equal texts")
    add("--near-duplicates", action="store_true", help="keep the first of similar texts (MinHash, needs datasketch)")
    add("--similarity", type=float, default=default.similarity, metavar="J", help="Jaccard similarity (default: 0.8)")
    add("--shingle-words", type=int, default=default.shingle_words, metavar="N", help="of a shingle (default: 13)")
    add("--permutations", type=int, default=default.permutations, metavar="N", help="of a signature (default: 128)")
    return parser
