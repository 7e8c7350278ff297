import pytest

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import to_sample
from forvalue_index.sources.shapes.roles import CALL, role_of


@pytest.mark.parametrize(
    ("names", "role"),
    [
        ("user human Human USER prompter", "user"),
        ("assistant gpt chatgpt model bot chatbot GPT Assistant", "assistant"),
        ("system System", "system"),
        ("developer Developer", "developer"),
        ("tool function function_response tool_response Tool", "tool"),
        ("function_call tool_call", CALL),
        ("critic", "critic"),
        ("Critic", "Critic"),
    ],
)
@pytest.mark.parametrize("sharegpt", [True, False])
def test_names_of_roles(names, role, sharegpt):
    for name in names.split():
        assert role_of(name, "turn 1", sharegpt=sharegpt) == role


def test_observation_is_a_tool_of_sharegpt_and_a_role_of_glm():
    assert role_of("observation", "turn 1", sharegpt=True) == "tool"
    assert role_of("observation", "turn 1", sharegpt=False) == "observation"


@pytest.mark.parametrize("name", ["", " ", "text", "Text", "tokens"])
def test_a_role_that_is_none(name):
    with pytest.raises(BadSampleError, match=f"the role of turn 1 is '{name}', wanted user"):
        role_of(name, "turn 1", sharegpt=False)


def test_every_name_in_a_conversation():
    turns = [("System", "S"), ("HUMAN", "Q"), ("chatgpt", "A"), ("human", "R"), ("model", "B")]
    expected = [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R")]
    expected.append(("assistant", "B"))
    for names in (("from", "value"), ("role", "content")):
        row = {"conversations": [dict(zip(names, turn, strict=True)) for turn in turns]}
        assert [(m.role, m.content) for m in to_sample(row).messages] == expected
