import math
import shutil

import numpy as np
import pytest
import torch
from models import HIDDEN, VOCAB, tiny_model, tiny_tokenizer
from rows import rows
from scipy.optimize import minimize

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import ModelError, SettingsMismatchError, UsageError
from forvalue_index.gradients import calibrating
from forvalue_index.gradients.calibrating import CALIBRATION_SAMPLES, CalibrationSample, calibrate
from forvalue_index.gradients.calibration import Calibration
from forvalue_index.gradients.embedder import Embedder, features_of
from forvalue_index.gradients.hash_tables import (
    draw_tables,
    geometry_tables,
    part_widths,
    row_layout,
)
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.huggingface.image_check import open_content
from forvalue_index.model.label_tokens import Prepared
from forvalue_index.settings import Settings
from forvalue_index.sources.columns import to_sample
from forvalue_index.store.model import make_reader

pytest_plugins = ("tiny",)

DATA = [to_sample(row) for row in rows(14, words=4)]
ALL = ("raw", "centered", "fisher", "kfac")


class Setup:
    """A model with what an index of it would have."""

    def __init__(self, *, dim=256, **chosen):
        model = tiny_model("llama")
        self.model, self.backbone = model, Backbone(model, tiny_tokenizer())
        chosen = {"geometry": ",".join(ALL), "damping": 1.0} | chosen
        self.settings = Settings("m", dim=dim, template="chat", max_length=512, **chosen)
        layouts = {
            name: row_layout(name, dim=dim, vocab_size=VOCAB, hidden_size=HIDDEN, profile=None)
            for name in self.settings.geometries
        }
        self.tables = draw_tables(VOCAB, HIDDEN, dim=dim, seed=3, layouts=layouts)
        self.reader = make_reader(self.backbone, self.settings, self.tables, open_content)

    def prepared(self, samples=DATA):
        return [self.reader.prepare(sample) for sample in samples]

    def calibrate(self, prepared=None):
        chosen = self.prepared() if prepared is None else prepared
        return calibrate(self.reader, self.tables, self.settings, chosen)


def slow_tokens(setup, prepared):
    """Errors [token, vocab], in order of token ids, and hidden states, by the model's forward."""
    errors, states, owners = [], [], []
    for owner, one in enumerate(prepared):
        ids = torch.from_numpy(one.encoded.token_ids)[None]
        with torch.no_grad():
            hidden = setup.model.model(input_ids=ids).last_hidden_state[0].double()
        for position in np.flatnonzero(one.encoded.label_mask):
            logits = setup.model.lm_head.weight.double() @ hidden[position - 1]
            error = -torch.softmax(logits, 0)
            error[ids[0, position]] += 1
            errors.append(error)
            states.append(hidden[position - 1])
            owners.append(owner)
    return torch.stack(errors), torch.stack(states), np.array(owners)


def test_moments_are_those_of_a_slow_loop():
    setup = Setup()
    prepared = setup.prepared()
    found = setup.calibrate(prepared)
    errors, states, _ = slow_tokens(setup, prepared)
    assert (found.samples, found.label_tokens) == (14, len(errors))
    square = sum(torch.outer(state, state) for state in states) / len(states)
    for moment, expected in (
        (found.moments.error_size, errors.abs().mean(0)),
        (found.moments.hidden_mean, states.mean(0)),
        (found.moments.hidden_square, square),
    ):
        assert moment.dtype == torch.float32
        torch.testing.assert_close(moment.double(), expected, rtol=1e-4, atol=1e-6)


