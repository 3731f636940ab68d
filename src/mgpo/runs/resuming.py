"""Resuming that keeps what transformers and TRL lose between a checkpoint and the run that resumes from it.

They raise no error about any of it. A vision-language model is saved under the parameter names of the hub's format, and
`Trainer` compares them with the names in memory: nothing matches, a warning is logged, and the run continues from the
base model. TRL's sampler draws the order of each epoch from one stream, so a run that resumes in its second epoch would
see the first one's order. Rollouts that wait for their update, and metrics since the last log, are not saved at all.
And a checkpoint is written in place, so a run that is killed while it saves leaves half of one.

No pickle is written: what `Trainer` would write by `torch.save` is in `optimizer.safetensors` (optimizer, schedule,
gradient scaler) and `process_N.safetensors` (random generators, waiting rollouts and metrics of a process). DeepSpeed
and FSDP keep their own formats for their shards.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import upload_folder
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import rotate_checkpoints
from trl.trainer.utils import RepeatSampler

from mgpo.errors import CheckpointError
from mgpo.jsonl import read_jsonl
from mgpo.runs.card import write_card
from mgpo.runs.checkpoints import (
    ASIDE,
    cannot_write,
    flaw,
    holds_weights,
    is_about_the_disk,
    model_files,
    move_into_place,
    replace_files,
    seal,
)
from mgpo.runs.display import RunDisplay
from mgpo.runs.in_progress import begun, restore
from mgpo.runs.sampler import EpochSampler
from mgpo.runs.stopping import stopping_on_sigterm
from mgpo.runs.tree import load_tree, save_tree, without_tied

STATE = "optimizer.safetensors"
REFERENCE = "reference.safetensors"
PICKLES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "pytorch_model.bin", "adapter_model.bin")
PRIVATE = [".lock", f"{ASIDE}/*", "checkpoint-*/*", "nonfinite/*", "trajectories/*", "skipped_*"]
"""Files of a run folder that are not pushed to the hub."""


class Resuming:
    """Base of our trainers, before TRL's class: all that it overrides, TRL and transformers call on their own trainer."""

    stopped: str | None = None
    """Why the run ended early: SIGTERM, or a launcher that has ended; None if it did not."""
    display: RunDisplay | None = None
    """What prints the progress of the run."""
    _finished: Path | None = None
    """The checkpoint whose model is the run's, where it is not loaded."""
    _written_aside = False
    _epoch_sampler: Any = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train. A first SIGTERM ends the run after its current step, with a checkpoint; a second one at once."""
        with stopping_on_sigterm(self) as request:
            try:
                return super().train(*args, **kwargs)
            finally:
                self.stopped = request.heeded
                if self.display is not None:
                    self.display.close()

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """Upstream's sampler; TRL's own becomes an `EpochSampler`, whose order does not depend on interruptions."""
        sampler = super()._get_train_sampler(dataset)
        if isinstance(sampler, RepeatSampler):
            sampler.__class__ = EpochSampler
            self._epoch_sampler = sampler
        return sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Set the sampler's epoch. Upstream does not find the sampler below wrappers that skip or split batches."""
        if self._epoch_sampler is not None:
            self._epoch_sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / ASIDE) if self._written_aside else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint that appears under its name only when all of it is on disk.

        Raises:
            CheckpointError: it could not be written to disk; the message names the last good one.
        """
        run, step = Path(self._get_output_dir(trial)), self.state.global_step
        aside = run / ASIDE / f"checkpoint-{step}"
        if self.args.should_save:
            shutil.rmtree(run / ASIDE, ignore_errors=True)  # files of a killed run do not belong to this checkpoint
        self.accelerator.wait_for_everyone()
        self._written_aside = True
        try:
            super()._save_checkpoint(model, trial)
            self._written_aside = False
            self.accelerator.wait_for_everyone()
            self._name_best(aside, run)
            if self.args.should_save:
                seal(aside)
                move_into_place(aside, run / aside.name)
        except Exception as error:
            if is_about_the_disk(error):
                raise cannot_write(run, step, error) from error
            raise
        finally:
            self._written_aside = False
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(run), self.args.save_total_limit, best, use_mtime=True)
        self.accelerator.wait_for_everyone()

    def _name_best(self, aside: Path, run: Path) -> None:
        """Record the best checkpoint, if it was saved, under the name that it has outside `.saving/`."""
        best = run / f"checkpoint-{self.state.best_global_step}"
        if best.name == aside.name or best.is_dir():
            self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(aside / TRAINER_STATE_NAME))

    def _load_best_model(self) -> None:
        """Load the best model at the end (`load_best_model_at_end`) by parameter name, as when resuming."""
        best = self.state.best_model_checkpoint
        if best is None or self._keeps_own_shards() or not isinstance(self.model, PreTrainedModel):
            return super()._load_best_model()
        self._load_from_checkpoint(best)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: the finished model is pushed. Upstream would upload a checkpoint while it is being written."""

    def push_to_hub(self, commit_message: str | None = "End of training", *args: Any, **kwargs: Any) -> Any:
        """Upload the run folder's model, log and settings. Upstream adds its pickled arguments, including the token."""
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=kwargs.get("token"))
        return upload_folder(
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            commit_message=commit_message,
            token=kwargs.get("token") or self.args.hub_token,
            revision=kwargs.get("revision"),
            ignore_patterns=PRIVATE,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, first to `.saving/`, so that an existing model stays whole until it is replaced."""
        if _internal_call:
            return super().save_model(output_dir, True)
        folder = Path(output_dir or self.args.output_dir)
        aside = folder / ASIDE / "model"
        if self._finished is not None:
            if self.args.should_save:
                aside.mkdir(parents=True, exist_ok=True)
                for file in model_files(self._finished):
                    shutil.copy2(file, aside)
        elif self.is_fsdp_enabled and "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            self._save(str(aside), self.accelerator.get_state_dict(self.model))  # upstream would write no model
        else:
            super().save_model(str(aside), True)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            replace_files(aside, folder)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict and without_tied(self.model, state_dict))
        # Upstream pickles its arguments beside the model; config.yaml holds the same settings.
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    def _keeps_own_shards(self) -> bool:
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._keeps_own_shards():
            return super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            scaler = getattr(self.accelerator, "scaler", None)
            state = {"optimizer": self.optimizer.state_dict(), "schedule": self.lr_scheduler.state_dict()}
            save_tree(state | {"scaler": scaler.state_dict() if scaler else None}, Path(output_dir) / STATE)
            if self._reference_moves():
                save_tree(self.accelerator.unwrap_model(self.ref_model).state_dict(), Path(output_dir) / REFERENCE)

    def _save_scaler(self, output_dir: str) -> None:
        if self._keeps_own_shards():
            super()._save_scaler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)  # TRL's entropy control; DeepSpeed's and FSDP's shards
        if self._keeps_own_shards():
            return
        if not (Path(checkpoint) / STATE).is_file():
            raise CheckpointError(
                f"{checkpoint} holds no optimizer (save_only_model), so it cannot be resumed. Begin a new run with its "
                "weights as --model_name_or_path."
            )
        state = _read(Path(checkpoint) / STATE)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["schedule"])
        if state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self._reference_moves():
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(load_tree(Path(checkpoint) / REFERENCE))

    def _reference_moves(self) -> bool:
        """Whether the reference model follows the policy, and so differs from the one that the run began with."""
        return getattr(self, "ref_model", None) is not None and getattr(self.args, "sync_ref_model", False)

    def _process_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"process_{self.args.process_index}.safetensors"

    def _save_rng_state(self, output_dir: str) -> None:
        """Save this process's random generators, waiting rollouts and metrics."""
        version, internal, gauss = random.getstate()
        numbers = np.random.get_state(legacy=False)
        state = {
            "python": (version, list(internal), gauss),
            "numpy": numbers | {"state": numbers["state"] | {"key": numbers["state"]["key"].tolist()}},
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "processes": self.args.world_size,
            "begun": begun(self),
        }
        Path(output_dir).mkdir(
            parents=True, exist_ok=True
        )  # a process can get here before the main process has saved the model
        save_tree(state, self._process_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called by `Trainer` right before the first step of a resumed run."""
        if checkpoint is None:
            return
        file = self._process_file(checkpoint)
        state = _read(file) if file.is_file() else None
        if state is None or state["processes"] != self.args.world_size:
            if self.accelerator.is_main_process:
                print(
                    f"{checkpoint} was written by another number of processes than the {self.args.world_size} of this run: "
                    "weights, optimizer and the order of the data are resumed; random numbers, and rollouts that waited for "
                    "their update, are not."
                )
            return
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        restore(self, state["begun"])

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write `README.md` of the run folder: what this model is, and how to ask it."""
        if self.is_world_process_zero():
            write_card(self)

    def take_finished(self, checkpoint: str) -> None:
        """Take the model of a run that has made all its steps, and write what its log lacks, as the end of training does.

        Args:
            checkpoint: its last one.
        """
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        self.state.is_world_process_zero = self.is_world_process_zero()
        self._log_end(checkpoint)
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        if self.is_deepspeed_enabled:  # it splits and gathers weights only where it trains
            self.refuse_unfit(best or checkpoint)
            self._finished = Path(best or checkpoint)
            if not holds_weights(self._finished):
                raise CheckpointError(
                    f"{self._finished} holds DeepSpeed's parts of the weights, but no whole model. Join them by its "
                    "zero_to_fp32.py; for the next run, set zero3_save_16bit_model: true in accelerate's configuration."
                )
            return
        self._load_from_checkpoint(checkpoint)
        if best:
            self._load_best_model()

    def _log_end(self, checkpoint: str) -> None:
        """Write the last line of a run's log, if the run was killed between its last checkpoint and that line."""
        rows, _ = read_jsonl(Path(self.args.output_dir) / "metrics.jsonl")
        if not self.accelerator.is_main_process or any("train_loss" in row for row in rows):
            return
        self.model.train()  # TRL logs the metrics of the mode that the model is in
        if self._process_file(checkpoint).is_file():
            restore(self, load_tree(self._process_file(checkpoint))["begun"])
            self._total_loss_scalar += self._tr_loss.item()
        self.log({"total_flos": self.state.total_flos, "train_loss": 0.0})

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as upstream, but give the whole run's mean loss at the end, not that of the steps since resuming."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, *args, **kwargs)

    def refuse_unfit(self, checkpoint: str) -> None:
        """Raise `CheckpointError` for a checkpoint that is not complete, or holds a pickle where none belongs."""
        why = flaw(Path(checkpoint))
        if why is not None:
            raise CheckpointError(f"{checkpoint} cannot be resumed from: {why}.")
        pickles = [name for name in PICKLES if (Path(checkpoint) / name).exists()]
        if pickles and not self._keeps_own_shards():
            raise CheckpointError(
                f"{checkpoint} holds {pickles[0]}, a pickle. It is refused, because reading it can run code. Begin a new "
                "run with a model in safetensors as --model_name_or_path."
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load weights of a whole-model checkpoint by parameter name; upstream loads adapters and sharded formats.

        Raises:
            CheckpointError: the checkpoint is not complete.
        """
        self.refuse_unfit(resume_from_checkpoint)
        model = model if model is not None else self.model
        whole = [*Path(resume_from_checkpoint).glob("model*.safetensors")]
        if not whole or self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype="auto", use_safetensors=True)
        model.load_state_dict(saved.state_dict())


def _read(file: Path) -> Any:
    try:
        return load_tree(file)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}). Delete {file.parent}, and the run resumes from the checkpoint before it."
        ) from error
