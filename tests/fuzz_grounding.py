"""Coverage-guided fuzzing of the box parser: python tests/fuzz_grounding.py [-runs=N] [other options of libFuzzer]."""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mgpo.grounding", "json.decoder", "json.scanner"]):
    import mgpo.grounding  # noqa: F401

from hostile_texts import RULES, assert_total
from test_grounding import TABLE


def read(data):
    """One input: its first byte chooses the rules, the rest is the text."""
    provider = atheris.FuzzedDataProvider(data)
    rules = RULES[provider.ConsumeBool()]
    assert_total(provider.ConsumeUnicode(sys.maxsize), rules)


if __name__ == "__main__":
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-grounding-"))
    for number, (text, _) in enumerate(TABLE):
        # ConsumeUnicode: a first byte of 1 means that what follows is ASCII, 2 that it is UTF-16
        kind = b"\x01" if text.isascii() else b"\x02"
        (corpus / str(number)).write_bytes(
            kind + (text.encode("ascii") if text.isascii() else text.encode("utf-16-le")) + b"\x00"
        )
    words = ["```json", "```", '"bbox_2d"', '"label"', "[{", "}]", "NaN", "Infinity", "1e9", ": ["]
    dictionary = corpus.with_suffix(".dict")
    dictionary.write_text("".join('"' + word.replace('"', '\\"') + '"\n' for word in words))
    atheris.Setup([sys.argv[0], f"-dict={dictionary}", *sys.argv[1:], str(corpus)], read)
    atheris.Fuzz()
