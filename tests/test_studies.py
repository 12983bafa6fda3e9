"""The studies: valid, small enough for DVC, and named as the published tables cite them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.cli.study import files as study_files
from pipeline.cli.study import links as study_links
from pipeline.cli.study import sync
from pipeline.data.presets import PRESETS
from pipeline.registry import method_spec, model_spec
from pipeline.selection.saliency import NAMES
from pipeline.study.params.load import Params, load_params
from pipeline.training.recipe import Recipe
from reports.build.papers.published import load_papers

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "studies"
FILES = sorted(path.relative_to(STUDIES) for path in STUDIES.rglob("params.yaml"))
NAMES_OF = {str(file.parent): file for file in FILES}
EXPECTED = {"oto-cifar10", "oto-imagenet", "sfw-cifar10", "pfs-cifar10", "pfs-imagenet"}
EXPECTED |= {"tickets-cifar10", "early-bird-cifar"}


@cache
def params(folder: str) -> Params:
    return load_params(STUDIES / folder / "params.yaml")


@cache
def published() -> list[tuple[str, str, str, str]]:
    """Paper, row, study and pruning of every published row that names one of ours."""
    return [
        (paper.paper, row.name, row.ours.study, row.ours.pruning)
        for paper in load_papers().values()
        for table in paper.tables.values()
        for row in table.rows
        if row.ours
    ]


every = pytest.mark.parametrize("folder", NAMES_OF)


def test_every_study_is_here():
    assert {file.parts[0] for file in FILES} >= EXPECTED


@every
def test_valid_and_named_after_its_folder(folder):
    file = params(folder).file
    assert file.study == Path(folder).parts[0]
    assert (STUDIES / folder / file.root / "pipeline").resolve() == ROOT / "pipeline"


@every
def test_is_a_project_of_its_own(folder):
    """What `espalier study sync` writes: equal everywhere, and no link that DVC must follow."""
    for name, text in study_files().items():
        path = STUDIES / folder / name
        assert not path.is_symlink(), name
        assert path.read_text() == text, f"{path} differs: run `espalier study sync`"
    for name, target in study_links(STUDIES / folder).items():
        assert (STUDIES / folder / name).readlink() == Path(target)
        assert (STUDIES / folder / name / "__init__.py").is_file()


def test_a_study_elsewhere_is_made_whole_again(tmp_path):
    """Copied to another depth, without `code` and with an old dvc.yaml."""
    home = tmp_path / "a b" / "my?study#1"
    home.mkdir(parents=True)
    text = (STUDIES / "sfw-digits/params.yaml").read_text()
    (home / "params.yaml").write_text(text.replace("root: code", "root: ../.."))
    (home / "dvc.yaml").symlink_to("../../dvc.yaml")
    assert "dvc.yaml" in sync(home)
    assert (home / "params.yaml").read_text() == text
    assert "\n  - code: code " in (home / "dvc.yaml").read_text()
    rest = [(f / "dvc.yaml").read_text().partition("# where the code is")[2] for f in (home, ROOT)]
    assert rest[0] == rest[1]
    assert (home / "code/pipeline").resolve() == ROOT / "pipeline"
    assert sync(home) == []


@every
def test_small_enough_for_dvc(folder):
    file = params(folder).file
    stages = 2 + len(file.trainings) + 3 * len(file.prunings) + len(file.sweep.trainings)
    assert stages + len(file.connect.pairs) <= 250  # a DVC project of its own, so no other pays


@every
def test_has_every_block_that_dvc_reads(folder):
    """DVC reads the file itself: beside it, only the `vars` of dvc.yaml are defaults."""
    raw = YAML(typ="safe").load((STUDIES / folder / "params.yaml").read_text())
    pipeline = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
    known = {k: v for block in pipeline.get("vars", ()) for k, v in block.items()} | raw
    loops = [stage["foreach"] for stage in pipeline["stages"].values() if "foreach" in stage]
    assert len(loops) >= 4
    for loop in loops:
        assert _at(known, loop.strip("${}")) is not None, loop
    for block in ("data", "train", "finetune", "evaluate", "study"):
        assert block in raw
    for training in raw["trainings"].values():
        assert training["method"] in raw["methods"]


def _at(tree: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


@every
def test_saliencies_exist_and_every_training_is_used(folder):
    file = params(folder).file
    assert {p.saliency for p in file.prunings.values()} <= {"method", *NAMES}
    used = {p.training for p in file.prunings.values()} | set(file.sweep.trainings)
    used |= {s.training for p in file.connect.pairs.values() for s in (p.one, p.other)}
    assert used == set(file.trainings)
    assert {t.method for t in file.trainings.values()} == set(file.methods)


@every
def test_readme_is_short(folder):
    readme = STUDIES / Path(folder).parts[0] / "README.md"
    if Path(folder).parts[0] in EXPECTED:
        assert len(readme.read_text().splitlines()) <= 40


def test_the_parts_of_a_study_share_no_name():
    for study in {Path(folder).parts[0] for folder in NAMES_OF}:
        parts = [params(f).file for f in NAMES_OF if Path(f).parts[0] == study]
        names = [name for part in parts for name in part.prunings]
        assert len(names) == len(set(names)), study


def test_published_rows_name_existing_prunings():
    assert published()
    of = {f: list(params(f).file.prunings) for f in NAMES_OF}
    for paper, row, study, pattern in published():
        homes = {
            Path(folder).parts[0]
            for folder, names in of.items()
            if any(fnmatchcase(name, pattern) for name in names)
        }
        assert study in homes, f"{paper}, {row}: {pattern} is in {homes or 'no study'}"


def test_seed_patterns_join_nothing_but_seeds():
    for _, row, study, pattern in published():
        if "*" not in pattern:
            continue
        folders = [f for f in NAMES_OF if Path(f).parts[0] == study]
        found = [n for f in folders for n in params(f).file.prunings if fnmatchcase(n, pattern)]
        assert len({re.sub(r"-s\d+", "", name) for name in found}) == 1, row
        assert len(found) in (range(1, 6) if study.endswith("-mnist") else (3,)), row


def test_every_study_answers_a_published_row_but_those_without_any():
    cited = {study for _, _, study, _ in published()}
    assert EXPECTED - cited == {"sfw-cifar10", "pfs-imagenet"}


# What the papers' protocols say, stated once more.
PROTOCOLS = {
    ("oto-cifar10", "vgg16-hspg-s2"): (300, 64, 0.1, (75, 150, 225), 0.0),
    ("oto-cifar10", "vgg16-bn-hspg-s2"): (300, 64, 0.1, (75, 150, 250), 0.0),
    ("oto-cifar10", "vgg16-bn-dhspg-s42"): (300, 64, 0.1, (74, 149, 224, 299), 5e-4),
    ("oto-cifar10", "resnet50-hspg-s2"): (300, 64, 0.1, (75, 150, 225), 0.0),
    ("oto-cifar10", "resnet50-dhspg-s0"): (300, 64, 0.1, (74, 149, 224, 299), 1e-3),
    ("oto-cifar10", "resnet18-dhspg-s0"): (300, 64, 0.1, (74, 149, 224, 299), 1e-4),
    ("oto-cifar10", "resnet18-hesso-s0"): (100, 64, 0.1, (49, 99), 1e-4),
    ("oto-imagenet", "imagenet-resnet50-hspg-s2"): (120, 256, 0.1, (30, 60, 90), 0.0),
    ("sfw-cifar10", "resnet18-dense-s0"): (180, 128, 0.1, (60, 120), 5e-4),
    ("pfs-cifar10", "resnet56-dense-s0"): (160, 128, 0.1, (80, 120), 1e-4),
    ("tickets-cifar10", "resnet20-lr-s0"): (182, 128, 0.1, (91, 136), 2e-4),
    ("early-bird-cifar", "vgg16-eb-p30-s0"): (160, 256, 0.1, (80, 120), 1e-4),
}


@pytest.mark.parametrize(("folder", "training"), PROTOCOLS)
def test_recipes_are_the_papers(folder, training):
    recipe: Recipe = params(folder).recipe(training)
    optimizer, schedule = recipe.optimizer, recipe.schedule
    found = (recipe.epochs, recipe.batch_size, optimizer.lr, schedule.milestones)
    assert (*found, optimizer.weight_decay) == PROTOCOLS[folder, training]
    assert schedule.gamma == 0.1


@pytest.mark.parametrize(
    "folder", ["pfs-cifar10", "pfs-imagenet/resnet50", "pfs-imagenet/mobilenet"]
)
def test_pfs_budgets_are_of_the_standard_network(folder):
    study = params(folder)
    gated = {k: p for k, p in study.file.prunings.items() if "-gates-" in k}
    assert gated
    for key, pruning in gated.items():
        model = study.training(pruning.training).model
        standard = inspect.signature(model_spec(model.family, model.name).build).parameters["width"]
        assert pruning.reference == {"width": standard.default}, key
        assert model.args["width"] == 1.25 * standard.default, key
        assert key.endswith(f"-p{round(100 * pruning.target.value)}")


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("kind", ["gates", "uniform"])
def test_pfs_retrains_under_scratch_b(kind, ratio):
    study, key = params("pfs-cifar10"), f"resnet20-{kind}-s0-p{round(100 * ratio)}"
    epochs = int(160 / (1 - ratio))
    assert study.retraining(key).epochs == epochs
    assert study.retraining(key).start_from == "random"
    assert study.retraining_recipe(key).schedule.milestones == (epochs // 2, int(0.75 * epochs))


@pytest.mark.parametrize(("short", "rule"), [("ft", "finetune"), ("wr", "epoch"), ("lr", "lr")])
def test_ticket_levels_have_the_published_densities(short, rule):
    study = params("tickets-cifar10")
    config = study.method_config(f"resnet20-{short}-s0")
    assert (config.rewind, config.retrain_epochs) == (rule, 170)
    rate = config.rate
    for label, density in (("d512", 0.512), ("d262", 0.262144), ("d107", 0.107374)):
        level = study.pruning(f"resnet20-{short}-s0-{label}").at.removeprefix("round-")
        assert (1 - rate) ** int(level) == pytest.approx(density, abs=1e-6)


def test_the_page_on_the_seeds_names_what_exists():
    page = (ROOT / "docs" / "from-the-seeds.md").read_text()
    settings = re.findall(r"methods\.(\w+)\.(\w+)", page)
    for method, block in re.findall(r"methods\.(\w+): \{([^}]*)\}", page):
        settings += [(method, key) for key in re.findall(r"(\w+):", block)]
    assert len(settings) > 30
    for method, key in settings:
        assert key in method_spec(method).config.model_fields, f"methods.{method}.{key}"
    for folder in re.findall(r"studies/[\w/-]+", page):
        assert (ROOT / folder).is_dir(), folder
    for family, name in re.findall(r"family: (\w+), name: (\w+)", page):
        model_spec(family, name)
    for preset in re.findall(r"preset: ([\w-]+)", page):
        assert preset in PRESETS, preset


OPTIONS = {
    "SFW-pruning": """--data --arch --optimizer --constraint --lr --lr_scheme --momentum
        --weight_decay --k_sparseness --k_frac --tau --mode --rescale --sfw_init --train_batchsize
        --test_batchsize --epoch_num --color_channel --gpu""",
    "Pruning from Scratch": """-a -e -m -s -p --lambd --lr --epochs --max_iter --mm --wd
        --budget_train --lr_scheduler --label_smooth --data_dir --dump_path --data --dataset
        --train_batch_size -b --seed --log_interval --eval_interval --gpu --local_rank""",
    "(Un)Structured Pruning": """--model --depth --dataset --epochs --batch-size --test-batch-size
        --lr --momentum --nest --w-decay --o --sched --lr_update_epochs --gamma --pr --priter
        --start-pr-iter --reinit --prunety --sr --load --epochs-save --seed --save --nw --no-cuda
        --no-mps --print-freq --log-train --filter --sigma --sparsity_gt --dry-run""",
}


@pytest.mark.parametrize("program", OPTIONS)
def test_every_option_of_the_programs_is_answered(program):
    page = (ROOT / "docs" / "from-the-seeds.md").read_text()
    part = page[page.index(f"## {program}") :].partition("\n## ")[0]
    words = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", part))
    assert set(OPTIONS[program].split()) <= words, set(OPTIONS[program].split()) - words


TICKETS = {
    "learning-rate rewinding": "retraining/lr",
    "weight rewinding (epoch 2)": "retraining/wr",
    "rewinding to init": "controls/init",
    "fine-tuning": "retraining/ft",
    "new random weights": "controls/random",
    "masks shuffled, initial weights": "controls/shuffled",
}


def test_the_note_on_tickets_says_what_the_records_say():
    study = STUDIES / "tickets-digits"
    rows = [
        line.strip("| ").split(" | ") for line in (study / "README.md").read_text().splitlines()
    ]
    found = {row[0]: row[1:4] for row in rows if row[0] in TICKETS}
    assert found.keys() == TICKETS.keys()
    for rule, cells in found.items():
        part, _, name = TICKETS[rule].partition("/")
        records = study / part / "reports" / "records" / "evaluate"
        for cell, density in zip(cells, ("d512", "d262", "d107"), strict=True):
            files = [records / f"{name}-s{seed}-{density}.json" for seed in range(3)]
            scores = [json.loads(file.read_text())["final"]["top1"] for file in files]
            assert cell == f"{mean(scores):.2f} ± {stdev(scores):.2f}", (rule, density)
