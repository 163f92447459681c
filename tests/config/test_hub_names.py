"""What is on a hub and not on the disk is answered with the command that fetches it; an ordinary path is not."""

import pytest

from megascratch.config.hub_names import text_hint, tokenizer_hint


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "chars.json").touch()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("meta-llama/Llama-2-7b", "hf download meta-llama/Llama-2-7b --local-dir Llama-2-7b"),
        ("gpt2", "hf download gpt2 --local-dir gpt2, then give gpt2"),
        ("https://x.org/t.json", "fetch the file first"),
        ("chars", "did you mean chars.json?"),
        ("runs/tokenizer", ""),
        ("no/such.model", ""),
        ("/a/b", ""),
        ("a/b/c", ""),
        ("../b", ""),
    ],
)
def test_a_tokenizer(name, hint):
    said = tokenizer_hint(name)
    assert hint in said
    assert bool(said) is bool(hint)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("roneneldan/TinyStories", "hf download roneneldan/TinyStories --repo-type dataset"),
        ("http://x.org/a.txt", "fetch the file first"),
        ("corpus", ""),
        ("data/train.jsonl", ""),
        ("runs/texts", ""),
    ],
)
def test_a_text(name, hint):
    said = text_hint(name)
    assert hint in said
    assert bool(said) is bool(hint)
