"""What the code must never do, read off its syntax; and pickles, which are refused wherever a model comes from."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from support import make_trainer

import mgpo
from mgpo.config import MGPOConfig
from mgpo.policies.loading import load_model

PACKAGE = Path(mgpo.__file__).parent
CODE = sorted(PACKAGE.rglob("*.py")) + sorted(Path(__file__).parents[1].glob("benchmarks/*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "telnetlib"}
CALLS = {
    "eval", "exec", "compile", "__import__", "torch.save", "torch.load", "yaml.load", "yaml.unsafe_load",
    "os.system", "os.popen", "pandas.read_pickle", "pd.read_pickle", "torch.hub.load", "torch.jit.load", "tempfile.mktemp",
}  # fmt: skip
KEYWORDS = {
    "trust_remote_code": False,
    "use_safetensors": True,
    "allow_pickle": False,
    "shell": False,
    "verify": True,
    "weights_only": True,
}
MODELS = {"AutoModelForImageTextToText", "Qwen2_5_VLForConditionalGeneration", "PeftModel"}


def faults_of(source):
    """Forbidden imports, calls and keyword values of a module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"imports {name}" for name in names if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS:
                found.append(f"calls {name}")
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            for keyword, wanted in KEYWORDS.items():
                value = given.get(keyword)
                if isinstance(value, ast.Constant) and value.value is not wanted:
                    found.append(f"{name} with {keyword}={value.value}")
            if (
                name.endswith(".from_pretrained")
                and name.split(".")[0].startswith("Auto")
                and "trust_remote_code" not in given
            ):
                found.append(f"{name} without trust_remote_code=False")
            if name.split(".")[0] in MODELS and name.endswith(".from_pretrained") and "use_safetensors" not in given:
                found.append(f"{name} without use_safetensors=True")
    return found


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.name))
def test_no_module_can_run_what_it_reads(file):
    assert not faults_of(file.read_text())


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "eval('1')", "torch.load(f)", "yaml.load(f)", "run(x, shell=True)",
        "AutoModel.from_pretrained(x)", "AutoConfig.from_pretrained(x, trust_remote_code=True)", "np.load(f, allow_pickle=True)",
        "PeftModel.from_pretrained(m, x)",
    ],
)  # fmt: skip
def test_the_search_finds_each(code):
    assert faults_of(code)


def test_no_recipe_or_asset_holds_code_or_a_pickle():
    files = [file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    kinds = {file.suffix for file in files}
    assert kinds <= {
        ".py",
        ".yaml",
        ".j2",
        ".json",
        ".jinja",
        ".safetensors",
        ".md",
        ".txt",
        ".typed",
        ".png",
        ".css",
        ".js",
    }, kinds
    assert not [file for file in files if file.suffix == ".yaml" and "trust_remote_code" in file.read_text()]


class Exploit:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.fixture
def pickled(random_tiny, tmp_path):
    """A checkpoint folder whose weights are a pickle that does harm."""
    folder = tmp_path / "pickled"
    shutil.copytree(random_tiny, folder)
    (folder / "model.safetensors").unlink()
    with open(folder / "pytorch_model.bin", "wb") as out:
        pickle.dump({"model": Exploit(tmp_path / "owned")}, out)
    return folder


def test_a_pickled_model_is_refused_by_everything_that_loads_one(pickled, rows, tmp_path):
    for load in (lambda: load_model(str(pickled)), lambda: make_trainer(str(pickled), tmp_path / "run", rows)):
        with pytest.raises(OSError, match="safetensors"):
            load()
    with pytest.raises(OSError, match="safetensors"):
        make_trainer(str(pickled), tmp_path / "run", rows, beta=0.1)  # the reference model is loaded the same way
    assert not (tmp_path / "owned").exists()


def test_a_pickled_adapter_is_refused(random_tiny, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(random_tiny), "peft_type": "LORA"})
    )
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(OSError, match="Only safetensors are read"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "given",
    [
        {"trust_remote_code": True},
        {"model_init_kwargs": {"trust_remote_code": True}},
        {"model_init_kwargs": {"use_safetensors": False}},
    ],
)
def test_code_of_a_checkpoint_cannot_be_asked_for(given, tmp_path):
    with pytest.raises(ValueError, match="checkpoints that can run code are not loaded"):
        MGPOConfig(str(tmp_path), use_cpu=True, **given)
