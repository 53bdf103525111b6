"""Each layer imports only what stands before it (design: Layout)."""

import ast
from pathlib import Path

import cdbench

PACKAGE = Path(cdbench.__file__).parent
LAYERS = [
    {"errors"},
    {"seeds", "files", "api", "stats", "plugins"},
    {"config", "inference"},
    {"discover", "store", "data", "tokens", "requirements", "predictions"},
    {"sites"},
    {"zoo"},
    {"models", "similarity"},
    {"circuits"},
    {"objectives", "signals"},
    {"generation", "record"},
    {"workspace", "train"},
    {"scoring", "evaluate", "provenance"},
    {"containers", "component_cka"},
    {"judge"},
    {"execute", "plan"},
    {"lm_eval_tasks"},
    {"ability"},
    {"runners", "tracking", "report"},
    {"doctor", "display"},
    {"circuit_output", "circuit_session"},
    {"circuit_options"},
    {"circuit_inside_command", "circuit_mib_command"},
    {
        "ability_command",
        "circuit_command",
        "session",
        "build_command",
        "bundle",
        "check_command",
        "compare_command",
        "leaderboard_command",
        "new_command",
    },
    {"plugin_test"},
    {"test_command"},
    {"cli"},
    {"__main__"},
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}
LAZY = {("api", "objectives"), ("api", "circuits")}
"""The contract re-exports the built-in terms on first use; these stand under TYPE_CHECKING."""


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "cdbench":
            names = [f"cdbench.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("cdbench.")}
    return found


def test_every_module_stands_in_a_layer() -> None:
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert names - {"__init__"} == set(RANK)


def test_each_layer_imports_only_what_stands_before_it() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in imported(path) - {own, "__version__"}:
            if own != "__init__" and (own, other) not in LAZY and RANK[other] >= RANK[own]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert wrong == []


def test_the_harness_names_no_method_but_the_reference() -> None:
    methods = {path.stem for path in (PACKAGE.parents[1] / "methods").glob("*.py")}
    engine = ["config", "discover", "train", "evaluate", "execute", "workspace", "plan", "session"]
    for name in engine:
        strings = {
            n.value for n in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())) if isinstance(n, ast.Constant)
        }
        assert not (strings & methods), name