def test_the_size_of_errors_is_the_fisher_information_of_labels_and_model_together():
    """E|e_v| = E[e_v^2] + E[p_v (1 - p_v)], as e_v is 1 - p_v or -p_v."""
    setup = Setup()
    errors, _, _ = slow_tokens(setup, setup.prepared())
    probabilities = errors.clamp(max=0).abs() + (errors > 0) * (1 - errors)
    expected = errors.square().mean(0) + (probabilities * (1 - probabilities)).mean(0)
    found = setup.calibrate().moments.error_size.double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_tokens_that_do_not_count_are_not_measured():
    prepared = Setup().prepared()
    found = Setup(hardest=0.5).calibrate(prepared)
    kept = [math.ceil(0.5 * one.encoded.n_label_tokens) for one in prepared]
    assert found.label_tokens == sum(kept)


def test_directions_are_the_leading_ones_of_the_mapped_states():
    setup = Setup()
    found = setup.calibrate()
    assert found.directions.keys() == {"fisher", "kfac"}, "no other geometry has a use for them"
    _, states, _ = slow_tokens(setup, setup.prepared())
    vectors = torch.linalg.svd(states).Vh[:2]
    overlap = (torch.from_numpy(found.directions["fisher"]) @ vectors.T).abs()
    torch.testing.assert_close(overlap, torch.eye(2).double(), rtol=0, atol=1e-2)
    assert found.directions["fisher"].dtype == np.float64


def exact_gram(setup, name, found, prepared):
    """Inner products of whole mapped gradients, by outer products."""
    errors, states, owners = slow_tokens(setup, prepared)
    error_size, mean, square = (m.double() for m in found.moments)
    if name in ("fisher", "kfac"):
        errors = errors / (error_size / error_size.mean() + 1).sqrt()
    if name == "centered":
        states = states - mean
    if name == "kfac":
        values, vectors = torch.linalg.eigh(square)
        states = states @ (vectors / (values / values.mean() + 1).sqrt()) @ vectors.T
    gradients = torch.stack(
        [errors[owners == i].T @ states[owners == i] for i in range(len(prepared))]
    ).flatten(1)
    return (gradients @ gradients.T).numpy()


@pytest.mark.parametrize("name", ALL)
def test_the_error_scale_is_that_of_rows_against_whole_gradients(name):
    """Over all pairs, and as likely as a general optimiser can make it."""
    setup = Setup(dim=128)
    prepared = setup.prepared()
    found = setup.calibrate(prepared)
    features = features_of(setup.reader, setup.tables, setup.settings, found, [name])
    embedded = Embedder(setup.reader, features).embed(prepared).rows[name].double().numpy()
    directions = found.directions.get(name)
    widths = part_widths(geometry_tables(setup.tables, name, directions), 128)
    exact = exact_gram(setup, name, found, prepared)
    errors, formula, scores = [], [], []
    for i in range(len(prepared)):
        for j in range(i):
            scores.append(embedded[i] @ embedded[j])
            errors.append(scores[-1] - exact[i, j])
            start = variance = 0
            for width in widths:
                one, other = (embedded[k][start : start + width] for k in (i, j))
                variance += (one @ one) * (other @ other) / width
                start += width
            formula.append(math.sqrt(variance))
    expected = most_likely(*map(np.array, (errors, formula, scores)))
    assert found.error_scale[name] == pytest.approx(expected, rel=1e-2, abs=1e-2)


def most_likely(errors, formula, scores):
    """By minimising the negative log-likelihood of errors and of ten that are as the formula."""
    squares = np.append((errors / formula) ** 2, np.ones(10))
    parts = np.append((scores / formula) ** 2, np.zeros(10))

    def surprise(scale):
        variances = scale[0] ** 2 + scale[1] ** 2 * parts
        return np.sum(np.log(variances) + squares / variances)

    starts = ([1, 0.01], [0.3, 0.3], [2, 1])
    found = [minimize(surprise, x, bounds=[(1e-6, None), (0, None)]) for x in starts]
    return min(found, key=lambda one: one.fun).x


