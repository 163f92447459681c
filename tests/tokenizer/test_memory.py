import mmap

from megascratch.tokenizer.memory import resident

SIZE = 64 << 20


def test_the_resident_memory_grows_by_what_is_written():
    """Pages of their own: the allocator would give memory that an earlier test has freed, and that it has kept."""
    before = resident()
    with mmap.mmap(-1, SIZE) as block:
        block.write(b"x" * SIZE)
        assert 0.9 * SIZE < resident() - before < 2.5 * SIZE, (
            "the text itself may need new memory, too"
        )
    before = resident()
    with mmap.mmap(-1, SIZE) as untouched:
        assert resident() - before < SIZE // 4, "memory that nobody has touched does not count"
        assert len(untouched) == SIZE
