"""An X-ray of tiny models with random weights, from a directory that holds nothing but a ``config.json``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, BertConfig, GPT2Config, LlamaConfig, PreTrainedConfig

from flows.command import xray as flow
from tasks.contracts.base import FeatherweightError
from tasks.ml import machine
from tasks.ml.models import modeling, tokenization
from tasks.ml.xray import cost_model, profiling, roofline, writing, xray
from tasks.reporting import page
from tasks.reporting import xray as sections

CPU = torch.device("cpu")
BERT = BertConfig(
    vocab_size=97, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
    max_position_embeddings=64,
)  # fmt: skip
LLAMA = LlamaConfig(
    vocab_size=97, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=96, max_position_embeddings=128,
)  # fmt: skip
GPT2 = GPT2Config(
    vocab_size=97, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def examine(directory: Path, config: PreTrainedConfig, **options: Any) -> xray.XRay:
    config.save_pretrained(directory)
    return xray.examine(directory, name="tiny", batches=(2, 3), seconds=0.01, **options)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> xray.XRay:
    """A forward pass of a BERT."""
    return examine(tmp_path_factory.mktemp("bert"), BERT)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> xray.XRay:
    """A training step of a Llama."""
    return examine(tmp_path_factory.mktemp("llama"), LLAMA, lengths=(16, 48), training=True)


def built(config: PreTrainedConfig) -> nn.Module:
    architecture = cost_model.Architecture.from_config(config.to_dict())
    return xray.build(config, architecture, precision="fp32", device=CPU)


def test_every_shape_is_measured_and_times_add_up(encoder: xray.XRay, decoder: xray.XRay) -> None:
    assert set(encoder.measured) == {(2, 32), (3, 32)}, "128 and 512 are more than it has positions for"
    assert set(decoder.measured) == {(2, 16), (2, 48), (3, 16), (3, 48)}
    for found in (encoder, decoder):
        assert not found.skipped
        assert 0 <= found.others_share <= 1
        for cell, measured in found.measured.items():
            parts = measured.component_seconds
            assert sum(parts.values()) == pytest.approx(measured.seconds)
            assert min(parts.values()) >= 0
            assert measured.fastest <= measured.seconds <= measured.slowest
            assert measured.passes >= 3
            rows = {row["component"]: row for row in found.components(*cell)}
            assert all(row["seconds"] > 0 for row in rows.values()), "every component of these models was seen"
            assert sum(row["flops"] for row in rows.values()) == found.flops(*cell)
            assert rows["ffn"]["flops_per_s"] == rows["ffn"]["flops"] / parts["ffn"]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> xray.XRay:
    """A forward pass of a Llama, and single tokens after others."""
    longer = LlamaConfig(**{**LLAMA.to_dict(), "max_position_embeddings": 256})
    return examine(tmp_path_factory.mktemp("writer"), longer, lengths=(16,))


def test_a_written_token_reads_all_weights_of_layers_and_head_and_the_cache(writer: xray.XRay) -> None:
    rows = {row["format"]: row for row in writer.writing()}
    assert {row["past"] for row in rows.values()} == {128}, "1,024 are more than it has positions for"
    model = built(LLAMA)
    linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]  # the head among them
    head = model.get_output_embeddings().weight.numel()
    held = 2 * 2 * 2 * 16 * 128  # keys and values of 2 heads of 16 in 2 layers
    weights = sum(weight.numel() for weight in linears)
    assert rows["fp32"]["bytes"] == 4 * weights + 4 * held
    assert rows["bf16"]["bytes"] == 2 * weights + 2 * held
    blocks = rows["4 bits in blocks of 64, head in 8"]["bytes"] - 4 * held
    assert blocks == pytest.approx((weights - head) * (4 + 36 / 64) / 8 + head * (8 + 40 / 64) / 8)
    taken = rows["fp32"]
    assert taken["tokens_per_s"] == 1 / writer.written[128].seconds
    assert taken["share_of_roofline"] == pytest.approx(
        taken["tokens_per_s"] * taken["bytes"] / writer.machine.bytes_per_s
    )
    assert all(row["tokens_per_s"] is None for name, row in rows.items() if name != "fp32")


def test_the_page_and_the_tables_show_what_a_written_token_reads(
    writer: xray.XRay, capsys: pytest.CaptureFixture[str]
) -> None:
    surroundings = page.Surroundings(datetime(2026, 1, 2, tzinfo=UTC), {"featherweight": "0"})
    flow.print_tables(writer)
    for text in (visible(sections.render(writer, surroundings)), capsys.readouterr().out):
        assert "fp32" in text
        assert "4 bits in blocks of 64, head in 8" in text
    assert len(flow.document(writer)["writing"]) == len(writing.FORMATS)


def test_encoders_and_training_write_nothing(encoder: xray.XRay, decoder: xray.XRay) -> None:
    assert encoder.writing() == []
    assert decoder.written == {}


def test_a_training_step_is_three_forward_passes(decoder: xray.XRay) -> None:
    forward = cost_model.forward_flops(decoder.architecture, batch=3, length=48)
    assert decoder.flops(3, 48) == 3 * forward


def test_autograd_keeps_what_theory_says_within_two_percent(decoder: xray.XRay) -> None:
    for cell, measured in decoder.measured.items():
        assert decoder.memory(*cell)["activations"] == pytest.approx(measured.saved_bytes, rel=0.02)


def test_dropout_is_known_from_the_config_within_five_percent(encoder: xray.XRay) -> None:
    """BERT drops in training; its forward pass is fused all the same."""
    assert encoder.dropout
    assert encoder.fused_attention
    model = built(BERT).train()
    ids = torch.zeros(3, 32, dtype=torch.long)
    kept = profiling.saved_bytes(model, ids)
    assert encoder.memory(3, 32)["activations"] == pytest.approx(kept, rel=0.05)
    assert encoder.memory(3, 32, dropout_bytes=0, fused_attention=True)["activations"] < 0.8 * kept


@pytest.mark.parametrize("config", [BERT, LLAMA, GPT2], ids=lambda config: config.model_type)
@pytest.mark.parametrize("training", [False, True])
def test_the_profile_is_divided_as_theory_says(config: PreTrainedConfig, training: bool) -> None:
    """All time of operators is given to components, and the matrix products of each have the FLOPs of theory."""
    model = built(config).train(training)
    ids = torch.zeros(2, 24, dtype=torch.long)
    with profiling.labelled(model), profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
        loss = profiling.loss(model, ids)
        if training:
            loss.backward()
    events = profiler.events()
    seconds = profiling.attribute(events, profiling.cpu_seconds)
    outer = ("xray:", "autograd::engine")
    total = sum(event.self_cpu_time_total for event in events if not event.name.startswith(outer)) / 1e6
    assert sum(seconds.values()) == pytest.approx(total)
    assert all(value > 0 for value in seconds.values())

    products = ("aten::mm", "aten::addmm", "aten::bmm")
    counted = profiling.attribute(events, lambda event: event.flops if event.name in products else 0)
    architecture = cost_model.Architecture.from_config(config.to_dict())
    expected = cost_model.component_flops(architecture, batch=2, length=24)
    if not (training and config.model_type in ("bert", "gpt2")):  # with dropout attention is spelled out in products
        expected["attention"] = 0
    assert counted == {name: (3 if training else 1) * flops for name, flops in expected.items()}


def component_seconds(config: PreTrainedConfig, length: int, *, training: bool) -> dict[str, float]:
    model = built(config)
    architecture = cost_model.Architecture.from_config(config.to_dict())
    measured = xray.measure(model, architecture, batch=1, length=length, training=training, seconds=0.01)
    return measured.component_seconds


@pytest.mark.parametrize("training", [False, True])
def test_time_is_found_where_the_work_is(training: bool) -> None:
    sizes: dict[str, Any] = {"num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 1024}
    wide = LlamaConfig(vocab_size=32, hidden_size=64, intermediate_size=16384, **sizes)
    spent = component_seconds(wide, 64, training=training)
    assert spent["ffn"] > 2 * spent["attention"]
    long = LlamaConfig(vocab_size=32, hidden_size=64, intermediate_size=8, **sizes)
    spent = component_seconds(long, 1024, training=training)
    assert spent["attention"] > 2 * spent["ffn"]


def test_hooks_are_gone_afterwards() -> None:
    model = built(BERT)
    with profiling.labelled(model):
        assert any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_pruned_bundle_is_built_with_its_shapes(bundle: Path, model: nn.Module) -> None:
    pruned, tokenizer = modeling.load(bundle, "text-classification"), tokenization.load(bundle)
    shapes = [{"heads": heads, "ffn": ffn} for heads, ffn in zip((3, 1, 4, 2), (40, 64, 8, 24), strict=True)]
    modeling.reshape(pruned, {"layers": shapes, "embedding_rank": 8})
    for parameter in pruned.parameters():
        nn.init.zeros_(parameter)
    modeling.save(pruned, tokenizer, bundle)
    config, architecture = xray.read(bundle)
    again = xray.build(config, architecture, precision="fp32", device=CPU)
    assert [layer.heads for layer in architecture.layers] == [3, 1, 4, 2]
    assert modeling.num_parameters(again) == modeling.num_parameters(pruned) < modeling.num_parameters(model)
    assert cost_model.num_parameters(architecture) == modeling.num_parameters(again)


def test_no_random_number_is_taken_from_anyone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    BERT.save_pretrained(tmp_path)
    config, architecture = xray.read(tmp_path)
    model = xray.build(config, architecture, precision="fp32", device=CPU)
    xray.measure(model, architecture, batch=1, length=8, training=True, seconds=0.001)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_takes_too_long_or_too_much_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: xray.XRay
) -> None:
    found = examine(tmp_path, LLAMA, lengths=(32,), max_seconds=1e-12)
    assert not found.measured
    assert set(found.skipped) == {(2, 32), (3, 32)}
    assert found.skipped[2, 32] == "a pass would take 0 s or more"
    html = sections.render(found, page.Surroundings(datetime(2026, 1, 2, tzinfo=UTC), {"featherweight": "0"}))
    assert html.count("not measured") == 2
    assert 'data-tip="time at the roofline, ' in html
    assert 'data-tip="time measured, ' not in html
    with monkeypatch.context() as patch:
        patch.setattr(roofline, "free_bytes", lambda device: 1000)
        found = examine(tmp_path, LLAMA, lengths=(32,))
    assert not found.measured
    assert re.fullmatch(r"it needs about 0\.0 GB, and 0\.0 GB are free", found.skipped[3, 32])
    assert decoder.pass_bytes(3, 48) > decoder.memory(3, 48)["activations"]


def visible(html: str) -> str:
    body = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_the_page_needs_nothing_else_and_shows_what_was_found(name: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(name)
    html = sections.render(found, page.Surroundings(datetime(2026, 1, 2, tzinfo=UTC), {"featherweight": "0"}))
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", html), "a request to somewhere else"
    text = visible(html)
    assert "not measured" not in text
    assert ("KV cache" in text) is (name == "decoder")
    assert ("what autograd kept" in text) is (name == "decoder")
    for component in cost_model.COMPONENTS.values():
        assert component in text.lower() or component in text
    assert html.count("<svg") == (7 if name == "encoder" else 8) + 1
    assert "nan" not in re.findall(r"[a-z]+", text.lower())


def test_others_are_mentioned_only_if_they_took_much(encoder: xray.XRay) -> None:
    assert sections.disturbed(xray.replace(encoder, others_share=0.05)) == ""
    assert "took 40\N{NARROW NO-BREAK SPACE}% of the" in sections.disturbed(xray.replace(encoder, others_share=0.4))


def test_another_busy_process_is_noticed() -> None:
    company = machine.Company()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        time.sleep(0.6)
        share = company.share()
        busy.kill()
    assert 0.3 / os.cpu_count() < share <= 1


def test_of_two_looks_at_the_machine_the_higher_counts() -> None:
    one = roofline.Machine("m", "cpu", {"fp32": 2.0, "bf16": 7.0}, 10.0, 30.0)
    other = roofline.Machine("m", "cpu", {"fp32": 3.0, "bf16": 5.0}, 20.0, 20.0)
    best = roofline.Machine("m", "cpu", {"fp32": 3.0, "bf16": 7.0}, 20.0, 30.0)
    assert one.better(other) == other.better(one) == best


def test_the_document_is_json_and_complete(decoder: xray.XRay) -> None:
    document = json.loads(json.dumps(flow.document(decoder), allow_nan=False))
    assert document["parameters"] == sum(row["parameters"] for row in document["cells"][0]["components"])
    assert [(cell["batch"], cell["length"]) for cell in document["cells"]] == [(2, 16), (2, 48), (3, 16), (3, 48)]
    for cell in document["cells"]:
        parts = sum(row["seconds"] for row in cell["components"]) + cell["outside_seconds"]
        assert parts == pytest.approx(cell["seconds"])
    assert document["kv_cache_bytes_per_token"] == 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, head size, fp32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_attention_heads": 5}, "64 cannot be divided among 5 heads|cannot be read"),
        ({"hidden_size": "wide"}, "hidden_size|cannot be read"),
        ({"intermediate_size": 0}, "intermediate_size 0, which must be a whole number above 0"),
        ({"model_type": "mamba"}, "'mamba' is not supported"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    BERT.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), encoding="utf-8")
    with pytest.raises(FeatherweightError, match=said) as refused:
        xray.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatherweightError, match="65 tokens are more than the model has positions for; at most 64"):
        examine(tmp_path, BERT, lengths=(65,))
    assert AutoConfig.from_pretrained(tmp_path).max_position_embeddings == 64


@pytest.mark.parametrize("text", ["", "0", "1,,2", "-1", "1.5", "x", "9" * 5000])
def test_counts_are_whole_numbers_above_zero(text: str) -> None:
    assert flow.counts("32, 1,8,8", "--batch") == [1, 8, 32]
    with pytest.raises(FeatherweightError, match=r"--batch .*: write whole numbers above 0"):
        flow.counts(text, "--batch")


def test_names_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert flow.output("", "package:some_package/model") == tmp_path / "xray-some_package.html"
    assert flow.output("", "owner/name").name == "xray-owner-name.html"
    (tmp_path / "here").mkdir()
    assert flow.output("", "here").name == "xray-here.html"
    with pytest.raises(FeatherweightError, match="--output here: this is a directory"):
        flow.output("here", "owner/name")
    with pytest.raises(FeatherweightError, match=r"--output there/x\.html: there is no directory"):
        flow.output("there/x.html", "owner/name")