def test_an_error_scale_is_found_again():
    """Errors drawn with a noise of .7 and a fifth of the score."""
    random = np.random.default_rng(0)
    formula = random.uniform(0.5, 2, 20_000)
    scores = formula * random.standard_cauchy(20_000)
    errors = np.hypot(0.7 * formula, 0.2 * scores) * random.standard_normal(20_000)
    found = calibrating.fit_error_scale(errors, formula, scores)
    assert found == pytest.approx((0.7, 0.2), rel=0.06)
    assert found == pytest.approx(most_likely(errors, formula, scores), rel=1e-3)
    units = 1000.0
    scaled = calibrating.fit_error_scale(units * errors, units * formula, units * scores)
    assert scaled == pytest.approx(found)


def test_an_error_scale_by_hand():
    """Of scores of 0 the noise is the root mean square in units, beside ten pairs of 1."""
    errors, formula = np.array([3.0, -1.0, 0.0]), np.array([1.0, 2.0, 0.0])
    found = calibrating.fit_error_scale(errors, formula, np.zeros(3))
    assert found == pytest.approx((math.sqrt((9 + 0.25 + 10) / 12), 0))
    none = np.zeros(0)
    assert calibrating.fit_error_scale(none, none, none) == (1, 0)


def test_no_errors_at_all_still_promise_some():
    """Two rows that happen to fit are no proof that others do."""
    found = calibrating.fit_error_scale(np.zeros(1), np.ones(1), np.ones(1))
    assert found.noise == pytest.approx(1, abs=0.06)
    assert found.relative == pytest.approx(0, abs=1e-3)


def test_rows_that_are_exact_have_no_error_to_compare():
    found = Setup(dim=VOCAB * HIDDEN).calibrate()
    assert found.error_scale == dict.fromkeys(ALL, (1, 0))


def test_one_sample_has_none_to_compare_with():
    setup = Setup()
    found = setup.calibrate(setup.prepared()[:1])
    assert found.error_scale == dict.fromkeys(ALL, (1, 0))
    assert found.samples == 1


def test_long_samples_are_compared_in_part(monkeypatch):
    setup = Setup()
    prepared = setup.prepared()
    monkeypatch.setattr(calibrating, "COMPARED_OF_SAMPLE", 3)
    monkeypatch.setattr(calibrating, "COMPARED_TOKENS", 20)
    cut = calibrating._compared(prepared)
    assert 6 <= len(cut) <= len(prepared)
    assert sum(one.encoded.n_label_tokens for one in cut) <= 20
    for whole, one in zip(prepared, cut, strict=False):
        expected = np.flatnonzero(whole.encoded.label_mask)[:3]
        assert np.flatnonzero(one.encoded.label_mask).tolist() == expected.tolist()
    assert all(p.encoded.n_label_tokens > 3 for p in prepared[:6])


def undefined(setup):
    """A sample with a token for which the model gives no numbers."""
    with torch.no_grad():
        setup.model.get_input_embeddings().weight[285] = float("nan")
    return Prepared(DATA[0], Encoded(np.array([5, 285, 6]), np.array([False, False, True])))


