"""What FSDP and DeepSpeed gather is saved as the model that was never sharded is."""

from types import SimpleNamespace

import torch

from mgpo.runs.resuming import without_tied


def test_gathered_weights_are_saved_under_one_name_each():
    """FSDP gathers a tied weight twice; one that is not equal to its other name is kept."""
    model = SimpleNamespace(all_tied_weights_keys={"head": "embedding", "other": "embedding"})
    weights = {"embedding": torch.ones(2), "head": torch.ones(2), "other": torch.zeros(2), "mlp": torch.ones(2)}
    assert without_tied(model, weights).keys() == {"embedding", "other", "mlp"}
    assert without_tied(SimpleNamespace(), weights) == weights
