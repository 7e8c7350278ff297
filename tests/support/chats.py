"""Chat templates that treat turns in ways of their own, and how conversations are read by them.

Each is a reduction of what templates in use do, to one kind of treatment.
"""

import numpy as np
from models import tiny_tokenizer
from tokenizers import AddedToken

from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.sources.columns import to_sample

SPECIAL = (
    *("<|start|>", "<|end|>", "<|return|>", "<|message|>", "<|channel|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|endoftext|>"),
)
# Qwen3: a thought stands in answers to the last question alone, also an empty one; tools stand in
# front, calls behind what is said, and results of tools are said by the user.
QWEN3 = """
{%- if tools %}{{- '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}
  {%- if m.role == 'user' and not (m.content.startswith('<tool_response>')
      and m.content.endswith('</tool_response>')) %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
  {%- set content = m.content if m.content is string else '' %}
  {%- if m.role in ('user', 'system') %}{{- '<|im_start|>' + m.role + '\\n' + content }}
  {%- elif m.role == 'assistant' %}
    {%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
    {%- if not thought and '</think>' in content %}
      {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
      {%- set thought = thought.lstrip('\\n') %}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if loop.index0 > ns.last and (loop.last or thought) %}
      {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content }}
    {%- for call in m.tool_calls or [] %}
      {{- '<tool_call>' + call.function.name + call.function.arguments | tojson + '</tool_call>' }}
    {%- endfor %}
  {%- elif m.role == 'tool' %}
    {{- '<|im_start|>user\\n<tool_response>' + content + '</tool_response>' }}
  {%- endif %}
  {%- if m.role in ('user', 'system', 'assistant', 'tool') %}{{- '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
# Its generation prompt opens a thought, which answers to earlier questions do not begin with.
QWEN3_THINKING = QWEN3.replace(
    "{{- '<|im_start|>assistant\\n' }}{% endif %}\n",
    "{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}\n",
)
# gpt-oss: the last turn ends with another token, and thoughts are messages of their own.
GPT_OSS = """
{{- '<|start|>system<|message|>You are.<|end|>' }}
{%- for m in messages %}
  {%- if m.role == 'assistant' %}
    {%- set is_end = loop.last and not add_generation_prompt %}
    {%- if is_end and m.thinking %}
      {{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
    {%- endif %}
    {{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}
    {{- '<|return|>' if is_end else '<|end|>' }}
  {%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}
"""
# Phi-3: the token that ends a document stands behind that of the last turn.
PHI3 = """
{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{% else %}{{- '<|endoftext|>' }}{% endif %}
"""
# Gemma: the role has another name, content is trimmed.
GEMMA = """
{%- for m in messages %}
  {%- set role = 'model' if m.role == 'assistant' else m.role %}
  {{- '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}
"""
# Mistral: tools stand before the last question, wherever that is.
LATE_TOOLS = """
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}
  {%- if m.role == 'user' %}
    {%- if tools and m == users[-1] %}{{- '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}
    {{- '[INST] ' + m.content + '[/INST]' }}
  {%- else %}{{- ' ' + m.content + '</s>' }}{% endif %}
{%- endfor %}
"""
# Llama 2 and Vicuna: no end token behind the last answer.
OPEN_END = """
{%- for m in messages %}
  {%- if m.role == 'user' %}{{- 'USER: ' + m.content + ' ' }}
  {%- else %}{{- 'ASSISTANT: ' + m.content }}{% if not loop.last %}{{- '</s>' }}{% endif %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{% endif %}
"""


def tokenizer_for(chat_template, *, bos=False):
    """The tiny tokenizer with the special tokens above, which its list of special ones lacks."""
    tokenizer = tiny_tokenizer(chat_template, bos=bos)
    tokenizer.add_tokens(
        [AddedToken(token, special=True) for token in SPECIAL], special_tokens=True
    )
    return tokenizer


def encoded(row, chat_template, *, bos=False, **options):
    """A row as a model with this chat template reads it."""
    options = {"template": "chat", "labels": "response", "max_length": 2048} | options
    return PromptEncoder(tokenizer_for(chat_template, bos=bos), **options).encode(to_sample(row))


def read(row, chat_template, **options):
    """The text that is read of a row."""
    return tokenizer_for(None).decode(encoded(row, chat_template, **options).token_ids)


def labels(row, chat_template, **options):
    """The texts of the runs of label tokens of a row."""
    one = encoded(row, chat_template, **options)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], one.label_mask.astype(int), [0]])))
    tokenizer = tokenizer_for(None)
    return [tokenizer.decode(one.token_ids[a:b]) for a, b in edges.reshape(-1, 2)]


def conversation(*texts, **last):
    """Turns of user and assistant in turn; `last` are further fields of the last one."""
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return {"messages": [*turns[:-1], {**turns[-1], **last}]}
