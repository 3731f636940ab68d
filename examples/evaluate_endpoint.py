"""Evaluates a served model with and without its second look, and prints what the look was worth.

    vllm serve Qwen/Qwen3-VL-4B-Instruct
    python examples/evaluate_endpoint.py my_data.jsonl --url http://localhost:8000/v1 --model Qwen/Qwen3-VL-4B-Instruct

The server is asked for one chat completion per turn, so any OpenAI-compatible one will do. A key is read from MGPO_ENDPOINT_KEY.
`mgpo eval --endpoint URL` does the same from the command line, with the benchmarks of docs/data.md, and keeps every answer on disk.
"""

import argparse
from itertools import islice

from mgpo.asking.settings import load_policy, protocol_for
from mgpo.data.loading import load_questions
from mgpo.errors import run_script
from mgpo.evaluation.evaluate import evaluate_batches, lenient_share, wilson
from mgpo.method.question import Question


def main() -> None:
    """Ask every question twice: in MGPO's two turns, and directly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="file, folder or hub dataset of questions, or needle")
    parser.add_argument("--url", default="http://localhost:8000/v1", help="base URL of the server")
    parser.add_argument("--model", required=True, help="the model's name on the server")
    parser.add_argument("--split", default="test")
    parser.add_argument("--coordinates", help="how the model writes boxes, if its name does not say its family")
    parser.add_argument("--min_pixels", type=int, help="enlarge smaller images to this; as the server does, if it does")
    parser.add_argument("--max_pixels", type=int, help="shrink larger images to this; no more than the server takes")
    parser.add_argument("--n", type=int, help="most questions to ask; default: all")
    parser.add_argument("--answers", default="strict", choices=["strict", "lenient"], help="also read unboxed answers")
    given = parser.parse_args()

    questions = [Question.from_row(row) for row in islice(load_questions(given.data, given.split), given.n)]
    policy = load_policy(given.model, endpoint=given.url)
    right = {}
    for method in ("mgpo", "direct"):
        protocol = protocol_for(policy, method, None, given.min_pixels, given.max_pixels, given.coordinates)
        records = [result.record() for batch in evaluate_batches(policy, questions, protocol) for result in batch]
        right[method] = [record["correct"] for record in records]
        low, high = wilson(sum(right[method]), len(records))
        print(f"{method:7} {sum(right[method])} of {len(records)} right (95 % interval {low:.0%} to {high:.0%})")
        if given.answers == "lenient":
            read = lenient_share(records)
            print(
                f"  {read['lenient_accuracy']:.0%} if answers without a box are read, too; {read['unboxed']} have none"
            )
    pairs = list(zip(right["mgpo"], right["direct"]))
    print(f"the look gained {pairs.count((True, False))} answers and lost {pairs.count((False, True))}")


if __name__ == "__main__":
    run_script(main)
