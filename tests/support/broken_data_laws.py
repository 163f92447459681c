"""Settings that break a law on the data (`config/laws/data.py`), with a part of the complaint."""

FIM = {"fim_rate": 0.5, "fim_prefix_id": 1, "fim_middle_id": 2, "fim_suffix_id": 3}
NAMED_FIM = {
    "fim_rate": 0.5,
    "fim_prefix_token": "<p>",
    "fim_middle_token": "<m>",
    "fim_suffix_token": "<s>",
}
PAIR = {"vocab_file": "v", "merge_file": "m"}
FILES = {"mock_data": False, "data_path": ["a"]}

BROKEN_DATA_LAWS = [
    ("one_source", 1, {"mock_data": False}, "there is no data"),
    ("one_source", 1, {"data_path": ["a"]}, "the data comes from data-path and mock-data"),
    ("one_source", 1, FILES | {"train_data_path": ["b"]}, "from data-path and train-data-path"),
    (
        "one_source",
        1,
        {"mock_data": False, "valid_data_path": ["b"]},
        "valid-data-path needs train-data-path",
    ),
    ("lists_are_not_empty", 1, {"data_path": []}, "data-path is empty"),
    ("stages_follow_one_another", 1, {"data_stages": ["5 a"]}, "give the first blend there"),
    (
        "stages_follow_one_another",
        1,
        FILES | {"data_stages": ["5 a", "a 5"]},
        "stage 2 ('a 5') must be SAMPLE weight",
    ),
    (
        "stages_follow_one_another",
        1,
        FILES | {"data_stages": ["5"]},
        "stage 1 ('5') must be SAMPLE weight",
    ),
    (
        "stages_follow_one_another",
        1,
        FILES | {"data_stages": ["0 a"]},
        "the first blend begins at 0",
    ),
    (
        "stages_follow_one_another",
        1,
        FILES | {"data_stages": ["7 a", "7 b"]},
        "stage 1 begins at 7: begin at 8",
    ),
    (
        "remote_data_has_a_cache",
        1,
        {"mock_data": False, "data_path": ["1", "s3://b/c"]},
        "give data-cache-path",
    ),
    (
        "remote_data_has_a_cache",
        1,
        FILES | {"data_stages": ["5 1 s3://b/c"]},
        "s3://b/c is read through a cache",
    ),
    (
        "split_is_shares",
        1,
        {"split": "9,1,0", "mock_data": False, "train_data_path": ["corpus"]},
        "split (9,1,0) divides data-path, which is not given",
    ),
    ("split_is_shares", 1, FILES | {"split": "9,x"}, "split (9,x) must be up to three numbers"),
    ("split_is_shares", 1, FILES | {"split": "0,1,1"}, "the first above 0"),
    ("split_is_shares", 1, FILES | {"split": "1,1,1,1"}, "up to three"),
    ("megatrons_order_has_numpys_seeds", 1, {"data_order": "megatron", "seed": 1 << 32}, "use 0"),
    (
        "packing_needs_the_keyed_order",
        1,
        {"data_order": "megatron", "packing": "best-fit"},
        "remove one of them",
    ),
    (
        "fill_in_middle_has_its_ids",
        1,
        {"fim_rate": 0.5, "fim_prefix_id": 1},
        "needs fim-middle-id, fim-suffix-id",
    ),
    ("fill_in_middle_has_its_ids", 1, {"fim_middle_id": 1}, "have no effect with fim-rate 0"),
    ("fill_in_middle_has_its_ids", 1, FIM | {"fim_middle_id": 1}, "must differ"),
    ("fill_in_middle_has_its_ids", 1, FIM | {"vocab_size": 3}, "(3 ids)"),
    (
        "fill_in_middle_has_its_ids",
        1,
        FIM | {"fim_prefix_token": "<p>"},
        "fim-prefix-id (1) and fim-prefix-token (<p>) both name it",
    ),
    ("fill_in_middle_has_its_ids", 1, NAMED_FIM | {"fim_middle_token": "<p>"}, "must differ"),
    (
        "gpt2_tokenizer_has_two_files",
        1,
        {"vocab_file": "v"},
        "vocab-file (v) needs merge-file",
    ),
    (
        "gpt2_tokenizer_has_two_files",
        1,
        {"merge_file": "m"},
        "merge-file (m) needs vocab-file",
    ),
    (
        "gpt2_tokenizer_has_two_files",
        1,
        PAIR | {"tokenizer_model": "t"},
        "tokenizer-model (t) and vocab-file (v) both name a tokenizer",
    ),
    (
        "gpt2_tokenizer_has_two_files",
        1,
        PAIR | {"tokenizer_type": "ByteTokenizer"},
        "use GPT2BPETokenizer",
    ),
    (
        "stages_need_the_keyed_order",
        1,
        FILES | {"data_order": "megatron", "data_stages": ["9 1 a"]},
        "remove one of them",
    ),
    ("vocabulary_is_known", 1, {"vocab_size": None}, "the vocabulary is unknown"),
    (
        "vocabulary_is_known",
        1,
        {"tokenizer_type": "CharTokenizer"},
        "CharTokenizer needs tokenizer-model",
    ),
    (
        "vocabulary_is_known",
        1,
        {"tokenizer_type": "ByteTokenizer", "tokenizer_model": "x"},
        "remove tokenizer-model (x)",
    ),
    (
        "vocabulary_is_known",
        1,
        {"tokenizer_type": "NullTokenizer", "vocab_size": None},
        "needs vocab-size",
    ),
]
