from megascratch.tokenizer.memory import resident

SIZE = 64 << 20


def test_the_resident_memory_grows_by_what_is_written():
    before = resident()
    block = bytearray(b"x") * SIZE
    assert 0.9 * SIZE < resident() - before < 1.5 * SIZE
    assert len(block) == SIZE
