"""verl's own worker of agent loops without Ray, in front of a server whose turns are known."""

import asyncio

import numpy as np
import yaml
from hydra import compose, initialize_config_module
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.protocol import DataProto
from verl.utils.dataset.rl_dataset import collate_fn
from verl.workers.rollout.replica import TokenOutput

from mgpo.tiny.views import BUDGET

LOOP = {
    "min_pixels": BUDGET.min_pixels,
    "max_pixels": BUDGET.max_pixels,
    "max_grounding_tokens": 24,
    "max_answer_tokens": 6,
    "max_reply_tokens": 160,
}


def config_of(model, folder, *overrides, **loop):
    """verl's whole configuration for our agent loop on a model folder."""
    file = folder / "loop.yaml"
    settings = {key: value for key, value in (LOOP | loop).items() if value is not None}
    file.write_text(yaml.safe_dump([{"name": "mgpo", "_target_": "mgpo.verl.agent_loop.MGPOAgentLoop"} | settings]))
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer",
            [
                f"actor_rollout_ref.model.path={model}",
                "actor_rollout_ref.rollout.name=vllm",
                "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
                "actor_rollout_ref.rollout.agent.default_agent_loop=mgpo",
                f"actor_rollout_ref.rollout.agent.agent_loop_config_path={file}",
                "data.custom_cls.path=pkg://mgpo.verl.dataset",
                "data.custom_cls.name=MGPODataset",
                "data.max_prompt_length=256",
                "data.max_response_length=256",
                f"+data.cache_dir={folder}/cache",
                *overrides,
            ],
        )


class Scripted:
    """A server that says what it is told to: `said[row][turn]`, as ids. Requests are kept in `asked`."""

    def __init__(self, said):
        self.said, self.asked = said, []

    async def generate(self, request_id, *, prompt_ids, sampling_params, priority, image_data=None, **more):
        row = priority
        turn = sum(asked["request_id"] == request_id for asked in self.asked)
        self.asked.append(
            {"request_id": request_id, "row": row, "ids": list(prompt_ids), "images": image_data, "limit": sampling_params["max_tokens"], **more}
        )  # fmt: skip
        ids = self.said[row % len(self.said)][turn]
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason="completed")


def batch_of(config, parquet, worker, numbers, **more):
    """A batch of rows, as verl's trainer makes it from its dataset."""
    dataset = worker.dataset_cls([str(parquet)], worker.tokenizer, config.data, worker.processor)
    items = [dataset[number] for number in numbers]
    found = collate_fn(items) | {"priority": np.arange(len(items))}  # as verl's manager numbers rollouts
    return DataProto.from_single_dict(found, meta_info={"validate": False} | more)


def rollouts_of(worker, batch):
    """Run the agent loops of a batch."""
    return asyncio.run(worker.generate_sequences(batch))


def unpadded(batch, row):
    """Prompt ids, response ids and mask of one row, without padding."""
    prompts, responses = batch.batch["prompts"][row], batch.batch["responses"][row]
    seen = batch.batch["attention_mask"][row].bool()
    here, there = seen[: len(prompts)], seen[len(prompts) :]
    return prompts[here].tolist(), responses[there].tolist(), batch.batch["response_mask"][row][there].tolist()


def make_worker(config, server):
    return AgentLoopWorker(config, server)
