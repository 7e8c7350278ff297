"""What data say about labels is followed, or refused where it cannot be."""

import pytest

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import to_sample


def sample(*extras, **options):
    """A conversation whose turns of the assistant have further fields."""
    turns = []
    for n, extra in enumerate(extras):
        turns.append({"role": "user", "content": f"q{n}"})
        turns.append({"role": "assistant", "content": f"a{n}", **extra})
    return to_sample({"messages": turns}, **options)


def trained(found):
    return [message.content for message in found.messages if message.is_trained]


@pytest.mark.parametrize(
    "name", ["weight", "train", "training", "loss", "loss_scale", "loss_weight"]
)
@pytest.mark.parametrize("value", [0, 0.0, False, "0", "0.0", "false", "False"])
def test_a_turn_that_is_no_label(name, value):
    found = sample({name: value}, {})
    assert trained(found) == ["a1"]
    said = {name: value} if name != "train" else {}
    assert found.messages[1].extra == {**said, "train": False}


@pytest.mark.parametrize(
    "name", ["weight", "train", "training", "loss", "loss_scale", "loss_weight"]
)
@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true"])
def test_a_turn_that_is_a_label(name, value):
    found = sample({name: value}, {name: None})
    assert trained(found) == ["a0", "a1"]
    assert found.messages[1].extra == {name: value}
    assert found.messages[3].extra == {}


@pytest.mark.parametrize("name", ["weight", "loss_scale", "train"])
@pytest.mark.parametrize("value", [0.5, 2, -1, "0.5", "half", [0]])
def test_a_weight_in_between_is_refused(name, value):
    with pytest.raises(BadSampleError) as error:
        sample({name: value}, {})
    assert str(error.value) == (
        f"turn 2 of 'messages' has {name} {value!r}, and a turn is a label or not: 1 or 0; round "
        f"it, or leave the field out with --ignore {name}"
    )
    assert trained(sample({name: value}, {}, columns={"ignore": name})) == ["a0", "a1"]


def test_marks_that_contradict_each_other():
    with pytest.raises(
        BadSampleError, match="turn 2 of 'messages' has train True, weight 0, which"
    ):
        sample({"weight": 0, "train": True}, {})
    assert trained(sample({"weight": 0, "train": False}, {})) == ["a1"]


def test_details_of_a_turn_are_refused():
    assert trained(sample({"train_detail": []})) == ["a0"]
    with pytest.raises(BadSampleError, match="turn 2 of 'messages' has train_detail, and a turn"):
        sample({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]})


def test_marks_of_others_than_the_assistant():
    """A weight means nothing there; `train` of axolotl would make labels of the user's words."""
    turn = {"role": "user", "content": "q", "weight": 0.5, "train": False}
    answer = {"role": "assistant", "content": "a"}
    found = to_sample({"messages": [turn, answer]})
    assert found.messages[0].extra == {"weight": 0.5, "train": False}
    assert trained(found) == ["a"]
    with pytest.raises(BadSampleError, match="turn 1 of 'messages' is 'user' and says train True"):
        to_sample({"messages": [{**turn, "train": True}, answer]})


def test_nothing_to_be_trained():
    with pytest.raises(BadSampleError, match="'messages': the data say of each assistant turn"):
        sample({"weight": 0}, {"train": False})


def test_the_assistant_within_a_prompt_is_context():
    """TRL's prompt and completion: the completion alone is trained."""
    asked = [("user", "q"), ("assistant", "a"), ("user", "r")]
    prompt = [{"role": role, "content": content} for role, content in asked]
    for completion in ("b", [{"role": "assistant", "content": "b"}]):
        found = to_sample({"prompt": prompt, "completion": completion})
        assert [m.content for m in found.messages] == ["q", "a", "r", "b"]
        assert trained(found) == ["b"]
    assert "train" not in found.messages[3].extra


def test_a_prompt_may_say_that_it_is_trained():
    prompt = [{"role": "assistant", "content": "a", "weight": 1}, {"role": "user", "content": "r"}]
    assert trained(to_sample({"prompt": prompt, "completion": "b"})) == ["a", "b"]