def test_undefined_numbers_are_left_out():
    setup = Setup()
    expected = setup.calibrate()
    bad = undefined(setup)
    found = setup.calibrate([*setup.prepared(), bad])
    assert (found.samples, found.label_tokens) == (15, expected.label_tokens)
    for one, other in zip(found.moments, expected.moments, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert all(math.isfinite(part) for scale in found.error_scale.values() for part in scale)


def test_nothing_but_undefined_numbers_is_an_error():
    setup = Setup()
    bad = undefined(setup)
    with pytest.raises(ModelError, match=r"for all 2 samples of the calibration; use --dtype"):
        setup.calibrate([bad, bad])


def offered(prepared, seed=0):
    choice = CalibrationSample(seed)
    for one in prepared:
        choice.offer(one)
    return choice.samples()


@pytest.fixture(scope="module")
def many():
    setup = Setup()
    return setup.prepared([to_sample(row) for row in rows(5 * CALIBRATION_SAMPLES + 3, words=2)])


def keys(prepared):
    return [one.sample.key for one in prepared]


def test_a_choice_does_not_depend_on_the_order_and_is_seeded(many):
    chosen = keys(offered(many))
    assert len(set(chosen)) == len(chosen) == CALIBRATION_SAMPLES
    assert keys(offered(many[::-1])) == chosen
    shuffled = [many[i] for i in np.random.default_rng(0).permutation(len(many))]
    assert keys(offered(shuffled)) == chosen
    other = keys(offered(many, seed=1))
    assert len(set(other) & set(chosen)) < 0.5 * CALIBRATION_SAMPLES


def test_a_choice_is_about_the_same_from_all_parts_and_in_no_order(many):
    places = [int(key[1:]) for key in keys(offered(many))]
    assert places != sorted(places)
    thirds = np.histogram(places, bins=3, range=(0, len(many)))[0]
    assert thirds.min() > CALIBRATION_SAMPLES / 6


def test_a_choice_of_few_is_all_of_them_and_a_repetition_counts_once(many):
    assert sorted(keys(offered(many[:20]))) == sorted(keys(many[:20]))
    assert keys(offered([*many[:20], *many[5:20]])) == keys(offered(many[:20]))
    assert offered([]) == []


# ---- of an index ----


def calibration_of(index):
    return index.storage.frozen.calibration()


def row_bytes(index, geometry):
    with index.storage.view() as view:
        return b"".join(block.rows.numpy().tobytes() for block in view.blocks(geometry))


def made(path, model_dir, **settings):
    chosen = {"dim": 64, "row_dtype": "float32", "geometry": "fisher,raw,kfac"} | settings
    return ValuationIndex.create(path, str(model_dir), **chosen)


@pytest.fixture
def calibrated(tmp_path, model_dir):
    with made(tmp_path / "one", model_dir) as index:
        index.add(rows(20))
        yield index


def test_the_first_add_calibrates_and_no_other_one(calibrated):
    found = calibration_of(calibrated)
    assert (found.samples, found.directions.keys()) == (20, {"fisher", "kfac"})
    assert found.error_scale.keys() == {"fisher", "kfac", "raw"}
    calibrated.add(rows(30, seed=1, prefix="s"))
    assert calibration_of(calibrated).digest == found.digest
    assert calibrated.check().findings == ()


def test_the_order_of_the_first_data_does_not_matter_to_the_choice(tmp_path, model_dir, calibrated):
    with made(tmp_path / "other", model_dir) as other:
        other.add(rows(20)[::-1])
        for one, also in zip(
            calibration_of(other).moments, calibration_of(calibrated).moments, strict=True
        ):
            torch.testing.assert_close(one, also, rtol=1e-4, atol=1e-6)


def test_samples_of_an_index_without_a_calibration_are_not_chosen_twice(tmp_path, model_dir):
    with made(tmp_path / "ix", model_dir) as index:
        index.add([*rows(5), *rows(5)])
        assert calibration_of(index).samples == 5


def test_an_index_that_holds_samples_is_not_calibrated_again(calibrated):
    before = calibration_of(calibrated).digest
    with pytest.raises(UsageError, match="holds samples, and their rows depend on its calibration"):
        calibrated.calibrate(rows(5))
    assert calibration_of(calibrated).digest == before


def test_an_index_is_calibrated_on_data_before_it_holds_any(tmp_path, model_dir):
    with made(tmp_path / "ix", model_dir) as index:
        found = index.calibrate(rows(9))
        assert found.samples == 9
        assert len(index) == 0
        assert index.query(rows(2)).searched == 0
        index.add(rows(4, seed=1))
        assert calibration_of(index).digest == found.digest


def test_rows_of_an_index_that_takes_over_a_calibration_are_the_same_to_the_bit(
    tmp_path, model_dir, calibrated
):
    with made(tmp_path / "other", model_dir) as other:
        other.calibrate(calibrated.path)
        assert calibration_of(other).digest == calibration_of(calibrated).digest
        other.add(rows(20))
        for geometry in ("fisher", "kfac", "raw"):
            assert row_bytes(other, geometry) == row_bytes(calibrated, geometry)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dim": 65}, r"has another sketch \(--dim, --seed\)"),
        ({"seed": 1}, r"has another sketch \(--dim, --seed\)"),
        ({"geometry": "raw"}, "has another"),
        ({"damping": 0.5}, "has another --damping: 1.0"),
    ],
)
def test_the_calibration_of_an_index_made_otherwise_is_refused(
    tmp_path, model_dir, calibrated, settings, said
):
    with made(tmp_path / "other", model_dir, **settings) as other:
        with pytest.raises(SettingsMismatchError, match=said):
            other.calibrate(calibrated.path)
        assert calibration_of(other) is None


