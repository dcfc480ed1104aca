"""Every format reads into the same table, and every bad line is named."""

import datetime
import json

import polars as pl
import pytest

from blossom_jax.data.column_formats import UNNAMED, Columns
from blossom_jax.data.formats import FORMATS, guess_format, scan_table
from blossom_jax.data.prepare import from_table
from blossom_jax.errors import UserError

NAMED = Columns("u", "i", "t")
ROWS = [("a", "x", 10), ("a", "y", 30), ("b", "x", 20)]
YELP = [{"user_id": u, "business_id": i, "date": f"1970-01-01 00:00:{t}"} for u, i, t in ROWS]
GOOD = {
    "user_item": ("a x\na\ty\n\n  b   x\n", UNNAMED),
    "user_items": ("a x y\nb x\n", UNNAMED),
    "user_item_time": ("a x 10\na y 30.0\nb x 20\n", UNNAMED),
    "checkins": (
        "a\t1970-01-01T00:00:10Z\t1.5\t-2\tx\na\t1970-01-01T00:00:30Z\t1.5\t-2\ty\n"
        "b\t1970-01-01T00:00:20Z\t1.5\t-2\tx\n",
        UNNAMED,
    ),
    "ratings_dat": ("a::x::5::10\na::y::3::30\nb::x::4::20\n", UNNAMED),
    "inter": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "a\tx\t3\t10\na\ty\t3\t30.0\nb\tx\t4\t20\n",
        UNNAMED,
    ),
    "csv": ('t,note,u,i\r\n10,"one, two",a,x\r\n30,,a,y\r\n20,"line\nbreak",b,x\r\n\r\n', NAMED),
    "tsv": ("u\ti\tt\na\tx\t10\na\ty\t30\nb\tx\t20\n", NAMED),
    "yelp_json": ("\n\n".join(json.dumps({"stars": 5.0, **row}) for row in YELP), UNNAMED),
}


def read_table(*arguments):
    """Reads all of a log, with its times in seconds."""
    table = scan_table(*arguments).collect()
    if "time" not in table.columns:
        return table
    return table.with_columns(pl.col("time").dt.epoch("us").floordiv(1_000_000))


def _write(folder, text, name="log.txt"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_format_has_a_good_case():
    assert {*GOOD, "parquet"} == set(FORMATS)


@pytest.mark.parametrize("format", GOOD)
def test_good_file(tmp_path, format):
    text, columns = GOOD[format]
    table = read_table(_write(tmp_path, text), format, columns)
    timed = format not in ("user_item", "user_items")
    assert table.rows() == [row[: 2 + timed] for row in ROWS]
    assert table.dtypes == [pl.String, pl.String, pl.Int64][: 2 + timed]


@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
def test_parquet_with_typed_columns(tmp_path, zone):
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    times = pl.Series([start + datetime.timedelta(seconds=s) for _, _, s in ROWS])
    times = times.dt.convert_time_zone(zone) if zone else times.dt.replace_time_zone(None)
    frame = pl.DataFrame({"u": [1, 1, 2], "i": [7, 8, 7], "t": times, "rest": 0.5})
    path = tmp_path / "log.parquet"
    frame.write_parquet(path)
    table = read_table(path, "parquet", NAMED)
    assert table.rows() == [("1", "7", 10), ("1", "8", 30), ("2", "7", 20)]
    frame.with_columns(i=pl.Series([7, None, 7])).write_parquet(path)
    with pytest.raises(UserError, match=r"log\.parquet row 2: the item is missing"):
        read_table(path, "parquet", NAMED)
    frame.with_columns(i=pl.Series([[7], [8], [9]])).write_parquet(path)
    with pytest.raises(UserError, match=r"the column 'i' holds List\(Int64\), not one value"):
        read_table(path, "parquet", NAMED)


def test_time_column_is_optional(tmp_path):
    path = _write(tmp_path, GOOD["csv"][0])
    assert read_table(path, "csv", Columns("u", "i")).columns == ["user", "item"]
    path = _write(tmp_path, "user_id:token\titem_id:token\na\tx\n")
    assert read_table(path, "inter").columns == ["user", "item"]


def test_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    path = _write(tmp_path, "\ufeffu,i\na,x\n")
    assert read_table(path, "csv", Columns("u", "i")).rows() == [("a", "x")]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1287503727", 1287503727),
        ("1287503727.0", 1287503727),
        ("-5", -5),
        ("1592678549731", 1592678549),
        ("1592678549731000", 1592678549),
        ("1592678549731000000", 1592678549),
        ("1970-01-02", 86400),
        ("1970-01-02T00:00:01Z", 86401),
        ("1970-01-02 00:00:01", 86401),
        ("1970-01-02T00:00:01+01:00", 82801),
        ("1969-12-31T23:59:59.5Z", -1),
        ("1970/01/02", 86400),
        ("1970-01-02T00:01", 86460),
        ("1970-01-02 01:00:00+0100", 86400),
    ],
)
def test_times(tmp_path, written, seconds):
    path = _write(tmp_path, f"u,i,t\na,x,{written}\n")
    assert read_table(path, "csv", NAMED)["time"].to_list() == [seconds]


