from pathlib import Path

from rampart.evaluation.code_hash import rampart_files
from tests.conftest import ROOT
from tests.test_architecture import imported_modules

# They change no attack's result: hashes of values, cached files (checked when they are read), hooks, sums of results,
# certificates (which have a hash of their own), writing of files.
WITHOUT_INFLUENCE = {
    "rampart.evaluation.cache",
    "rampart.evaluation.certification",
    "rampart.evaluation.code_hash",
    "rampart.evaluation.progress_listener",
    "rampart.evaluation.results",
    "rampart.files.finite",
    "rampart.files.provenance",
    "rampart.files.whole_file",
}


def module_file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_code_hash_covers_all_modules_that_decide_a_result() -> None:
    hashed = rampart_files()
    assert {file.parent.name for file in hashed} == {"attacks", "networks", "kernels", "evaluation"}
    assert ROOT / "rampart" / "evaluation" / "worst_case.py" in hashed
    modules = {name for file in hashed for name in imported_modules(file) if name.startswith("rampart.")}
    assert {module for module in modules - WITHOUT_INFLUENCE if module_file(module) not in hashed} == set()
