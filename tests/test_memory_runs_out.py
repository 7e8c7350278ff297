import gc
import json
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

from forvalue_index.devices import none_if_out_of_memory

pytest_plugins = ("tiny",)

LIMITED = """
import json, logging, resource, sys
import numpy as np
import torch
from forvalue_index.exceptions import ModelError
from forvalue_index.model.batching import collate
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.settings import Settings

torch.set_num_threads(1)
settings = Settings(sys.argv[1], dtype="float32")
backbone = Backbone.load(settings, device=torch.device("cpu"))
n_tokens, room = int(sys.argv[2]), int(sys.argv[3])
labels = np.arange(n_tokens + 1) > n_tokens // 2
samples = [Encoded((np.arange(n_tokens + 1) + i) % 50, labels) for i in range(16)]
batch = collate(samples, range(16))
if len(sys.argv) == 4:  # else nothing was read before whose memory a sample could take
    expected = torch.cat([backbone.hidden_states(collate([s], [0])) for s in samples])
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + room, -1))
sizes = []
whole = backbone.differentiable_states
backbone.differentiable_states = lambda b: sizes.append(b.token_ids.size) or whole(b)
try:
    found = [backbone.hidden_states(batch) for _ in range(2)]
except ModelError as error:
    outcome = {"error": str(error)}
else:
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    gap = max(float((states - expected).abs().max()) for states in found)
    outcome = {"gap": gap, "shape": list(found[0].shape)}
print(json.dumps(outcome | {"sizes": sizes}))
"""


def limited(model_dir, n_tokens, room, *arguments):
    """Hidden states of 16 samples with so many bytes more than what the program has anyway."""
    command = [sys.executable, "-c", LIMITED, str(model_dir), str(n_tokens), str(room), *arguments]
    # One arena, as each thread would reserve address space of its own.
    more_env = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | more_env, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_batch_that_memory_is_too_small_for_is_read_in_halves(model_dir):
    outcome, said = limited(model_dir, n_tokens=200, room=3_000_000)
    assert outcome["shape"] == [16 * 100, 32]
    assert outcome["gap"] < 1e-5
    sizes = outcome["sizes"]
    assert sizes[:2] == [16 * 200, 8 * 200]
    assert sizes.count(16 * 200) == 1, "a size that was too large is not tried again"
    assert "No memory for a batch of 3,200 tokens; going on with halves" in said
    assert said.count("No memory for a batch of 3,200") == 1


def test_a_sample_that_memory_is_too_small_for_is_named(model_dir):
    outcome, _ = limited(model_dir, 20_000, 6_000_000, "unread")
    assert "there is not the memory on cpu to read a sample of 20,000 tokens" in outcome["error"]
    assert "--max-length" in outcome["error"]


def test_what_memory_suffices_for_is_given():
    assert none_if_out_of_memory(lambda: 3) == 3


@pytest.mark.parametrize(
    "work", [lambda: torch.empty(2**48), lambda: np.empty(2**55)], ids=["torch", "numpy"]
)
def test_what_is_too_large_gives_nothing(work):
    assert none_if_out_of_memory(work) is None


def test_other_errors_are_not_kept_back():
    with pytest.raises(RuntimeError, match="must match"):
        none_if_out_of_memory(lambda: torch.ones(2) + torch.ones(3))


def test_what_was_held_when_memory_ran_out_is_free_afterwards():
    held = []

    def work():
        tensor = torch.ones(1000)
        held.append(weakref.ref(tensor))
        return tensor + torch.empty(2**48)

    gc.disable()
    try:
        assert none_if_out_of_memory(work) is None
        assert held[0]() is None
    finally:
        gc.enable()