def test_each_time_may_be_written_in_its_own_way(tmp_path):
    path = _write(tmp_path, "u,i,t\na,x,1970-01-02\na,y,1970-01-02T00:00:01Z\na,z,86402\n")
    assert read_table(path, "csv", NAMED)["time"].to_list() == [86400, 86401, 86402]


def test_fractions_of_a_second_keep_their_order(tmp_path):
    path = _write(tmp_path, "a late 5.9\na early 5.1\na first 4.0\na tie 5.1\n")
    log = from_table(scan_table(path, "user_item_time"), name="small")
    assert log.item_ids[log.items - 1].tolist() == ["first", "early", "tie", "late"]
    assert log.times.tolist() == [4, 5, 5, 5]


@pytest.mark.parametrize(
    ("format", "text", "words"),
    [
        ("user_item", "1 2\n\n1 2 3\n", [":3: ", '"user item"', "'1 2 3'"]),
        ("user_item", b"1 2\n\xe9 2\n", [":2: ", "UTF-8"]),
        ("user_items", "1 2 3\n4\n", [":2: ", "'4'"]),
        ("user_item_time", "1 2 3\n1 2 noon\n", [":2: ", "'noon'"]),
        ("user_item_time", "1 2 3\n1 2 nan\n", [":2: ", "'nan'"]),
        ("ratings_dat", "1::2::3::4\n1::2::3\n", [":2: ", "'1::2::3'"]),
        ("ratings_dat", "1::2::3::4\n1::::3::4\n", [":2: ", "the item is missing"]),
        ("checkins", "1 2010-13-40T00:00:00Z 0 0 9\n", [":1: ", "'2010-13-40T00:00:00Z'"]),
        ("csv", "u,i,t\na,x,1\n\na,x,1,9\n", [":4: ", "expected 3 fields", "found 4"]),
        ("csv", "u,i,t\na,x,1\n\na,x\n", [":4: ", "the time is missing"]),
        ("csv", 'u,i,t\n"two\nlines",x,1\na,x,soon\n', [":4: ", "'soon'"]),
        ("csv", "u,i,t\na,x,12/01/2019\na,x,01/02/2020\n", [":2: ", "'12/01/2019'"]),
        ("csv", "u,i,t\n  ,x,1\n", [":2: ", "the user is missing"]),
        ("csv", "u,item,time\na,x,1\n", ["no column 'i'", "it has: u, item, time"]),
        ("csv", "u;i;t\na;x;1\n", ["it has: u;i;t (they seem to be separated by ';': commas"]),
        ("csv", "u\ti\tt\na\tx\t1\n", ["separated by '\\t': --format=tsv will do"]),
        ("csv", b"u,i,t\n\xe9,x,1\n", [":2: ", "UTF-8"]),
        ("csv", "u,i,t\n", ["holds no interactions"]),
        ("csv", "", ["is empty"]),
        ("csv", 'u,i,t\na,x,1\na,"x"y,2\na,x,3\n', [":3: ", "a quote is out of place"]),
        ("csv", 'u,i,t\na,x,1\n"a,x,2\na,x,3\n', [":3: ", "a quote is out of place"]),
        ("yelp_json", json.dumps(YELP[0]) + '\n\n["b"\n', [":3: ", "JSON"]),
        ("yelp_json", '["b"\n', [":1: ", "JSON"]),
        ("yelp_json", '{"user_id": "a", "n": 1}\n', ["no column 'business_id'", "has: user_id, n"]),
        ("yelp_json", json.dumps(YELP[0]) + '\n\n{"user_id": "a"}\n', [":3: ", "the item"]),
        ("parquet", "not parquet at all", ["cannot be read as parquet"]),
        ("user_item", "", ["holds no interactions"]),
        ("xml", "<log/>", ["format='xml'", "user_items"]),
    ],
)
def test_bad_file_names_file_and_line(tmp_path, format, text, words):
    path = _write(tmp_path, text)
    columns = NAMED if format in ("csv", "parquet") else UNNAMED
    with pytest.raises(UserError) as error:
        read_table(path, format, columns)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert str(path) in message or format == "xml"
    assert "\n" not in message


def test_columns_must_be_named_and_only_where_there_are_names(tmp_path):
    with pytest.raises(UserError, match="name the user and the item column; it has: u, i"):
        read_table(_write(tmp_path, "u,i\na,x\n"), "csv")
    with pytest.raises(UserError, match="no named columns"):
        read_table(_write(tmp_path, "a x\n"), "user_item", NAMED)


def test_absent_file(tmp_path):
    with pytest.raises(UserError, match="absent.csv: there is no such file"):
        read_table(tmp_path / "absent.csv", "csv", NAMED)


def test_guess_format():
    assert guess_format("a/log.csv") == "csv"
    assert guess_format("ratings.dat") == "ratings_dat"
    with pytest.raises(UserError, match=r"log\.txt: the format is not clear"):
        guess_format("log.txt")
