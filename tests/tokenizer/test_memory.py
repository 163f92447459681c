import mmap

from megascratch.tokenizer.memory import resident

SIZE = 64 << 20


def test_the_resident_memory_grows_by_what_is_written():
    before = resident()
    block = bytearray(b"x") * SIZE
    assert 0.9 * SIZE < resident() - before < 1.5 * SIZE
    assert len(block) == SIZE
    before = resident()
    with mmap.mmap(-1, SIZE) as untouched:
        assert resident() - before < SIZE // 4, "memory that nobody has touched does not count"
        assert len(untouched) == SIZE
