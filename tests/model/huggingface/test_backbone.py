import json
import shutil
import sys

import gguf
import numpy as np
import pytest
import torch
import transformers
from models import (
    CHATML,
    GENERATION,
    HIDDEN,
    KINDS,
    VOCAB,
    save_adapter,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
)

from forvalue_index.devices import default_device
from forvalue_index.exceptions import ForValueError, MissingDependencyError, ModelError
from forvalue_index.model.batching import collate
from forvalue_index.model.contracts import Tokenizer, Trunk
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface import shared_prefix
from forvalue_index.model.huggingface.backbone import Backbone, resolve_dtype
from forvalue_index.settings import Settings

CPU = torch.device("cpu")
TOKEN_IDS = np.arange(20, dtype=np.int64) * 13 % VOCAB


def load(directory, **options):
    options = {"dtype": "float32"} | options
    return Backbone.load(Settings(model=str(directory), **options), device=CPU)


def own_logits(backbone):
    """From trunk and head, at every token but the last."""
    sample = Encoded(TOKEN_IDS, np.arange(len(TOKEN_IDS)) > 0)
    return backbone.head.logits(backbone.hidden_states(collate([sample], [0])))


@torch.inference_mode()
def logits_of(model):
    return model(input_ids=torch.from_numpy(TOKEN_IDS)[None]).logits[0, :-1]


@pytest.fixture
def llama(tmp_path):
    return save_tiny(tmp_path / "llama", "llama")


def reason(directory, *, of=ModelError, **options):
    """The one line that is said instead of a backbone."""
    with pytest.raises(of) as error:
        load(directory, **options)
    said = str(error.value)
    assert "\n" not in said
    return said


# Loading.


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_loaded_from_its_directory(tmp_path, kind):
    backbone = load(save_tiny(tmp_path / kind, kind))
    assert isinstance(backbone, Trunk)
    assert isinstance(backbone.tokenizer, Tokenizer)
    assert backbone.head.weight.shape == (VOCAB, HIDDEN)
    assert backbone.revision is None
    torch.testing.assert_close(own_logits(backbone), logits_of(tiny_model(kind)))


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen3", "opt"])
def test_an_adapter_is_merged(tmp_path, kind):
    directory = save_tiny(tmp_path / "model", kind)
    adapted = save_adapter(tmp_path / "adapter", kind)
    backbone = load(directory, adapter=str(tmp_path / "adapter"))
    theirs = logits_of(adapted)
    assert float((theirs - logits_of(tiny_model(kind))).abs().max()) > 0.1
    torch.testing.assert_close(own_logits(backbone), theirs, rtol=1e-4, atol=1e-4)
    assert backbone.identity().weights_digest != load(directory).identity().weights_digest
    assert not any("lora" in name for name, _ in backbone._model.named_parameters())


