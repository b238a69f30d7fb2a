"""Reading a YAML that somebody else wrote: what is meant is read, and all else is one line that names its place."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from harness.common.errors import UserError, in_one_line
from harness.common.files import read_text

MOST_BYTES = 1 << 20  # the longest YAML here has 2 kB
MOST_VALUES = 10_000  # with aliases written out: ten lines of aliases of aliases stand for 10^10
MOST_DIGITS = 100
_NOT_AS_READ = re.compile(r".*:|[-+]?0[0-9_]")  # YAML 1.1 takes 1:10 for 70, and 010 for 8
_STRING, _INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "merge"))


def read_yaml(path: Path) -> Any:
    """The one document of a YAML file; None for an empty file.

    Raises:
        UserError: it cannot be read, is no YAML, has a key twice or a key that is no text, a number that is not finite, has
            too many digits or is not what it looks like, or is nested too deeply. Names the line.
    """
    text = read_text(path, MOST_BYTES)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, path, {})
        return loader.construct_document(node)
    except yaml.YAMLError as e:
        raise UserError(f"{path} is not YAML: {' '.join(str(e).split())[:300]}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as e:  # `!!bool x`, a month 13 ...
        raise UserError(f"{path} is not YAML that can be read here: {in_one_line(e)}") from None


def _check(node: yaml.Node, path: Path, sizes: dict[yaml.Node, int | None]) -> int:
    """-> how many values a node holds, those of aliases counted where they stand. sizes: None where its end is not seen yet."""
    line = f"{path}:{node.start_mark.line + 1}"
    if node in sizes:
        if (known := sizes[node]) is None:
            raise UserError(f"{line}: it is a part of itself, by an alias")
        return known
    sizes[node] = None
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, path)
        size += sum(_check(value, path, sizes) for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check(value, path, sizes) for value in node.value)
    elif node.tag == _INT and len(node.value) > MOST_DIGITS:
        raise UserError(f"{line}: a number of {len(node.value)} digits")
    elif (node.tag == _INT and _NOT_AS_READ.match(node.value)) or (node.tag == _FLOAT and ":" in node.value):
        raise UserError(f"{line}: {node.value} is a number to base 60 or 8 in YAML; quote it if a text is meant")
    elif node.tag == _FLOAT and not math.isfinite(_number(node.value)):
        raise UserError(f"{line}: {node.value} is no finite number")
    if size > MOST_VALUES:
        raise UserError(f"{line}: more than {MOST_VALUES} values, those of aliases written out")
    sizes[node] = size
    return size


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag not in (_STRING, _MERGE):
            what = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
            raise UserError(f"{path}:{line}: key {what} is no text; quote it if a text is meant")
        if key.value in seen:
            raise UserError(f"{path}:{line}: key {key.value!r} is given twice, first in line {seen[key.value]}")
        seen[key.value] = line


def _number(text: str) -> float:
    text = text.replace("_", "").lower()
    return math.nan if text.endswith((".nan", ".inf")) else float(text)
