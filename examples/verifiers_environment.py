"""Asks a served model questions through the verifiers environment, and prints what it scores.

    vllm serve Qwen/Qwen3-VL-4B-Instruct
    python examples/verifiers_environment.py Qwen/Qwen3-VL-4B-Instruct my_data.jsonl

`vf-eval mgpo-verifiers` does the same from the command line; prime-rl trains on the environment under the same id.
"""

import argparse
import asyncio

import verifiers.v1 as vf

from mgpo.environments.verifiers_env import load_environment
from mgpo.errors import run_script


async def run(env: vf.Env, context: vf.ModelContext, rollouts: int, at_once: int) -> list[vf.Episode]:
    """All rollouts of all questions, some at once."""
    limit = asyncio.Semaphore(at_once)
    async with env.serving():
        slots = [slot for task in env.taskset for slot in env.slots(task, rollouts)]
        return await asyncio.gather(*(env.run_slot(slot, context, limit) for slot in slots))


def main() -> None:
    """Print the score of each rollout, and their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the model's name on the server")
    parser.add_argument("data", help="file, folder or hub dataset of questions")
    parser.add_argument("--url", default="http://localhost:8000/v1", help="an OpenAI-compatible server")
    parser.add_argument("--rollouts", type=int, default=1, help="rollouts per question")
    parser.add_argument("--at_once", type=int, default=16, help="rollouts in flight")
    parser.add_argument("--method", default="mgpo", help="mgpo, adaptive, grpo or direct")
    parser.add_argument("--coordinates", default="auto", help="how the model writes boxes, if its name does not say it")
    given = parser.parse_args()

    env = load_environment(given.data, method=given.method, coordinates=given.coordinates)
    client = vf.EvalClientConfig(base_url=given.url, api_key_var="MGPO_ENDPOINT_KEY")
    context = vf.ModelContext(given.model, client, vf.SamplingConfig(temperature=1.0 if given.rollouts > 1 else 0.0))
    episodes = asyncio.run(run(env, context, given.rollouts, given.at_once))
    for trace in (trace for episode in episodes for trace in episode.traces):
        failed = f"  failed: {trace.last_error.message}" if not trace.ok and trace.last_error else ""
        print(f"{trace.task.data.id}  {trace.reward:.0f}  {trace.last_reply!r}{failed}")
    scores = [trace.reward for episode in episodes if episode.ok for trace in episode.traces]
    if not scores:
        raise ConnectionError(f"No rollout ended. Does a server run at {given.url}?")
    print(f"{len(scores)} of {len(episodes)} rollouts ended, mean score {sum(scores) / len(scores):.3f}")


if __name__ == "__main__":
    run_script(main)
