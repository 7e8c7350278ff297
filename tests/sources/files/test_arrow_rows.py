"""Parquet, Arrow and Feather from the libraries that write them; one cell costs no file."""

import datetime
import json

import datasets
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather, ipc
from reading import PAIRS, ROWS, bad, metadata, pairs, read

from forvalue_index.exceptions import SourceError
from forvalue_index.sources.source import open_sources

TABLE = pa.Table.from_pylist(ROWS)
NOT_UTF8 = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"], pa.binary()).buffers())


def write_ipc(path, table, **options):
    with ipc.new_file(path, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=1)


def write_stream(path, table):
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


WRITERS = {
    "pyarrow.arrow": lambda path: write_ipc(path, TABLE),
    "zstd.arrow": lambda path: write_ipc(
        path, TABLE, options=ipc.IpcWriteOptions(compression="zstd")
    ),
    "stream.arrow": lambda path: write_stream(path, TABLE),
    "polars.arrow": lambda path: polars.DataFrame(ROWS).write_ipc(path),
    "polars_stream.arrow": lambda path: polars.DataFrame(ROWS).write_ipc_stream(path),
    "pyarrow.feather": lambda path: feather.write_feather(TABLE, str(path)),
    "pandas.feather": lambda path: pandas.DataFrame(ROWS).to_feather(path),
    "pandas.parquet": lambda path: pandas.DataFrame(ROWS).to_parquet(path),
    "polars.parquet": lambda path: polars.DataFrame(ROWS).write_parquet(path),
    "datasets.parquet": lambda path: datasets.Dataset.from_list(ROWS).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_every_writer(tmp_path, name, capfd):
    path = tmp_path / name
    WRITERS[name](path)
    assert pairs(path) == PAIRS
    assert [row.position for row in read(path)] == [1, 2]
    assert [source.origin for source in open_sources(path)] == ["arrow"]


@pytest.mark.filterwarnings("ignore:Feather V1 files:DeprecationWarning")
def test_feather_of_the_first_version(tmp_path):
    feather.write_feather(TABLE, str(tmp_path / "d.feather"), version=1)
    assert pairs(tmp_path / "d.feather") == PAIRS


@pytest.mark.parametrize("name", ["pyarrow.arrow", "stream.arrow", "pyarrow.feather"])
def test_cut_files_are_one_line(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    content = path.read_bytes()
    for damaged in (content[:-90], content[: len(content) // 2], b"", b"ARROW1\0\0junk", b"junk"):
        path.write_bytes(damaged)
        with pytest.raises(SourceError) as error:
            read(path)
        assert str(error.value).startswith(f"{path} cannot be read: ")
        assert "\n" not in str(error.value)


def test_offsets_that_lead_out_of_a_file_are_damage(tmp_path):
    path = tmp_path / "d.arrow"
    write_stream(path, pa.table({"text": ["a" * 64, "b" * 64]}))
    content = bytearray(path.read_bytes())
    at = content.index((64).to_bytes(4, "little") + bytes(4))
    content[at : at + 4] = (2**30).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(SourceError, match="cannot be read"):
        read(path)


@pytest.fixture
def parquet(tmp_path):
    def write(table, **options):
        pq.write_table(table, tmp_path / "d.parquet", **options)
        return tmp_path / "d.parquet"

    return write


def counted(values, kind):
    return pa.array(values, pa.int64()).view(kind)


FAR = 9 * 10**18


def test_dates_past_the_range_of_python(parquet):
    """They ended `add` with a traceback."""
    columns = {
        "text": ["a", "b"],
        "day": pa.array([1, 10**8], pa.int32()).cast(pa.date32()),
        "later": pa.array([1, 3_700_000], pa.int32()).cast(pa.date32()),
        "time": counted([1, FAR], pa.timestamp("us")),
        "zone": counted([1, FAR], pa.timestamp("ms", "UTC")),
        "fine": counted([1, 2], pa.timestamp("ns")),
        "span": counted([1, FAR], pa.duration("s")),
    }
    assert metadata(parquet(pa.table(columns))) == [
        {
            "day": "1970-01-02",
            "later": "1970-01-02",
            "time": "1970-01-01T00:00:00.000001",
            "zone": "1970-01-01T00:00:00.001000+00:00",
            "fine": "1970-01-01T00:00:00.000000001",
            "span": "0:00:01",
        },
        {
            "day": "100000000 (date32[day])",
            "later": "12100-04-04",
            "time": f"{FAR} (timestamp[us])",
            "zone": f"{FAR} (timestamp[ms, tz=UTC])",
            "fine": "1970-01-01T00:00:00.000000002",
            "span": f"{FAR} (duration[s])",
        },
    ]


def test_a_cell_that_is_no_utf8_costs_its_row(parquet, tmp_path):
    told = "'text' holds a NUL or something that is not UTF-8; clean it"
    table = pa.table({"text": NOT_UTF8})
    assert bad(parquet(table)) == [f"d.parquet:2: {told}"]
    assert pairs(parquet(table)) == [("", "ok")]
    write_ipc(tmp_path / "d.arrow", table)
    assert bad(tmp_path / "d.arrow") == [f"d.arrow:2: {told}"]
    nested = pa.StructArray.from_arrays([NOT_UTF8], ["k"])
    beside = pa.table({"text": ["a", "b"], "m": NOT_UTF8, "s": nested})
    assert metadata(parquet(beside)) == [
        {"m": "ok", "s": {"k": "ok"}},
        {"m": "\ufffd", "s": {"k": "\ufffd"}},
    ]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.large_string(), "x", "x"),
        (pa.string_view(), "x", "x"),
        (pa.dictionary(pa.int8(), pa.string()), "x", "x"),
        (pa.large_binary(), b"\xff", "<1 bytes>"),
        (pa.binary_view(), b"x", "x"),
        (pa.binary(2), b"xy", "xy"),
        (pa.decimal128(10, 2), None, None),
        (pa.float16(), 1.5, 1.5),
        (pa.list_view(pa.int64()), [1], [1]),
        (pa.list_(pa.int64(), 1), [1], [1]),
        (pa.map_(pa.string(), pa.int64()), [("k", 1)], {"k": 1}),
        (pa.map_(pa.int64(), pa.int64()), [(7, 1)], {"7": 1}),
        (pa.map_(pa.string(), pa.int64()), [("k", 1), ("k", 2)], [["k", 1], ["k", 2]]),
        (pa.struct([("a", pa.list_(pa.struct([("b", pa.int8())])))]), {"a": [{"b": 1}]}, None),
        (pa.time64("us"), datetime.time(1, 2, 3), "01:02:03"),
        (pa.duration("us"), datetime.timedelta(days=1), "1 day, 0:00:00"),
        (pa.month_day_nano_interval(), (1, 2, 3), [1, 2, 3]),
        (pa.json_(), '{"a": [1]}', {"a": [1]}),
        (pa.json_(), "no json", "no json"),
        (pa.null(), None, None),
    ],
    ids=str,
)
def test_every_type_becomes_metadata(tmp_path, kind, value, expected):
    if isinstance(kind, pa.BaseExtensionType):
        cells = pa.ExtensionArray.from_storage(kind, pa.array([value], kind.storage_type))
    else:
        cells = pa.array([value], kind)
    write_ipc(tmp_path / "d.arrow", pa.table({"text": ["T"], "m": cells}))
    wanted = value if expected is None else expected
    assert metadata(tmp_path / "d.arrow") == [{"m": wanted}]


def test_a_name_twice_is_refused(parquet):
    columns = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    with pytest.raises(SourceError, match="the name 'text' comes twice in the columns; rename"):
        read(parquet(columns))
    fields = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["k", "k"])
    with pytest.raises(SourceError, match="the name 'k' comes twice in 'm'; rename one"):
        read(parquet(pa.table({"text": ["T"], "m": fields})))


