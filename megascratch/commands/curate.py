"""`megascratch curate`: filters and deduplicates JSONL texts for training, and reports what was dropped and why."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from megascratch.commands.input_output import BadLines, require_no_input
from megascratch.commands.text_source import no_text
from megascratch.config.errors import UserError
from megascratch.config.hints import nearest
from megascratch.config.printable import printable
from megascratch.curation.curate import CurationReport, Curator, Settings
from megascratch.curation.quality import Limits
from megascratch.data.text.sources import Source, find_sources
from megascratch.runtime.atomic_file import atomic_file, explain_write_errors


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    output = Path(options.output)
    values = {}
    for name in Settings._fields:
        value = getattr(options, name, None)
        if value is not None:  # a flag that is given
            values[name] = value
    values["decontaminate"] = tuple(options.decontaminate)
    sources = find_sources(options.input, options.input_format)
    paths = [source.path for source in sources]
    read = [("--input", path) for path in paths]
    read += [("--decontaminate", path) for path in options.decontaminate]
    require_no_input([("--output", output), ("--report", options.report)], read)
    require_no_input([("--report", options.report)], [("--output", output)])
    repeated = {path for path in paths if paths.count(path) > 1}
    if repeated:
        raise UserError(
            f"--input names {', '.join(sorted(repeated))} more than once: name each file once"
        )
    curator = Curator(Settings(**values, limits=_limits(options.limit)))
    bad_lines = BadLines()
    _write(curator, sources, output, bad_lines)
    bad_lines.print_rest()
    if options.report:
        _write_report(curator.report, Path(options.report))
    _print_report(curator.report, output)
    return 0


def _limits(words: Sequence[str]) -> Limits:
    """The default limits, changed by NAME=VALUE words."""
    kinds = {name: type(value) for name, value in vars(Limits()).items()}
    changed = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in kinds:
            raise UserError(
                f"--limit {word}: unknown limit {name}{nearest(name, list(kinds))}; use {', '.join(kinds)}"
            )
        try:
            changed[name] = kinds[name](value)
        except ValueError:
            kind = kinds[name]
            raise UserError(
                f"--limit {word}: {name} must be of type {kind.__name__}, such as {name}={kind(1)}"
            ) from None
    return Limits(**changed)


def _write(curator: Curator, sources: Sequence[Source], output: Path, bad_lines: BadLines) -> None:
    with (
        explain_write_errors(f"--output {output}", "; nothing was written"),
        atomic_file(output) as file,
    ):
        for line in curator.keep(sources, bad_lines.add):
            file.write(line + b"\n")
        if curator.report.lines == curator.report.bad_lines:
            raise no_text(sources, bad_lines, "--json-key")


def _write_report(report: CurationReport, path: Path) -> None:
    with explain_write_errors(f"--report {path}", "; the output was written"):
        path.write_text(
            json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _print_report(report: CurationReport, output: Path) -> None:
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
        short = report.evaluation_texts_too_short
        print(
            f"  {short:,} of {report.evaluation_texts:,} evaluation texts are too short to search for"
        )
