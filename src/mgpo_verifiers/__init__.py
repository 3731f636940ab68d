"""The name by which verifiers finds the environment: `vf-eval mgpo-verifiers`. It imports plugins by a name without dots."""

from mgpo.environments.verifiers_env import (
    GroundingEnv,
    GroundingHarness,
    GroundingTaskset,
    load_environment,
)

__all__ = ["GroundingEnv", "GroundingHarness", "GroundingTaskset", "load_environment"]
