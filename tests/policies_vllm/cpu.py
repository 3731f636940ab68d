"""What vLLM needs on a CPU. Its default block of 128 tokens would hide prefix caching on short prompts."""

SETTINGS = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "max_model_len": 2048,
    "max_num_seqs": 8,
    "seed": 0,
}