def test_an_adapter_of_the_head_is_part_of_the_head(tmp_path):
    directory = save_tiny(tmp_path / "model", "llama")
    adapted = save_adapter(tmp_path / "adapter", "llama", targets=["lm_head", "q_proj"])
    backbone = load(directory, adapter=str(tmp_path / "adapter"))
    assert not torch.equal(backbone.head.weight, tiny_model("llama").lm_head.weight)
    torch.testing.assert_close(own_logits(backbone), logits_of(adapted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("kind", ["llama-tied", "gemma2"])
def test_an_adapter_of_one_end_of_a_tied_model_leaves_the_other_end_alone(tmp_path, kind, target):
    """Head and embedding share a weight. Merged into it, an adapter of the head moved every input
    as well, and the model said something else by several nats; a warning of PEFT was all one saw.
    """
    directory = save_tiny(tmp_path / "model", kind)
    adapted = save_adapter(tmp_path / "adapter", kind, targets=[target])
    backbone = load(directory, adapter=str(tmp_path / "adapter"))
    torch.testing.assert_close(own_logits(backbone), logits_of(adapted), rtol=1e-4, atol=1e-4)


def write_gguf(directory):
    """`tiny_model("llama")` with its tokenizer as a GGUF file of float32."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    config = model.config
    path = directory / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(2)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(VOCAB)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    unused = [f"<unused{i}>" for i in range(VOCAB - len(tokens))]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + unused)
    writer.add_token_types([3] * 5 + [1] * (len(tokens) - 5) + [5] * len(unused))
    writer.add_token_merges([" ".join(m) for m in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHATML)

    def interleaved(weight, heads):
        """GGUF keeps the two halves of a rotary pair beside each other."""
        return weight.reshape(heads, 2, -1, HIDDEN).transpose(1, 2).reshape(weight.shape)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name:
            tensor = interleaved(tensor, 4)
        if "k_proj" in name:
            tensor = interleaved(tensor, 2)
        base, suffix = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(base)}.{suffix}", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_model_is_loaded_from_a_gguf_file(tmp_path):
    backbone = load(write_gguf(tmp_path))
    theirs = logits_of(tiny_model("llama"))
    torch.testing.assert_close(own_logits(backbone), theirs, rtol=1e-4, atol=1e-4)
    ids = backbone.tokenizer("the hall").input_ids
    assert ids == tiny_tokenizer()("the hall").input_ids
    assert backbone.tokenizer.chat_template == CHATML


# What it says of itself.


def test_the_identity_does_not_depend_on_the_place(llama, tmp_path):
    identity = load(llama).identity()
    shutil.copytree(llama, tmp_path / "copy")
    assert load(tmp_path / "copy").identity() == identity
    assert (identity.vocab_size, identity.hidden_size) == (VOCAB, HIDDEN)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_one_changed_weight_changes_the_identity(name):
    before = Backbone(tiny_model("llama"), tiny_tokenizer()).identity()
    model = tiny_model("llama")
    weight = model.state_dict()[name]
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    after = Backbone(model, tiny_tokenizer()).identity()
    assert after.weights_digest != before.weights_digest
    assert after.tokenizer_digest == before.tokenizer_digest


def test_another_precision_is_another_model():
    one = Backbone(tiny_model("llama"), tiny_tokenizer()).identity()
    other = Backbone(tiny_model("llama", torch.bfloat16), tiny_tokenizer()).identity()
    assert one.weights_digest != other.weights_digest


def test_the_identity_tells_tokenizers_apart():
    model = tiny_model("llama")
    no_end = tiny_tokenizer()
    no_end.eos_token = "<|im_end|>"
    tokenizers = [
        tiny_tokenizer(),
        tiny_tokenizer(GENERATION),
        tiny_tokenizer(None),
        tiny_tokenizer(bos=True),
        no_end,
    ]
    digests = [Backbone(model, t).identity().tokenizer_digest for t in tokenizers]
    assert len(set(digests)) == len(tokenizers)
    assert Backbone(model, tiny_tokenizer()).identity().tokenizer_digest == digests[0]


def test_using_a_tokenizer_does_not_change_the_identity(llama):
    """Fast tokenizers keep padding and truncation of the last call among their rules."""
    backbone = load(llama)
    before = backbone.identity()
    backbone.tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=4)
    assert backbone.identity() == before


@pytest.mark.parametrize(("kind", "context"), [("llama", 512), ("gpt2", 512), ("mamba", None)])
def test_the_context_is_what_the_model_reads_at_most(kind, context):
    assert Backbone(tiny_model(kind), tiny_tokenizer()).context == context


def test_a_model_that_says_minus_one_reads_any_number_of_tokens():
    backbone = Backbone(tiny_model("llama"), tiny_tokenizer())
    backbone.model.config.max_position_embeddings = -1  # as XLNet has it
    assert backbone.context is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_that_is_named_is_taken(llama, dtype):
    assert resolve_dtype(dtype, CPU) == dtype
    assert load(llama, dtype=dtype).head.weight.dtype == getattr(torch, dtype)


def test_auto_is_float32_without_a_gpu(llama):
    assert resolve_dtype("auto", CPU) == "float32"
    assert load(llama, dtype="auto").head.weight.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_auto_is_bfloat16_on_a_gpu():
    assert default_device().type == "cuda"
    assert resolve_dtype("auto", default_device()) == "bfloat16"


def test_default_device_is_the_gpu_where_there_is_one():
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_backbone_needs_no_gradients_and_no_dropout():
    backbone = Backbone(tiny_model("gpt2").train(), tiny_tokenizer())
    assert not own_logits(backbone).requires_grad
    assert torch.equal(own_logits(backbone), own_logits(backbone))


def test_loading_leaves_the_loudness_of_transformers_as_it_was(llama):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(llama)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# What is refused.


class ShiftedLlama(transformers.LlamaForCausalLM):
    """A head that does more than the configuration says."""

    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        output.logits = output.logits + torch.linspace(-1, 1, VOCAB)
        return output


class WideLlama(transformers.LlamaForCausalLM):
    """Logits for more entries than the head has rows."""

    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        output.logits = torch.cat([output.logits, output.logits[..., :1]], dim=-1)
        return output


@pytest.mark.parametrize("model_class", [ShiftedLlama, WideLlama])
def test_a_head_that_is_not_understood_is_refused(model_class):
    """Its samples would be valued wrongly, and nothing would show it."""
    model = model_class(tiny_model("llama").config)
    with pytest.raises(ModelError) as error:
        Backbone(model, tiny_tokenizer(), name="runs/odd")
    assert str(error.value).startswith(
        f"runs/odd: {model_class.__name__} has a head that is more than scale, bias and "
    )


def test_a_layer_between_trunk_and_head_is_named():
    """As ELECTRA has one, where its embeddings are narrower than its layers."""
    model = tiny_model("llama")
    model.lm_head = torch.nn.Sequential(torch.nn.Linear(HIDDEN, 8), torch.nn.Linear(8, VOCAB))
    model.lm_head.weight = model.lm_head[1].weight
    with pytest.raises(ModelError) as error:
        Backbone(model, tiny_tokenizer(), name="runs/narrow")
    assert str(error.value) == (
        "runs/narrow: LlamaForCausalLM has a layer between its hidden states, of 32 numbers, and "
        "its head, which reads 8, so its samples cannot be valued; use another model"
    )


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("gemma2", "final_logit_softcapping"),
        ("granite", "logits_scaling"),
        ("cohere", "logit_scale"),
    ],
)
def test_a_part_of_the_head_that_is_overlooked_is_noticed(kind, field):
    """The check that stands between a new architecture and wrong values must see each part."""
    model = tiny_model(kind)
    understood = Backbone(model, tiny_tokenizer())
    plain = type(understood.head)(understood.head.weight)
    understood.head = plain
    with pytest.raises(ModelError, match="has a head that is more"):
        understood._choose_head([])
    assert getattr(model.config, field) is not None


def test_a_missing_directory_is_said(tmp_path):
    assert reason(tmp_path / "nowhere") == (
        f"{tmp_path}/nowhere: there is no such model directory; check the path, or name a model on "
        "the hub as OWNER/NAME"
    )


def test_a_directory_without_a_config_is_said(llama):
    (llama / "config.json").unlink()
    assert reason(llama) == f"{llama} has no config.json, so it is no model; check the path"


def test_a_missing_gguf_file_is_said(tmp_path):
    assert reason(tmp_path / "a.gguf") == (
        f"{tmp_path}/a.gguf: there is no such GGUF file; check the path"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"not tensors"),
        ("model.safetensors", b""),
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("tokenizer.json", b"{"),
    ],
)
def test_a_damaged_file_is_one_line(llama, name, content):
    (llama / name).write_bytes(content)
    said = reason(llama, of=ForValueError)
    assert said.startswith(f"{llama} cannot be loaded as a language model: ")
    assert said.endswith("a directory with config.json, weights and tokenizer, or a GGUF file")


def test_missing_weights_are_one_line(llama):
    (llama / "model.safetensors").unlink()
    assert reason(llama).startswith(f"{llama} cannot be loaded as a language model: ")


def test_a_missing_tokenizer_is_one_line(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "m")
    reason(tmp_path / "m", of=ForValueError)


def test_a_damaged_gguf_file_is_one_line(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF and no more")
    reason(tmp_path / "a.gguf", of=ForValueError)


def test_a_missing_or_damaged_adapter_is_one_line(llama, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    assert nowhere in reason(llama, adapter=nowhere)
    save_adapter(tmp_path / "adapter", "llama")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"not tensors")
    assert str(tmp_path / "adapter") in reason(llama, adapter=str(tmp_path / "adapter"))


def test_an_adapter_of_another_model_is_one_line(tmp_path):
    directory = save_tiny(tmp_path / "gpt2", "gpt2")
    save_adapter(tmp_path / "adapter", "llama")
    assert str(tmp_path / "adapter") in reason(directory, adapter=str(tmp_path / "adapter"))


def test_a_missing_peft_is_said(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    said = reason(llama, of=MissingDependencyError, adapter="runs/lora")
    assert said == "--adapter runs/lora needs PEFT; pip install 'forvalue-index[models]'"


class SlowTokenizer(transformers.PythonBackend):
    """One in Python: it cannot say which characters a token stands for."""

    vocab_size = 300

    def get_vocab(self):
        return {str(i): i for i in range(300)}

    def _tokenize(self, text, **options):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ModelError) as error:
        Backbone(tiny_model("llama"), SlowTokenizer(), name="runs/slow")
    assert str(error.value) == (
        "runs/slow: its tokenizer does not say which characters a token stands for, so responses "
        "cannot be told from prompts; use a model with a tokenizer.json"
    )


def test_an_encoder_is_refused(tmp_path):
    """Bidirectional models see the label that they should predict."""
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    said = reason(tmp_path / "bert")
    assert str(tmp_path / "bert") in said
    assert "Bert" in said


def test_a_model_without_a_head_is_refused():
    model = tiny_model("llama").model
    with pytest.raises(ModelError, match="LlamaModel has no language-model head"):
        Backbone(model, tiny_tokenizer(), name="runs/trunk")


# Beginnings that samples share.


def beginning_alike(shared, *lengths):
    """A batch of samples that begin with the same tokens; their labels are the last three."""
    random = np.random.default_rng(0)
    start = random.integers(3, VOCAB, shared)
    samples = []
    for length in lengths:
        own = random.integers(3, VOCAB, length)
        labels = np.arange(shared + length) >= shared + length - 3
        samples.append(Encoded(np.concatenate([start, own]), labels))
    return collate(samples, range(len(samples)))


def read_tokens(backbone, batch):
    """Hidden states, and how many tokens the trunk read for them."""
    counts = []
    hook = backbone._trunk.register_forward_pre_hook(
        lambda _module, _args, given: counts.append(given["input_ids"].numel()), with_kwargs=True
    )
    states = backbone.hidden_states(batch)
    hook.remove()
    return states, sum(counts)


# Others keep a window or a state of what they read, or take no positions.
SHARING = ("llama", "llama-tied", "qwen2", "qwen3", "gpt2", "granite", "cohere", "phi", "opt")
SHARING += ("mixtral", "qwen3-moe")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(9, 9), (30, 17, 5, 4)], ids=["equal", "padded"])
def test_what_samples_begin_with_is_read_once(tmp_path, kind, lengths):
    backbone = load(save_tiny(tmp_path / kind, kind))
    batch = beginning_alike(24, *lengths)
    states, n_read = read_tokens(backbone, batch)
    with torch.inference_mode():
        expected = backbone.differentiable_states(batch)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
    width = 24 + lengths[0] - 1
    once = 24 + len(lengths) * (width - 24)
    assert n_read == (once if kind in SHARING else len(lengths) * width)


def test_labels_are_never_part_of_what_is_read_once(llama):
    backbone = load(llama)
    same = [Encoded(TOKEN_IDS, np.arange(20) >= first) for first in (15, 7, 18)]
    batch = collate(same, range(3))
    states, n_read = read_tokens(backbone, batch)
    assert n_read == 6 + 3 * (19 - 6)  # the token at 6 predicts the first label
    with torch.inference_mode():
        torch.testing.assert_close(states, backbone.differentiable_states(batch))


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_a_beginning_of_few_tokens_is_not_worth_a_second_pass(llama, shared):
    batch = beginning_alike(shared, 60, 60)
    _, n_read = read_tokens(load(llama), batch)
    assert n_read == batch.token_ids.size


def test_a_sample_alone_is_read_at_once(llama):
    _, n_read = read_tokens(load(llama), beginning_alike(24, 9))
    assert n_read == 32


def shares_prefix(backbone):
    trunk, config = backbone._trunk, backbone.model.config
    return shared_prefix.can_share_prefix(trunk, config, backbone.head.weight)


def test_a_model_that_reads_on_differently_is_read_as_a_whole(llama):
    backbone = load(llama)
    attention = backbone._trunk.layers[0].self_attn
    whole = attention.forward
    # Of what was read before, the model forgets what counts.
    attention.forward = lambda *args, **kwargs: whole(*args, **(kwargs | {"past_key_values": None}))
    assert shares_prefix(backbone) is False


@pytest.mark.parametrize(
    ("rope", "shares"),
    [
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, False),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, True),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}, True),
    ],
)
def test_positions_that_depend_on_the_length_of_a_text_share_no_beginning(tmp_path, rope, shares):
    """Past the original context, keys of a short beginning are turned otherwise than in a text."""
    options = {"rope_parameters": rope, "max_position_embeddings": 32}
    backbone = load(save_tiny(tmp_path / "model", "llama", **options))
    batch = beginning_alike(24, 40, 30)
    states, n_read = read_tokens(backbone, batch)
    assert (n_read < batch.token_ids.size) is shares
    with torch.inference_mode():
        expected = backbone.differentiable_states(batch)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)


def test_a_model_whose_cache_fails_is_read_as_a_whole(llama, monkeypatch):
    backbone = load(llama)
    monkeypatch.setattr(shared_prefix, "states_after", lambda *_: [][1])
    assert shares_prefix(backbone) is False
