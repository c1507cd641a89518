"""A class name means one thing."""

import ast
from collections import defaultdict
from pathlib import Path

import hydraprune

BOTH = {"CrownIBP", "IBP", "PGD"}
"""Methods that are an objective and a bound, or an objective and an attack."""


def test_no_two_classes_have_the_same_name():
    found = defaultdict(list)
    for file in sorted(Path(hydraprune.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(file.name)
    assert {name: files for name, files in found.items() if len(files) > 1 and name not in BOTH} == {}
