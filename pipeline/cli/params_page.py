"""Write docs/params.md and docs/params.schema.json: every key of params.yaml, from its schema."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from pipeline import registry
from pipeline.data import config as data
from pipeline.data.presets import DEFAULTS, PRESETS
from pipeline.selection import target
from pipeline.study.params import schema
from pipeline.training import recipe

Block = type[BaseModel]
_ITEM = re.compile(r"(?:- |    )(?P<keys>`\w+`(?:, `\w+`)*|\w+): (?P<text>.*)")
BLOCKS: tuple[tuple[str, str, Block], ...] = (
    ("The file", "", schema.File),
    ("Data", "data", data.DataConfig),
    ("SQuAD", "data.squad", data.SquadConfig),
    ("Training recipe", "train", recipe.Recipe),
    ("Optimizer", "train.optimizer", recipe.OptimizerConfig),
    ("Learning-rate schedule", "train.schedule", recipe.ScheduleConfig),
    ("A training", "trainings.NAME", schema.TrainingParams),
    ("Its network", "trainings.NAME.model", schema.ModelChoice),
    ("Its weights", "trainings.NAME.weights", schema.Weights),
    ("A pruning", "prunings.NAME", schema.PruningParams),
    ("Its target", "prunings.NAME.target", target.Target),
    ("A latency target", "prunings.NAME.target.latency", target.LatencyProbe),
    ("Retraining", "finetune", schema.FinetuneDefaults),
    ("Retraining of one pruning", "prunings.NAME.finetune", schema.FinetuneParams),
    ("Epochs by cost", "finetune.epochs", schema.MatchCost),
    ("Evaluation", "evaluate", schema.EvaluateParams),
    ("Sweeps", "sweep", schema.SweepParams),
    ("Linear paths", "connect", schema.ConnectParams),
    ("A pair", "connect.pairs.NAME", schema.Pair),
    ("A state", "connect.pairs.NAME.one", schema.State),
    ("The machine", "compute", schema.ComputeParams),
    ("Jobs of a cluster", "compute.cluster", schema.ClusterParams),
)
AUGMENTATIONS: tuple[Block, ...] = (
    *(data.PadCrop, data.Flip, data.RandomResizedCrop, data.ColorJitter, data.Lighting),
)
INTRO = """\
# Every key of params.yaml

Written by `espalier check --write-docs` from the schema that validates the file; a test keeps it
true. A key that is left out has its default, but keys that dvc.yaml reads must be there. Editors
complete and check the file by `docs/params.schema.json`. Numbers are finite and of at most 64 bits.
"""


def page() -> str:
    """The reference page."""
    parts = [INTRO]
    for title, where, block in BLOCKS:
        place = f": `{where}`" if where else ""
        parts.append(f"## {title}{place}\n\n{_doc(block)}\n{_table(block)}")
    parts.append(f"### Names of data sets\n\n{_names(DEFAULTS)}; presets: {_names(PRESETS)}.\n")
    parts.append("## Augmentations: `data.augment`\n")
    for kind in AUGMENTATIONS:
        parts.append(f"### `{kind.model_fields['name'].default}`\n\n{_doc(kind)}\n{_table(kind)}")
    parts.append("## Methods: `methods.NAME`\n")
    for name in registry.method_names():
        config = registry.method_spec(name).config
        card = f"[docs/methods/{name}.md](methods/{name}.md)"
        parts.append(f"### `{name}`\n\nSee {card}.\n\n{_table(config)}")
    head = "| family | name | further keys |\n|---|---|---|"
    rows = "\n".join(_networks())
    parts.append(f"## Networks: `trainings.NAME.model`\n\n{head}\n{rows}\n")
    return "\n".join(parts)


def json_schema() -> dict[str, Any]:
    """A JSON schema of the file, for editors. Has the shorthands; `check` verifies references."""
    found = schema.File.model_json_schema()
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "params.yaml"
    definitions = found["$defs"]
    methods = {}
    for name in registry.method_names():
        settings = registry.method_spec(name).config
        config = settings.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= config.pop("$defs", {})
        _describe(config, settings)
        methods[name] = config
    found["properties"]["methods"] = {
        "type": "object",
        "properties": methods,
        "additionalProperties": False,
    }
    training = definitions["TrainingParams"]["properties"]
    training["method"] = {"enum": list(registry.method_names())}
    training["train"] = _partial(definitions["Recipe"])
    definitions["FinetuneDefaults"]["properties"]["train"] = _partial(definitions["Recipe"])
    definitions["FinetuneParams"]["properties"]["train"] = _partial(definitions["Recipe"])
    definitions["ModelChoice"]["properties"]["family"] = {"enum": list(registry.family_names())}
    _with_shorthands(definitions["DataConfig"]["properties"])
    for block in (*AUGMENTATIONS, *(block for _, _, block in BLOCKS[1:])):
        _describe(definitions[block.__name__], block)
    _describe(found, schema.File)
    return found


def _describe(definition: dict[str, Any], block: Block) -> None:
    """Add the explanation of every key, which editors show."""
    definition["description"] = " ".join(_doc(block).split())
    for key, value in definition.get("properties", {}).items():
        value["description"] = explanation(block, key)


def _partial(block: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys, all optional: overrides of a block."""
    return {**block, "required": [], "title": "overrides"}