def test_conversations_of_maps(parquet):
    turns = [[[("role", "user"), ("content", "q")], [("role", "assistant"), ("content", "a")]]]
    kind = pa.list_(pa.map_(pa.string(), pa.string()))
    assert pairs(parquet(pa.table({"messages": pa.array(turns, kind)}))) == [("q", "a")]


FEATURES = datasets.Features(
    {
        "messages": datasets.List(datasets.Json()),
        "m": datasets.Json(),
        "s": {"x": datasets.Json()},
    }
)
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
MIXED = {"messages": TURNS, "m": {"a": [1, None]}, "s": {"x": [1]}}


def test_json_features_are_objects_wherever_they_come_from(tmp_path, capfd):
    data = datasets.Dataset.from_list([MIXED], features=FEATURES)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "d.parquet")
    table = pq.read_table(tmp_path / "d.parquet")
    as_text = pa.schema(
        [
            ("messages", pa.list_(pa.string())),
            ("m", pa.string()),
            ("s", pa.struct([("x", pa.string())])),
        ],
        metadata=table.schema.metadata,
    )
    text = [
        {"messages": [json.dumps(t) for t in TURNS], "m": '{"a": [1, null]}', "s": {"x": "[1]"}}
    ]
    pq.write_table(pa.Table.from_pylist(text, as_text), tmp_path / "text.parquet")
    places = (tmp_path / "saved", tmp_path / "d.parquet", tmp_path / "text.parquet")
    for place in (*places, data, data.to_iterable_dataset(), table):
        assert pairs(place) == [("q", "a")]
        assert metadata(place) == [{"m": {"a": [1, None]}, "s": {"x": [1]}}]