def test_the_calibration_of_an_index_of_another_model_is_refused(
    tmp_path, other_model_dir, calibrated
):
    with (
        made(tmp_path / "other", other_model_dir) as other,
        pytest.raises(SettingsMismatchError, match="weights digest"),
    ):
        other.calibrate(calibrated.path)


def test_an_index_that_is_not_calibrated_has_none_to_give(tmp_path, model_dir):
    with (
        made(tmp_path / "one", model_dir) as one,
        made(tmp_path / "other", model_dir) as other,
        pytest.raises(UsageError, match="is not calibrated yet; add samples to it first"),
    ):
        other.calibrate(one.path)


def test_an_add_that_stopped_after_it_calibrated_goes_on_with_that(tmp_path, model_dir, calibrated):
    """Other rows may be read first then; the rows are those of the first calibration."""
    with made(tmp_path / "other", model_dir) as other:
        shutil.copy(calibrated.path / "calibration.safetensors", other.path)
        other.add(rows(20)[::-1])
        assert calibration_of(other).digest == calibration_of(calibrated).digest


def test_an_index_from_before_there_were_calibrations_is_used_as_ever(tmp_path, model_dir):
    """Its rows are raw, and it stays without one."""
    with made(tmp_path / "ix", model_dir, geometry="raw") as index:
        prepared = [index.model.reader.prepare(to_sample(row)) for row in rows(12)]
        embedded = index.model.embedder().embed(prepared)
        samples = [one.sample for one in prepared]
        index.storage.append(
            index.storage.quantized(embedded.rows), samples, list(embedded.statistics)
        )
        first = index.query(rows(2, seed=2), top=5)
        assert index.storage.frozen.sketch_error("raw").scale == (1, 0)
        assert index.add(rows(20)).added == 8
        index.remove(["r3", "r15"])
        index.compact()
        assert index.check().findings == ()
        next((index.path / "segments").iterdir()).unlink()
        assert index.check(repair=True).sound
        assert calibration_of(index) is None
        again = index.query(rows(2, seed=2), top=20)
        scores = {hit.sample.key: hit.score for hit in again.helpful}
        for hit in first.helpful:
            if hit.sample.key != "r3":
                assert scores[hit.sample.key] == pytest.approx(hit.score, rel=1e-4)
        with pytest.raises(UsageError, match="has rows of raw"):
            index.query(rows(1), geometry="kfac")
        with pytest.raises(UsageError, match="the kfac geometry needs the calibration"):
            index.values(rows(1), geometry="kfac", exact=True)


def test_a_calibration_is_what_calibrate_gives(calibrated):
    """Of all samples, as there are few, in the order of the choice."""
    prepared = [calibrated.model.reader.prepare(to_sample(row)) for row in rows(20)]
    choice = CalibrationSample(0)
    for one in prepared:
        choice.offer(one)
    found = calibrate(
        calibrated.model.reader,
        calibrated.storage.frozen.hash_tables(),
        calibrated.manifest.settings,
        choice.samples(),
    )
    assert isinstance(found, Calibration)
    assert found.digest == calibration_of(calibrated).digest
