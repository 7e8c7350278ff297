import os

import numpy as np
import pytest
import torch

from forvalue_index.exceptions import BrokenIndexError, SettingsMismatchError
from forvalue_index.gradients.calibration import Calibration
from forvalue_index.gradients.geometry import Moments
from forvalue_index.gradients.sketch_error import ErrorScale
from forvalue_index.ingest.calibration import summary_of
from forvalue_index.store.frozen import calibration_file, read_calibration

MODEL = "m" * 32


def calibration(**changes):
    random = torch.Generator().manual_seed(3)
    parts = {
        "moments": Moments(
            torch.rand(9, generator=random),
            torch.randn(4, generator=random),
            torch.randn(4, 4, generator=random),
        ),
        "samples": 128,
        "label_tokens": 4321,
        "directions": {"kfac": np.linalg.qr(np.arange(8.0).reshape(4, 2) ** 2)[0].T.copy()},
        "error_scale": {"raw": ErrorScale(1.0625), "kfac": ErrorScale(1 / 3, 0.25)},
    }
    return Calibration(**(parts | changes))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "calibration.safetensors"
    path.write_bytes(calibration_file(calibration(), MODEL))
    return path


def assert_same(found, expected):
    for one, other in zip(found.moments, expected.moments, strict=True):
        assert one.dtype == other.dtype
        assert one.equal(other)
    assert (found.samples, found.label_tokens) == (expected.samples, expected.label_tokens)
    assert found.error_scale == expected.error_scale
    assert found.directions.keys() == expected.directions.keys()
    for name, directions in expected.directions.items():
        assert found.directions[name].dtype == directions.dtype
        assert np.array_equal(found.directions[name], directions)
    assert found.digest == expected.digest


@pytest.mark.parametrize(
    "changes",
    [{}, {"directions": {}, "error_scale": {}}, {"error_scale": {"raw": ErrorScale(0.1)}}],
)
def test_what_is_loaded_is_what_was_saved_to_the_bit(tmp_path, changes):
    path = tmp_path / "calibration.safetensors"
    path.write_bytes(calibration_file(calibration(**changes), MODEL))
    assert_same(read_calibration(path, MODEL), calibration(**changes))


def test_the_digest_is_known():
    """Segments name it: a change here makes those that exist unreadable."""
    known = Calibration(
        Moments(torch.ones(3), torch.zeros(2), torch.eye(2)),
        2,
        5,
        {},
        {"raw": ErrorScale(0.5, 0.25)},
    )
    assert known.digest == "896f5a385f7a3a4ff9ecc14a8c9ce1cf"


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 127},
        {"label_tokens": 4320},
        {"error_scale": {"raw": ErrorScale(1.0625)}},
        {"error_scale": {"raw": ErrorScale(1.0625), "kfac": ErrorScale(1 / 3, 0.5)}},
        {"error_scale": {"raw": ErrorScale(1.0625), "fisher": ErrorScale(1 / 3, 0.25)}},
        {"directions": {}},
        {"directions": {"fisher": calibration().directions["kfac"]}},
        {"directions": {"kfac": -calibration().directions["kfac"]}},
        *(
            {"moments": calibration().moments._replace(**{name: value + 1e-6})}
            for name, value in calibration().moments._asdict().items()
        ),
    ],
)
def test_the_digest_notices_every_change(changes):
    assert calibration(**changes).digest != calibration().digest


def test_the_file_of_another_model_is_refused(path):
    with pytest.raises(SettingsMismatchError) as error:
        read_calibration(path, "n" * 32)
    assert str(error.value) == (
        f"{path} is the calibration of another model ({MODEL}, the index has {'n' * 32}); use one "
        "that was made with this model"
    )


def test_a_flipped_bit_anywhere_is_found(path):
    """Header, names, shapes and numbers: each byte, one bit of it."""
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises((BrokenIndexError, SettingsMismatchError)) as error:
            pytest.fail(f"byte {position}: {read_calibration(path, MODEL)}")
        assert str(path) in str(error.value)


def test_a_file_that_is_cut_off_anywhere_is_found(path):
    content = path.read_bytes()
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(BrokenIndexError, match=r"cannot be read .* restore it from a backup"):
            read_calibration(path, MODEL)


@pytest.mark.parametrize("content", [b"", b"garbage" * 9, b"\0" * 500])
def test_a_file_of_something_else_is_damaged(path, content):
    path.write_bytes(content)
    with pytest.raises(BrokenIndexError, match="cannot be read"):
        read_calibration(path, MODEL)


def test_a_directory_is_damaged(path):
    path.unlink()
    path.mkdir()
    with pytest.raises(BrokenIndexError, match="cannot be read"):
        read_calibration(path, MODEL)


def test_the_numbers_of_another_calibration_under_this_one_s_name_are_damaged(path):
    other = calibration(samples=127)
    written, digest = calibration_file(other, MODEL), calibration().digest
    content = written.replace(other.digest.encode(), digest.encode())
    path.write_bytes(content)
    with pytest.raises(BrokenIndexError, match="its numbers are not its own"):
        read_calibration(path, MODEL)


def test_a_loaded_calibration_outlives_its_file(path):
    found = read_calibration(path, MODEL)
    os.truncate(path, 10)
    assert_same(found, calibration())


def test_a_summary_by_hand():
    """Of 1, 3 and 8, whose mean is 4, two are below a damping of 1."""
    moments = Moments(torch.tensor([1.0, 3.0, 8.0]), torch.zeros(2), torch.eye(2))
    found = summary_of(calibration(moments=moments), 1.0)
    assert (found.samples, found.label_tokens, found.damping) == (128, 4321, 1.0)
    assert (found.vocab_size, found.damped_tokens) == (3, 2)
    assert found.error_scale == {
        "raw": {"noise": 1.0625, "relative": 0},
        "kfac": {"noise": 1 / 3, "relative": 0.25},
    }
    assert summary_of(calibration(moments=moments), 0.1).damped_tokens == 0
