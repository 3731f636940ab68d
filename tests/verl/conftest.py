"""verl on a CPU, for these tests alone: `make test-verl` builds the environment; without it they are skipped."""

import os
from importlib.metadata import PackageNotFoundError, version

import pytest

try:
    version("verl")
except PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "VERL_LOGGING_LEVEL": "ERROR"}


@pytest.fixture(scope="session")
def parquet(tmp_path_factory, rows):
    """The rows as `mgpo data convert --to verl` writes them."""
    from mgpo.data.convert import convert

    file, _ = convert(iter(rows), "verl", tmp_path_factory.mktemp("verl"), "train")
    return file


def with_video(folder, out):
    """A copy of a checkpoint folder that verl can load: it builds the video half of a processor too."""
    import shutil

    from mgpo.policies.names import resolve

    shutil.copytree(folder, out)
    shutil.copy(f"{resolve('mgpo-tiny')}/video_preprocessor_config.json", out)
    return out


@pytest.fixture(scope="session")
def tiny(random_tiny, tmp_path_factory):
    """`random_tiny` as verl can load it."""
    return with_video(random_tiny, tmp_path_factory.mktemp("verl_tiny") / "model")


@pytest.fixture(scope="session")
def loud(loud_tiny, tmp_path_factory):
    """`loud_tiny` as verl can load it."""
    return with_video(loud_tiny, tmp_path_factory.mktemp("verl_loud") / "model")
