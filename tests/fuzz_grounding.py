"""Coverage-guided fuzzing of the box parser: python tests/fuzz_grounding.py [-runs=N] [other options of libFuzzer]."""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mgpo.method.grounding", "json.decoder", "json.scanner"]):
    import mgpo.method.grounding  # noqa: F401

from box_texts import TABLE
from hostile_texts import RULES, assert_total

seen = set()


def read(data):
    """One input: its first byte chooses the rules, the rest is the text."""
    provider = atheris.FuzzedDataProvider(data)
    rules = RULES[provider.ConsumeBool()]
    status = assert_total(provider.ConsumeUnicode(sys.maxsize), rules)
    if status not in seen:
        seen.add(status)
        print(f"reached: {status}", file=sys.stderr, flush=True)  # libFuzzer ends without a last word of ours


if __name__ == "__main__":
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-grounding-"))
    for number, (text, _) in enumerate(TABLE):
        # ConsumeBool takes the first byte; ConsumeUnicode the next: 1 means ASCII, 2 UTF-16
        ascii_kind = text.isascii()
        body = text.encode("ascii") if ascii_kind else text.encode("utf-16-le", "surrogatepass")
        (corpus / str(number)).write_bytes(b"\x00" + (b"\x01" if ascii_kind else b"\x02") + body)
    words = ["```json", "```", '"bbox_2d"', '"label"', "[{", "}]", "NaN", "Infinity", "1e9", ": ["]
    dictionary = corpus.with_suffix(".dict")
    dictionary.write_text("".join('"' + word.replace('"', '\\"') + '"\n' for word in words))
    atheris.Setup([sys.argv[0], f"-dict={dictionary}", *sys.argv[1:], str(corpus)], read)
    atheris.Fuzz()