def _with_shorthands(block: dict[str, Any]) -> None:
    """Add the shorthands of the data block."""
    augmentations = ("pad_crop", "flip", "random_resized_crop", "color_jitter", "lighting")
    listed = {**block["augment"], "items": {"anyOf": [{"enum": list(augmentations)},
              block["augment"]["items"]]}}  # fmt: skip
    listed.pop("default", None)
    block["augment"] = {"anyOf": [{"enum": ["auto", "none"]}, listed]}
    block["normalise"] = {
        "anyOf": [{"enum": ["auto", "imagenet", "computed"]}, {"$ref": "#/$defs/Statistics"}]
    }
    block["name"] = {"enum": sorted(DEFAULTS)}
    block["preset"] = {"anyOf": [{"enum": sorted(PRESETS)}, {"type": "null"}]}


def _doc(block: Block) -> str:
    text = _about(block)[0]
    return f"{text}\n" if text else ""


@cache
def _about(block: type) -> tuple[str, dict[str, str]]:
    """A block's docstring, and what its list of keys says, by key."""
    text = inspect.cleandoc(block.__doc__ or "") if block.__doc__ is not BaseModel.__doc__ else ""
    rest: list[str] = []
    found: dict[str, str] = {}
    keys: list[str] = []
    for line in text.splitlines():
        if (item := _ITEM.match(line)) is not None:
            keys = re.findall(r"\w+", item["keys"])
            found |= dict.fromkeys(keys, item["text"])
        elif keys and line.startswith("  "):
            found |= {key: f"{found[key]} {line.strip()}" for key in keys}
        else:
            keys = []
            rest += [line] if line != "Attributes:" else []
    return re.sub("\n{3,}", "\n\n", "\n".join(rest)).strip(), found


def _table(block: Block) -> str:
    properties = block.model_json_schema().get("properties", {})
    definitions = block.model_json_schema().get("$defs", {})
    if not properties:
        return "No settings.\n"
    lines = ["| key | value | default | |", "|---|---|---|---|"]
    for key, value in properties.items():
        required = key in block.model_json_schema().get("required", ())
        default = "required" if required else _default(block, key)
        kind = _kind(value, definitions).replace("|", "\\|")
        text = explanation(block, key)
        lines.append(f"| `{key}` | {kind} | {default} | {_escaped(text)} |")
    return "\n".join(lines) + "\n"


def explanation(block: Block, key: str) -> str:
    """What a key means: the string below it, else its item in the docstring of its class or of a
    class that this one extends, else the first sentence about the block that it holds."""
    for base in block.__mro__:
        if base is BaseModel:
            break
        text = _field_docs(base).get(key) or _about(base)[1].get(key)
        if text:
            return text
    return _of_block(block.model_fields[key].annotation)


def _escaped(text: str) -> str:
    """`<` outside code would begin an HTML tag, and `|` ends a cell."""
    text = text.replace("|", "\\|")
    parts = text.split("`")
    return "`".join(p if i % 2 else p.replace("<", "&lt;") for i, p in enumerate(parts))


def _of_block(annotation: Any) -> str:
    """The first sentence about the block that a key holds."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return _doc(annotation).replace("\n", " ").partition(". ")[0].rstrip(" .") + "."
    branches = [kind for kind in get_args(annotation) if kind is not type(None)]
    return _of_block(branches[0]) if len(branches) == 1 else ""


def _default(block: Block, key: str) -> str:
    value = block.model_fields[key].get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None:
        return "none"
    if isinstance(value, tuple):
        value = list(value)
    value = getattr(value, "value", value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`".replace("''", "")


def _kind(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return _kind(definitions[name], definitions) if "enum" in definitions[name] else "a block"
    if "enum" in value:
        return ", ".join(f"`{v}`" for v in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "oneOf" in value:
        return "a block"
    if "anyOf" in value:
        kinds = [_kind(v, definitions) for v in value["anyOf"] if v.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    kind = value.get("type", "any")
    if kind == "array":
        items: Any = value.get("items") or next(iter(value.get("prefixItems", ())), {})
        return f"list of {_kind(items, definitions)}"
    names = {"object": "a block", "string": "text", "boolean": "true, false"}
    return f"{names.get(kind, kind)}{_range(value)}"


def _range(value: Mapping[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {value[key]}" for key, sign in signs.items() if key in value]
    return f" {', '.join(found)}" if found else ""


@cache
def _field_docs(block: type) -> dict[str, str]:
    """The string below each field in the source of the class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(block))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)  # noqa: PT018
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _names(table: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(table))


def _networks() -> Iterator[str]:
    for family in registry.family_names():
        for name, spec in sorted(registry.family_models(family).items()):
            arguments = list(inspect.signature(spec.build).parameters.values())[1:]
            keys = ", ".join(f"`{a.name}: {_value(a.default)}`" for a in arguments)
            yield f"| `{family}` | `{name}` | {keys} |"


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)
