"""What all tests share: no network, one thread, and a checkpoint folder with random weights."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import socket

import pytest
import torch

LOOPBACK = ("127.", "localhost", "::1", "0.0.0.0")


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """A test that reaches for the network fails by name; loopback (servers under test) and Unix sockets pass."""
    patch = pytest.MonkeyPatch()

    def guarded(method):
        real = getattr(socket.socket, method)

        def connect(self, address, *args):
            if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
                raise RuntimeError(f"A test tried to reach the network: {address}.")
            return real(self, address, *args)

        return connect

    for method in ("connect", "connect_ex"):
        patch.setattr(socket.socket, method, guarded(method))
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Same numbers on every machine, and no fight over cores."""
    torch.set_num_threads(1)


def _checkpoint(folder, scale):
    from transformers import GenerationConfig

    from mgpo.tiny.assemble import build_processor
    from mgpo.tiny.model import build
    from mgpo.tiny.tokenizer import special_ids

    processor = build_processor()
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    model = build(special_ids(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=1.0
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_tiny(tmp_path_factory):
    """Path of an ordinary checkpoint folder: mgpo-tiny's shape with random weights, the same in every run."""
    return _checkpoint(tmp_path_factory.mktemp("random_tiny") / "model", 1.0)


@pytest.fixture(scope="session")
def loud_tiny(tmp_path_factory):
    """As `random_tiny`, with weights large enough that every token and position matters to every logit."""
    return _checkpoint(tmp_path_factory.mktemp("loud_tiny") / "model", 5.0)


@pytest.fixture(scope="session")
def processor(random_tiny):
    from mgpo.engines.loading import load_processor

    return load_processor(str(random_tiny))


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Six question rows over small pictures of different shapes."""
    from support import make_rows

    return make_rows(tmp_path_factory.mktemp("pictures"))
