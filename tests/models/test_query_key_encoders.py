"""Features of queries and keys as units: which encoders have them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models._blocks.attention import with_open_queries
from models._slim import load_slim, save_slim
from pipeline.registry import build_model
from pipeline.study.records.artifacts import NetworkSpec
from pipeline.units.surgery import shrink
from pipeline.units.trace import trace_units
from tests.models.tiny_bert import INFO
from tests.pipeline.units.laws import assert_laws, outputs, random_plan
from tests.squad_world import windows


def config_of(folder: Path, kind: str) -> str:
    from transformers import AutoConfig

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 24, "vocab_size": 60, "max_position_embeddings": 40}
    if kind == "distilbert":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "vocab_size": 60}
    if kind == "electra":
        sizes["embedding_size"] = 16
    AutoConfig.for_model(kind, **sizes).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["bert", "camembert", "electra", "roberta", "xlm-roberta"])
def test_encoders_that_attend_as_bert_does(tmp_path: Path, kind: str) -> None:
    def answers(attention: str) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        args = {"config": config_of(tmp_path, kind), "attention": attention}
        model = build_model("bert", "auto_qa", INFO, args).eval()
        return model, outputs(model, windows())[0]

    (model, found), (_, want) = answers("query_key"), answers("heads")
    assert torch.equal(found, want)
    spec = NetworkSpec("bert", "auto_qa", {"config": str(tmp_path)}, INFO)
    units = spec.units(model)
    assert [g.size for g in units.prunable] == [4, 24] * 2
    shrink(random_plan(units, 0.5, torch.Generator().manual_seed(0)), model, units)
    save_slim(model, tmp_path / "slim")
    again = load_slim(tmp_path / "slim")
    assert torch.equal(outputs(again, windows())[0], outputs(model, windows())[0])


def test_a_network_of_transformers_itself() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    def build() -> nn.Module:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=60,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=24,
            max_position_embeddings=40,
        )
        return with_open_queries(with_open_queries(BertForSequenceClassification(config)))

    ids, mask, _ = windows().unbind(1)
    inputs = {"input_ids": ids, "attention_mask": mask}
    units = trace_units(build(), inputs, attention="query_key")
    assert [g.size for g in units.prunable] == [4, 24, 4, 24, 16]  # and the pooler
    plan = random_plan(units, 0.5, torch.Generator().manual_seed(0))
    assert_laws(build, inputs, units, plan)


def test_other_encoders_are_refused(tmp_path: Path) -> None:
    args = {"config": config_of(tmp_path, "distilbert"), "attention": "query_key"}
    with pytest.raises(ValueError, match="query_key is known for BertSelfAttention, .*DistilBert"):
        build_model("bert", "auto_qa", INFO, args)
