"""An encoder of `transformers` with a head that predicts where a span starts and ends."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from pipeline.units.trace.tracer import Attention

OUTPUTS = 2  # start and end


class EncoderQA(nn.Module):
    """An encoder, named as in its published checkpoints, and a linear layer `qa_outputs`.

    Inputs [B, 3, T]: token ids, attention mask, token types; outputs [B, 2, T].

    Attributes:
        window: (3, T) of the data it was built for.
        attention: the unit of attention, as `trace_units` takes it.
    """

    window: tuple[int, ...] = (3, 8)
    attention: Attention = "heads"

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.prefix: str = encoder.base_model_prefix
        self.add_module(self.prefix, encoder)
        self.qa_outputs = nn.Linear(encoder.config.hidden_size, OUTPUTS)
        takes = "token_type_ids" in inspect.signature(encoder.forward).parameters
        self._typed = takes and encoder.config.type_vocab_size > 1
        nn.init.normal_(self.qa_outputs.weight, std=encoder.config.initializer_range)
        nn.init.zeros_(self.qa_outputs.bias)

    @property
    def encoder(self) -> nn.Module:
        return self.get_submodule(self.prefix)

    def forward(self, inputs: Tensor) -> Tensor:
        ids, mask, types = inputs.unbind(1)
        more = {"token_type_ids": types} if self._typed else {}
        states = self.encoder(input_ids=ids, attention_mask=mask, **more).last_hidden_state
        logits: Tensor = self.qa_outputs(states).transpose(1, 2)
        return logits
