"""Who speaks: the names that data sets have for the roles of chat templates."""

from __future__ import annotations

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.sample import ASSISTANT, TEXT_ROLE, TOKENS_ROLE

USER, SYSTEM, TOOL = "user", "system", "tool"
# A turn of the assistant whose content is a call: LLaMA-Factory's and ms-swift's names.
CALL = "function_call"

NAMES = {
    USER: ("user", "human", "prompter"),
    ASSISTANT: ("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai"),
    SYSTEM: ("system",),
    TOOL: ("tool", "function", "function_response", "tool_response"),
    CALL: ("function_call", "tool_call"),
    "developer": ("developer",),
}
ROLES = {name: role for role, names in NAMES.items() for name in names}
# Templates of GLM-4 have a role of this name, so that under `role` it stays what it is.
OBSERVATION = "observation"


def role_of(name: str, location: str, *, sharegpt: bool) -> str:
    """The role that a name stands for, in any letter case; an unknown one stays as it is.

    Raises BadSampleError where it can be none.
    """
    role = ROLES.get(name)
    if role is None:
        lower = name.strip().lower()
        role = ROLES.get(lower, name)
        if sharegpt and lower == OBSERVATION:
            return TOOL
        if lower in ("", TEXT_ROLE, TOKENS_ROLE):
            raise BadSampleError(f"the role of {location} is {name!r}, wanted user, assistant, ...")
    return role
