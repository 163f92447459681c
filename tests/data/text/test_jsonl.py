"""Every line of a file is text or a reason; no file makes the reader crash or fill the memory."""

import gzip

import pytest

from megascratch.config.errors import UserError
from megascratch.data.text.jsonl import BadLine, Line, parse, read_lines


def reason(raw, keys=("text",)):
    with pytest.raises(BadLine) as caught:
        parse(Line(1, raw), keys)
    return str(caught.value)


def test_the_texts_come_in_the_order_of_the_keys():
    assert parse(
        Line(1, '{"a": "x", "text": "é\\n\\ud83d\\ude00", "b": 3}'.encode()), ["text", "a"]
    ) == ["é\n😀", "x"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "empty line"),
        (b"  \t", "empty line"),
        (b"{", "broken JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'{"text": "a"} x', "broken JSON: Extra data at column 15"),
        (b'{"text": "a', "broken JSON: Unterminated string starting at at column 10"),
        (b'{"text": "\x01"}', "broken JSON: Invalid control character at at column 11"),
        (b'{"text": "\xff"}', "not UTF-8: byte 0xff at column 11"),
        (b"[" * 100_000, "broken JSON: "),
        (b'{"n": ' + b"9" * 5000 + b"}", "broken JSON: "),
        (b'["text"]', "not a JSON object but list"),
        (b"null", "not a JSON object but NoneType"),
        (b'{"body": "a"}', "no key 'text' (it has 'body')"),
        (b"{}", "no key 'text' (it has none)"),
        (b'{"text": null}', "key 'text' holds NoneType, not a text"),
        (b'{"text": ["a"]}', "key 'text' holds list, not a text"),
        (b'{"text": "ab\\ud800"}', "key 'text' holds half a surrogate pair at place 3: not a text"),
        (None, "longer than 67,108,864 bytes"),
    ],
)
def test_a_bad_line_gets_its_reason(raw, expected):
    assert reason(raw).startswith(expected)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_lines_have_their_numbers_and_no_ends(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    with (gzip.open if suffix.endswith("gz") else open)(path, "wb") as file:
        file.write(b"\xef\xbb\xbfa\r\n\n\xff\nlast")
    assert list(read_lines(path)) == [
        Line(1, b"a"),
        Line(2, b""),
        Line(3, b"\xff"),
        Line(4, b"last"),
    ]


def test_a_line_over_the_limit_is_read_over_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"123456\n" + b"1" * 3_000_000 + b"\n1234567\n1\n" + b"1" * 7)
    assert [line.raw for line in read_lines(path, longest=6)] == [b"123456", None, None, b"1", None]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl cannot be read: No such file"):
        list(read_lines(tmp_path / "nowhere.jsonl"))
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        list(read_lines(tmp_path))


def test_a_broken_gzip_stream_is_named_with_the_last_good_line(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    whole = gzip.compress(b"a\n" * 100_000)
    path.write_bytes(whole[:-20])
    with pytest.raises(
        UserError, match=r"x\.jsonl\.gz cannot be read after line \d+: Compressed file ended"
    ):
        list(read_lines(path))
    path.write_bytes(b"a\n")
    with pytest.raises(UserError, match="Not a gzipped file"):
        list(read_lines(path))
