"""The theory against what torch itself counts, allocates and saves: equal, not similar, wherever torch can say."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DynamicCache,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from tasks.contracts.base import FeatherweightError
from tasks.ml.models import families, modeling
from tasks.ml.training import optimizers
from tasks.ml.xray import cost_model, profiling
from tasks.ml.xray.architecture import Architecture, Layer

ENCODER = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 72,
    "max_position_embeddings": 66, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
DECODER = {
    "vocab_size": 67, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 80, "max_position_embeddings": 64,
}  # fmt: skip

GPT2 = {
    "vocab_size": 67, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip


def classifier(config: Any, **options: Any) -> nn.Module:
    config.architectures = ["BertForSequenceClassification"]
    return AutoModelForSequenceClassification.from_config(config, **options)


def pruned(**options: Any) -> nn.Module:
    """A classifier whose layers have different shapes, described as ``modeling.save`` describes them."""
    model = classifier(BertConfig(num_labels=3, **ENCODER), **options)
    for layer, heads, ffn in zip(families.BERT.layer_list(model), (3, 1, 4), (40, 72, 8), strict=True):
        modeling.resize(families.BERT, layer, heads=heads, ffn=ffn)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    model.config.featherweight = {"layers": modeling.shapes(model)}
    return model


MODELS = {
    "bert": lambda **o: AutoModel.from_config(BertConfig(**ENCODER), **o),
    "bert classifier": lambda **o: classifier(BertConfig(num_labels=5, **ENCODER), **o),
    "roberta": lambda **o: AutoModel.from_config(RobertaConfig(**ENCODER), **o),
    "roberta classifier": lambda **o: classifier(RobertaConfig(num_labels=5, **ENCODER), **o),
    "pruned": pruned,
    "gpt2": lambda **o: AutoModelForCausalLM.from_config(GPT2Config(**GPT2), **o),
    "gpt2 narrow": lambda **o: AutoModelForCausalLM.from_config(GPT2Config(n_inner=40, **GPT2), **o),
    "llama": lambda **o: AutoModelForCausalLM.from_config(LlamaConfig(**DECODER), **o),
    "llama tied": lambda **o: AutoModelForCausalLM.from_config(LlamaConfig(tie_word_embeddings=True, **DECODER), **o),
    "llama biased": lambda **o: AutoModelForCausalLM.from_config(
        LlamaConfig(attention_bias=True, mlp_bias=True, head_dim=16, **DECODER), **o
    ),
    "mistral": lambda **o: AutoModelForCausalLM.from_config(MistralConfig(**DECODER), **o),
    "qwen2": lambda **o: AutoModelForCausalLM.from_config(Qwen2Config(**DECODER), **o),
    "qwen3": lambda **o: AutoModelForCausalLM.from_config(Qwen3Config(head_dim=16, **DECODER), **o),
    "gemma": lambda **o: AutoModelForCausalLM.from_config(GemmaConfig(head_dim=16, **DECODER), **o),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param](attn_implementation="eager").eval()


def architecture(model: nn.Module) -> Architecture:
    return Architecture.from_config(model.config.to_dict())


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(batch + length))


def test_parameters_are_those_of_the_model(model: nn.Module) -> None:
    assert cost_model.num_parameters(architecture(model)) == modeling.num_parameters(model)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 17), (2, 64)])
def test_flops_are_those_that_torch_counts(model: nn.Module, batch: int, length: int) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids(batch, length))
    assert cost_model.forward_flops(architecture(model), batch=batch, length=length) == counter.get_total_flops()


def test_attention_alone_is_what_torch_counts_as_batched_products(model: nn.Module) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids(3, 17))
    counted = counter.get_flop_counts()["Global"]
    flops = cost_model.component_flops(architecture(model), batch=3, length=17)
    assert flops["attention"] == counted[torch.ops.aten.bmm]
    assert set(flops) == set(cost_model.COMPONENTS)


def test_training_is_three_forward_passes(model: nn.Module) -> None:
    with FlopCounterMode(display=False) as counter:
        profiling.loss(model, ids(2, 9)).backward()
    forward = cost_model.forward_flops(architecture(model), batch=2, length=9)
    assert cost_model.TRAINING_FACTOR * forward == counter.get_total_flops()


def test_decoding_after_a_cache_and_the_cache_itself() -> None:
    for name in ("gpt2", "llama", "llama biased", "qwen2", "qwen3", "gemma"):
        model = MODELS[name](attn_implementation="eager").eval()
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=ids(2, 11), past_key_values=cache)
            held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
            with FlopCounterMode(display=False) as counter:
                model(input_ids=ids(2, 1), past_key_values=cache)
        known = architecture(model)
        assert cost_model.kv_cache_bytes_per_token(known) * 2 * 11 == held
        assert cost_model.forward_flops(known, batch=2, length=1, past=11) == counter.get_total_flops()


def test_encoders_have_no_cache() -> None:
    assert cost_model.kv_cache_bytes_per_token(architecture(MODELS["bert"]())) == 0


def torch_optimizers() -> dict[str, Any]:
    return {
        "adamw": lambda parameters: torch.optim.AdamW(parameters),
        "sgd": lambda parameters: torch.optim.SGD(parameters, momentum=0.9),
    }


@pytest.mark.parametrize("name", torch_optimizers())
def test_optimizer_state_is_what_torch_holds(name: str) -> None:
    model = MODELS["bert"]()
    optimizer = torch_optimizers()[name](model.parameters())
    profiling.loss(model, ids(2, 5)).backward()
    optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    held_bytes = sum(value.nbytes for value in held if value.ndim)  # the counters of steps have no dimension
    expected = cost_model.memory_bytes(architecture(model), batch=1, length=1, optimizer=name)
    assert expected["optimizer"] == held_bytes
    assert expected["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def test_optimizers_that_training_knows_cost_what_they_say() -> None:
    for name, expected in cost_model.OPTIMIZER_BYTES.items():
        described = optimizers.OPTIMIZERS[name].bytes_per_parameter
        assert expected == pytest.approx(described, rel=0.02), "scales per block are left out"


@pytest.mark.parametrize("length", [16, 60])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", ["bert", "roberta", "pruned", "gpt2", "llama", "llama tied", "qwen2", "qwen3", "gemma"]
)
def test_activations_are_what_autograd_keeps_within_two_percent(name: str, implementation: str, length: int) -> None:
    model = MODELS[name](attn_implementation=implementation).train()
    expected = cost_model.activation_bytes(
        architecture(model), batch=4, length=length, fused_attention=implementation == "sdpa"
    )
    assert expected == pytest.approx(profiling.saved_bytes(model, ids(4, length)), rel=0.02)


def test_activations_with_dropout_on_the_cpu_within_five_percent() -> None:
    config = BertConfig(**{**ENCODER, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1})
    model = AutoModel.from_config(config, attn_implementation="eager").train()
    expected = cost_model.activation_bytes(
        architecture(model), batch=4, length=48, fused_attention=False, dropout_bytes=4
    )
    assert expected == pytest.approx(profiling.saved_bytes(model, ids(4, 48)), rel=0.05)


def test_activations_of_a_layer_are_those_of_the_paper() -> None:
    """Korthikanti et al. 2022, equation 1: s b h (34 + 5 a s / h) bytes a layer, and s b h 2 where only inputs stay."""
    s, b, h, a = 1024, 4, 2048, 16
    layer = Layer(heads=a, kv_heads=a, ffn=4 * h)
    setup: Any = {"batch": b, "length": s, "bytes_per_element": 2, "fused_attention": False, "dropout_bytes": 1}

    def total(layers: int, **more: Any) -> float:
        known = Architecture("bert", h, h // a, (layer,) * layers, vocabulary=1, max_length=s, causal=False)
        return cost_model.activation_bytes(known, **setup, **more)

    assert total(2) - total(1) == pytest.approx(s * b * h * (34 + 5 * a * s / h), rel=1e-3)
    assert total(3, checkpointing=True) - total(2, checkpointing=True) == 2 * s * b * h


def test_two_n_is_near_for_short_sequences_and_low_for_long_ones() -> None:
    known = architecture(MODELS["llama"]())
    rule = 2 * (cost_model.num_parameters(known) - cost_model.parameters(known)["embeddings"])  # of Kaplan et al. 2020
    assert cost_model.forward_flops(known, batch=1, length=1) == pytest.approx(rule, rel=0.02)
    assert cost_model.forward_flops(known, batch=1, length=4096) / 4096 > 2 * rule


def test_at_the_crossover_attention_costs_as_much_as_the_rest(model: nn.Module) -> None:
    known = architecture(model)
    crossover = cost_model.crossover_length(known)
    for length, more in ((int(crossover), False), (int(crossover) + 1, True)):
        flops = cost_model.component_flops(known, batch=1, length=length)
        assert (flops["attention"] > sum(flops.values()) - flops["attention"]) is more


def test_bytes_hold_every_weight_once_and_scores_only_if_not_fused(model: nn.Module) -> None:
    known = architecture(model)
    moved = cost_model.component_bytes(known, batch=1, length=1)
    for name, count in cost_model.parameters(known).items():
        if name not in ("embeddings", "norms"):
            assert moved[name] >= 4 * count
    fused = cost_model.component_bytes(known, batch=2, length=32, bytes_per_element=2)
    eager = cost_model.component_bytes(known, batch=2, length=32, bytes_per_element=2, fused_attention=False)
    scores = sum(layer.heads for layer in known.layers) * 2 * 32 * 32
    assert {name: eager[name] - fused[name] for name in fused if eager[name] != fused[name]} == {
        "attention": 4 * scores * 2
    }


def test_a_matrix_product_moves_its_operands_and_its_result() -> None:
    """One projection of (T, H) by (H, V): the bytes of the language-model head are those of the three tensors."""
    model = MODELS["llama"]().eval()
    hidden, weight = torch.zeros(2 * 7, 48), model.lm_head.weight
    tensors = (hidden, weight, hidden @ weight.T)
    moved = cost_model.component_bytes(architecture(model), batch=2, length=7)
    assert moved["head"] == sum(tensor.nbytes for tensor in tensors)


def test_the_roof_is_flat_from_the_ridge_on() -> None:
    roof = cost_model.Roofline(flops_per_s=200e9, bytes_per_s=20e9)
    assert roof.ridge == 10
    assert roof.attainable(5) == 100e9
    assert roof.attainable(10) == roof.attainable(1000) == 200e9
    assert roof.seconds(flops=200e9, moved=1) == 1
    assert roof.seconds(flops=1, moved=40e9) == 2


def test_other_architectures_are_refused_by_name() -> None:
    with pytest.raises(FeatherweightError, match="'mamba' is not supported; supported: bert, roberta"):
        Architecture.from_config({"model_type": "mamba"})
    with pytest.raises(FeatherweightError, match="this bert model has no hidden_size"):
        Architecture.from_config({"model_type": "bert", "max_position_embeddings": 1, "num_attention_heads": 1})


def test_no_torch_is_imported() -> None:
    code = "import sys, tasks.ml.xray.cost_model; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
