"""Data sets: every format gives the same items, and every defect a message with file and line."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tempfile
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import DataError, UsageError
from producer.datasets import DataSet, Row, open_dataset, valid_items, validate
from producer.datasets.rows import MAX_ROW_BYTES
from schemas.items import MAX_ITEM_BYTES, Item, Kind, Label
from schemas.runs import InvalidRow

LIBRA = {
    "id": 7,
    "question": "怎么做？",
    "response": "这样做。",
    "label": "不安全",
    "source": "Real Data",
    "category_name": "违法犯罪",
    "sub_category_name": "网络犯罪",
    "analyze": "…",
}
LIBRA_ITEM = Item(
    id="7",
    question="怎么做？",
    response="这样做。",
    truth=Label.UNSAFE,
    source="Real Data",
    category="违法犯罪",
    subcategory="网络犯罪",
)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def plain(count: int) -> str:
    return lines(*({"id": str(n), "response": f"text {n}"} for n in range(count)))


def write_parquet(path: Path, rows: list[dict[str, Any]], **columns: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows) if rows else pyarrow.table(columns), path)
    return path


def read(source: Path | str, **options: Any) -> list[Row | InvalidRow]:
    with open_dataset(str(source), **options) as dataset:
        return list(dataset.rows())


def ids(source: Path | str, **options: Any) -> list[str]:
    return [row.item.id for row in read(source, **options) if isinstance(row, Row)]


def one_row(tmp_path: Path, line: str | bytes) -> Row | InvalidRow:
    (row,) = read(write(tmp_path / "x.jsonl", line))
    return row


def problem(tmp_path: Path, line: str | bytes) -> str:
    row = one_row(tmp_path, line)
    assert isinstance(row, InvalidRow)
    assert row.where == "x.jsonl:1"
    return row.problem


def item(tmp_path: Path, **row: Any) -> Item:
    found = one_row(tmp_path, lines(row))
    assert isinstance(found, Row), found
    return found.item


def refusal(source: Path | str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(source, **options)
    return str(caught.value)


# The formats


def test_a_libra_record_becomes_an_item(tmp_path: Path) -> None:
    assert one_row(tmp_path, lines(LIBRA)) == Row("x.jsonl:1", LIBRA_ITEM)


def test_jsonl_names_lines_and_skips_blank_ones(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", '\n{"response": "a"}\r\n  \n{"response": "b"}')
    assert [row.where for row in read(source)] == ["x.jsonl:2", "x.jsonl:4"]


def test_an_array_names_elements_and_lines(tmp_path: Path) -> None:
    source = write(tmp_path / "x.json", '[\n {"response":\n  "a"},\n\n {"response": "b"}, 3]\n')
    assert [row.where for row in read(source)] == [
        "x.json: element 1 (line 2)",
        "x.json: element 2 (line 5)",
        "x.json: element 3 (line 5)",
    ]


def test_an_array_longer_than_the_buffers_keeps_its_elements_and_line_numbers(tmp_path: Path) -> None:
    rows = [{"response": "长" * (n * 37 % 5000 + 1)} for n in range(300)]
    found = read(write(tmp_path / "x.json", json.dumps(rows, indent=1, ensure_ascii=False)))
    assert [row.item.response for row in found if isinstance(row, Row)] == [row["response"] for row in rows]
    assert found[-1].where == f"x.json: element 300 (line {299 * 3 + 2})"


def test_an_element_that_is_a_number_is_not_cut_in_two_by_a_buffer(tmp_path: Path) -> None:
    digits = "1" * 9
    found = read(write(tmp_path / "x.json", "[" + ",".join([digits] * 20_000) + "]"))
    assert len(found) == 20_000


def test_an_element_of_many_buffers_is_read_whole(tmp_path: Path) -> None:
    (row,) = read(write(tmp_path / "x.json", json.dumps([{"response": "x" * 300_000}])))
    assert isinstance(row, Row)
    assert len(row.item.response) == 300_000


def test_parquet_names_rows_and_ignores_other_columns(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "x.parquet", [{**LIBRA, "mine": [1, 2]}, {**LIBRA, "id": 8, "response": " "}])
    first, second = read(source)
    assert first == Row("x.parquet: row 1", LIBRA_ITEM)
    assert isinstance(second, InvalidRow)
    assert (second.where, second.problem) == ("x.parquet: row 2", "response: the text to judge is empty")


def test_parquet_rows_are_counted_across_batches(tmp_path: Path) -> None:
    found = read(write_parquet(tmp_path / "x.parquet", [{"text": str(n)} for n in range(1000)]))
    assert found[-1].where == "x.parquet: row 1000"


def test_json_with_an_object_a_line_is_read_as_jsonl(tmp_path: Path) -> None:
    assert ids(write(tmp_path / "x.json", plain(2))) == ["0", "1"]


def test_gzipped_files_are_read_in_both_formats(tmp_path: Path) -> None:
    write(tmp_path / "a.json.gz", gzip.compress(b'[{"id": "a", "response": "x"}]'))
    write(tmp_path / "b.jsonl.gz", gzip.compress(b'{"id": "b", "response": "x"}'))
    assert ids(tmp_path) == ["a", "b"]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    write(tmp_path / "a.json", mark + b'[{"id": "a", "response": "x"}]')
    write(tmp_path / "b.jsonl", mark + b'{"id": "b", "response": "x"}')
    write(tmp_path / "c.json", mark + b'{"id": "c", "response": "x"}')
    assert ids(tmp_path) == ["a", "b", "c"]


def test_a_folder_is_read_in_order_without_what_is_hidden_or_of_another_kind(tmp_path: Path) -> None:
    names = ("b.jsonl", "a/z.json", ".hidden/x.jsonl", ".y.jsonl", "notes.txt", "dataset_infos.json", "c.ndjson")
    for name in names:
        write(tmp_path / name, json.dumps({"id": name, "response": "x"}))
    assert ids(tmp_path) == ["a/z.json", "b.jsonl", "c.ndjson"]
    assert [row.where for row in read(tmp_path)] == ["a/z.json:1", "b.jsonl:1", "c.ndjson:1"]


def test_an_empty_file_beside_others_is_no_defect(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "")
    write(tmp_path / "b.jsonl", plain(1))
    assert ids(tmp_path) == ["0"]


@pytest.mark.parametrize(
    "content", ['{"response": "a"}\n{"response": "b"}\n', '[{"response": "a"}, {"response": "b"}]']
)
def test_stdin_is_sniffed_and_can_be_read_twice(content: str, tmp_path: Path) -> None:
    with open_dataset("-", stdin=io.BytesIO(content.encode()), spool_dir=tmp_path) as dataset:
        assert dataset.name == "-"
        first = list(dataset.rows())
        assert [row.item.response for row in first if isinstance(row, Row)] == ["a", "b"]
        assert first[0].where.startswith("stdin:")
        assert list(dataset.rows()) == first
    assert not list(tmp_path.iterdir())


def test_stdin_that_fails_leaves_no_copy_behind(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:  # noqa: ARG002 (the signature of files)
            raise OSError(5, "Input/output error")

    with pytest.raises(DataError, match="Input/output error"):
        open_dataset("-", stdin=Broken(), spool_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pipe_is_copied_because_it_is_read_twice(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, plain(3).encode())
    os.close(writer)
    try:
        with open_dataset(f"/dev/fd/{reader}") as dataset:
            assert [len(list(dataset.rows())) for _ in range(2)] == [3, 3]
    finally:
        os.close(reader)


# The hub and the demo


def test_a_hub_data_set_is_downloaded_and_read_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    write(tmp_path / "data" / "test.json", json.dumps([LIBRA]))
    asked: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert ids("caskcsg/Libra-Test") == ["7"]
    assert asked["repo_id"] == "caskcsg/Libra-Test"
    assert asked["repo_type"] == "dataset"


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def snapshot_download(*_: Any, **__: Any) -> str:
        raise ConnectionError("\nno route to the hub\nmore about it")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert refusal("owner/name") == (
        "owner/name: no such file or folder here, and the hub did not give it: ConnectionError: no route to the hub"
    )


@pytest.mark.parametrize(
    ("module", "source", "extra"), [("huggingface_hub", "owner/name", "hub"), ("pyarrow", "x.parquet", "parquet")]
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    module: str, source: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "x.parquet", b"PAR1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    assert f"pip install 'libra-fleet[{extra}]'" in refusal(source)


def test_the_demo_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.datasets.sources._DEMO", write(tmp_path / "demo.jsonl", lines(LIBRA)))
    assert ids("demo") == ["7"]


# Rows under other names


@pytest.mark.parametrize("name", ["response", "text", "content", "answer"])
def test_the_text_goes_by_its_usual_names(name: str, tmp_path: Path) -> None:
    assert item(tmp_path, id="a", **{name: "t"}) == Item(id="a", response="t")


def test_a_row_can_say_that_its_text_is_a_models_response(tmp_path: Path) -> None:
    said = Item(id="a", response="t", kind=Kind.RESPONSE)
    assert item(tmp_path, id="a", response="t", kind="response") == said
    assert item(tmp_path, id="a", response="t", kind="a column of the user's own") == Item(id="a", response="t")


@pytest.mark.parametrize("name", ["question", "prompt", "query", "instruction"])
@pytest.mark.parametrize("rest", [{}, {"response": None}, {"response": ""}])
def test_a_question_without_an_answer_is_a_prompt(name: str, rest: dict[str, object], tmp_path: Path) -> None:
    assert item(tmp_path, id="a", **{name: "q"}, **rest) == Item(id="a", question="q", kind=Kind.PROMPT)


def test_a_row_of_messages_is_a_conversation_and_says_what_cannot_be_judged(tmp_path: Path) -> None:
    said = [("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": content} for role, content in said]
    found = item(tmp_path, id="a", messages=messages, label="unsafe")

    assert (found.kind, found.question, found.response, found.truth) == (Kind.MESSAGES, "c", "", Label.UNSAFE)
    assert found.dialogue.messages == messages
    assert item(tmp_path, id="a", messages=messages[:1]).kind is Kind.PROMPT
    assert item(tmp_path, id="a", messages=messages[:2]) == Item(id="a", question="a", response="b")
    assert item(tmp_path, id="a", messages=messages[1:2]).kind is Kind.RESPONSE
    tool = json.dumps({"messages": [*messages, {"role": "tool", "content": "42"}]})
    assert (
        problem(tmp_path, tool) == "messages: message 3: the role tool is a tool's output, which no guard here judges"
    )


@pytest.mark.parametrize("name", ["question", "prompt", "query", "instruction"])
def test_the_question_goes_by_its_usual_names(name: str, tmp_path: Path) -> None:
    assert item(tmp_path, id="a", answer="t", **{name: "q"}) == Item(id="a", question="q", response="t")


def test_our_own_items_dumped_as_json_read_back(tmp_path: Path) -> None:
    assert item(tmp_path, **LIBRA_ITEM.model_dump(mode="json")) == LIBRA_ITEM


def test_the_libra_name_wins_over_another(tmp_path: Path) -> None:
    assert item(tmp_path, response="a", text="b", question="c", prompt="d").response == "a"


def test_two_names_that_could_each_be_the_text_are_ambiguous(tmp_path: Path) -> None:
    assert problem(tmp_path, '{"text": "a", "answer": "b"}') == (
        "text and answer could each be the response; name one of them response"
    )


def test_a_row_without_text_says_what_was_found(tmp_path: Path) -> None:
    assert problem(tmp_path, '{"written": "b", "n": 1}') == (
        "no text to judge: no column has a name that is known for one; found 'written', 'n'"
    )
    assert "found no keys at all" in problem(tmp_path, "{}")


def test_rows_without_id_get_one_from_file_and_place(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "x"}\n\n{"text": "x"}')
    write(tmp_path / "sub" / "a.json", '[{"text": "x"}, {"text": "x", "id": "mine"}, {"text": "x", "id": null}]')
    assert ids(tmp_path) == ["a-1", "a-3", "sub/a-1", "mine", "sub/a-3"]


def test_ids_made_for_files_of_one_stem_differ(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        write(tmp_path / name, '{"text": "x"}')
    assert ids(tmp_path) == ["a.json-1", "a.jsonl-1"]


def test_a_long_file_name_still_makes_an_id(tmp_path: Path) -> None:
    (name,) = ids(write(tmp_path / ("长" * 80 + "/" + "n" * 200 + ".jsonl"), '{"text": "x"}').parent)
    assert len(name) <= 200


# Rows that are no items


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            '{"response": "a", "label": "bad"}',
            "label: unknown label 'bad'; expected 安全, 不安全, safe, unsafe or none",
        ),
        ('{"response": "a", "label": 1}', "label: 1 says neither safe nor unsafe; write 安全, 不安全, safe or unsafe"),
        ('{"text": 1}', "text: Input should be a valid string"),
        ('{"response": ""}', "response: the text to judge is empty"),
        ('{"response": " \\n"}', "response: the text to judge is empty"),
        ('{"response": "a\\u0000"}', "response: contains a NUL character"),
        ('{"id": "a\\u0000", "response": "a"}', "id: contains a NUL character"),
        ('{"id": "", "response": "a"}', "id: String should have at least 1 character"),
        ('{"id": 1.5, "response": "a"}', "id: Input should be a valid string"),
        ("[1]", "a JSON object is expected, not an array"),
        ("null", "a JSON object is expected, not null"),
        ("true", "a JSON object is expected, not true or false"),
        ('"text"', "a JSON object is expected, not a string"),
        ('{"response": "a"', "broken JSON: EOF while parsing an object at column 16"),
        ('{"response": "\\ud800"}', "broken JSON: unexpected end of hex escape at column 21"),
        ("[" * 100_000, "broken JSON: recursion limit exceeded at column"),
        ('{"response": "a", "n": ' + "1" * 5000 + "}", "broken JSON: number out of range at column"),
        ("nonsense", "broken JSON: expected ident at column 2"),
    ],
)
def test_a_row_that_is_no_item_says_why(line: str, expected: str, tmp_path: Path) -> None:
    assert expected in problem(tmp_path, line)


def test_a_lone_surrogate_in_an_array_spoils_its_row_only(tmp_path: Path) -> None:
    source = write(tmp_path / "x.json", '[{"response": "\\ud800"}, {"id": "\\ud800", "text": "a"}, {"text": "b"}]')
    found = read(source)
    assert [isinstance(row, Row) for row in found] == [False, False, True]


def test_text_over_the_limit_is_refused_in_one_field_and_in_sum(tmp_path: Path) -> None:
    half = "x" * (MAX_ITEM_BYTES // 2 + 1)
    assert "question and response: 524,290 bytes long; the limit is 524,288" in problem(
        tmp_path, lines({"question": half, "response": half})
    )
    assert "response: 524,289 bytes long" in problem(tmp_path, lines({"response": "x" * (MAX_ITEM_BYTES + 1)}))
    assert item(tmp_path, response="x" * MAX_ITEM_BYTES).text_bytes == MAX_ITEM_BYTES


def test_a_line_that_is_not_utf_8_names_the_byte(tmp_path: Path) -> None:
    assert problem(tmp_path, b'{"text": "' + "安全".encode("gb18030") + b'"}') == (
        "not UTF-8 (byte 0xb0 at column 11); save the file as UTF-8"
    )


def test_a_line_over_the_limit_is_passed_over_and_the_next_one_read(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", b'{"text": "' + b"x" * (8 * MAX_ROW_BYTES) + b'"}\n{"text": "a"}\n')
    tracemalloc.start()
    first, second = read(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(first, InvalidRow)
    assert (first.where, first.problem) == ("x.jsonl:1", "a line of more than 4,194,304 bytes")
    assert isinstance(second, Row)
    assert second.where == "x.jsonl:2"
    assert peak < 4 * MAX_ROW_BYTES


def test_what_a_problem_quotes_stays_short_and_printable(tmp_path: Path) -> None:
    assert len(problem(tmp_path, lines({"text": "a", "label": "x" + "\n" * 100_000 + "x"}))) < 2000
    row = one_row(tmp_path, json.dumps({"\ud83d\ude00\x1b[0m" * 1000: 1}))
    assert isinstance(row, InvalidRow)
    assert row.problem.isprintable()


def test_nan_and_repeated_keys_are_no_defect(tmp_path: Path) -> None:
    found = one_row(tmp_path, '{"text": "a", "n": NaN, "m": -Infinity, "text": "b"}')
    assert isinstance(found, Row)
    assert found.item.response == "b"


# Files that cannot be read as a whole


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"text": "a"},\n{"text": "b"}', "x.json:2: the file ends within the array, after element 2"),
        ('[{"text": "a"},\n{"text": "b', "x.json:2: the file ends within element 2"),
        ('[{"text": "a"},\n', "x.json:2: the file ends within element 2"),
        ("[", "x.json:1: the file ends within element 1"),
        ('[{"text": "a"},]', "x.json:1: a comma before the closing bracket"),
        ('[{"text": "a"}\n{"text": "b"}]', "x.json:2: a comma or the closing bracket is expected after element 1"),
        ('[{"text": "a"}]\n[]', "x.json:2: there is more text after the end of the array"),
        ('[{"text": "a"},\n{"text":\ntru}]', "x.json:3: element 2 is broken JSON: Expecting value"),
        ("[" * 100_000, "x.json:1: element 1: maximum recursion depth exceeded"),
        (b'[{"text": "a"},\n\n{"text": "\xff"}]', "x.json:3: not UTF-8 (invalid start byte); save the file as UTF-8"),
        (b'[{"text": "\xe5', "x.json:1: not UTF-8 (unexpected end of data)"),
        ('{\n "text": "a"\n', "x.json:3: the file ends in an object"),
        ('[{"text": "' + "x" * 2 * MAX_ROW_BYTES + '"}]', "x.json:1: element 1 is longer than 4,194,304 characters"),
        ("[" + "1" * 5000 + "]", "x.json:1: element 1: Exceeds the limit"),
        ("[]", "x.json: empty, there is no row in it"),
        ("", "x.json: empty, there is no row in it"),
        (" \n" * 200_000, "x.json: empty, there is no row in it"),
        (b"PK\x03\x04", "x.json: a zip archive or a workbook; its name should end in .zip or .xlsx"),
        (b"\x1f\x8b", "x.json: cannot be read (at its start): "),
        (gzip.compress(random.Random(0).randbytes(300_000))[:-200_000], "x.json: cannot be read (at its start): "),
        (b"PAR1", "x.json: not readable as Parquet: "),
    ],
)
def test_a_broken_file_says_where(content: str | bytes, expected: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "x.json", content))
    assert expected in message
    assert len(message) < 1000


@pytest.mark.slow
def test_a_file_cut_short_in_its_middle_names_the_last_good_row(tmp_path: Path) -> None:
    zipped = gzip.compress(lines(*({"text": f"{n * 7919 % 10007}"} for n in range(100_000))).encode())
    assert "x.jsonl.gz: cannot be read (after x.jsonl.gz:" in refusal(write(tmp_path / "x.jsonl.gz", zipped[:-5000]))


def test_parquet_without_a_text_column_lists_what_it_has(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "x.parquet", [{"written": "a", "n": 1}])
    assert refusal(source) == (
        "x.parquet: no column has a name that is known for a text; found written, n. "
        "Name it: --field response=COLUMN, or prompt=COLUMN (docs/data-formats.md)"
    )


def test_text_that_is_called_parquet_is_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "x.parquet", plain(1))) == "x.parquet: not a Parquet file"


def test_a_parquet_cell_that_is_not_utf_8_spoils_its_row_only(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    column = pyarrow.array([b"a", b"\xff", b"b"], pyarrow.binary()).view(pyarrow.string())
    found = read(write_parquet(tmp_path / "x.parquet", [], text=column))
    assert [isinstance(row, Row) for row in found] == [True, False, True]


@pytest.mark.parametrize(
    "source", ["missing.jsonl", "a/missing.jsonl", "./missing", "/missing", "bad\0name", "x" * 5000]
)
def test_a_missing_source_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(source).startswith(source + ": ")


def test_a_file_of_unknown_kind_is_told_which_are_known(tmp_path: Path) -> None:
    said = refusal(write(tmp_path / "x.docx", "a,b"))
    assert "unknown kind of file; .json, .jsonl, .ndjson, .csv, .tsv, .xlsx, .parquet, .arrow are read" in said
    assert "save it as .xlsx" in refusal(write(tmp_path / "x.xls", "a,b"))


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt", "x")
    assert f"{tmp_path}: a folder without data" in refusal(tmp_path)


def test_a_dangling_link_in_a_folder_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", plain(1))
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    assert "No such file" in refusal(tmp_path)


def test_a_file_one_may_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "x.jsonl", plain(1))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(source) == "x.jsonl: cannot be read (at its start): Permission denied"


def test_a_file_that_changes_between_two_passes_is_noticed(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", plain(2))
    with open_dataset(str(source)) as dataset:
        validation = validate(dataset)
        write(source, plain(3))
        with pytest.raises(DataError, match=r"x\.jsonl: changed since"):
            list(valid_items(dataset, validation))


# Which rows


def test_shards_partition_the_set(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", plain(10))
    shards = [ids(source, shard=(index, 3)) for index in range(3)]
    assert shards[1] == ["1", "4", "7"]
    assert sorted(name for shard in shards for name in shard) == ids(source)


def test_a_shard_without_rows_is_empty_but_no_defect(tmp_path: Path) -> None:
    assert read(write(tmp_path / "x.jsonl", plain(2)), shard=(2, 3)) == []


def test_a_limit_counts_after_sharding(tmp_path: Path) -> None:
    assert ids(write(tmp_path / "x.jsonl", plain(10)), shard=(1, 2), limit=2) == ["1", "3"]


def test_a_seed_draws_the_same_sample_each_time_and_in_order(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", plain(1000))
    with open_dataset(str(source), limit=50, shuffle_seed=3) as dataset:
        first = list(dataset.rows())
        assert list(dataset.rows()) == first
    drawn = [int(name) for name in ids(source, limit=50, shuffle_seed=3)]
    assert len(drawn) == 50
    assert drawn == sorted(set(drawn))
    assert drawn != [int(name) for name in ids(source, limit=50, shuffle_seed=4)]
    assert max(drawn) > 800


def test_a_sample_larger_than_the_set_is_the_set(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", plain(5))
    assert ids(source, limit=9, shuffle_seed=1) == ids(source)


def test_a_seed_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", plain(5))
    assert ids(source, shuffle_seed=1) == ids(source)


@pytest.mark.parametrize("options", [{"shard": (2, 2)}, {"shard": (-1, 2)}, {"shard": (0, 0)}, {"limit": 0}])
def test_an_impossible_choice_is_a_usage_error(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        open_dataset("demo", **options)


# Validation


def test_validation_counts_and_the_valid_items_are_what_is_left(tmp_path: Path) -> None:
    source = write(
        tmp_path / "x.jsonl",
        lines(
            {"id": "a", "text": "安全", "label": "安全"},
            {"id": "b", "text": ""},
            {"id": "a", "text": "other", "label": "unsafe"},
            {"id": "c", "text": "xy"},
            {"id": "a", "text": "again"},
        ),
    )
    progress: list[int] = []
    with open_dataset(str(source)) as dataset:
        validation = validate(dataset, on_progress=progress.append)
        left = [row.where for row in valid_items(dataset, validation)]
    assert (validation.valid, validation.invalid_count, validation.labelled, validation.text_bytes) == (2, 3, 1, 8)
    assert [(row.where, row.problem) for row in validation.invalid] == [
        ("x.jsonl:2", "text: the text to judge is empty"),
        ("x.jsonl:3", "duplicate id 'a', first at x.jsonl:1"),
        ("x.jsonl:5", "duplicate id 'a', first at x.jsonl:1"),
    ]
    assert left == ["x.jsonl:1", "x.jsonl:4"]
    assert progress == [5]


def test_an_id_counts_as_the_same_whether_number_or_text(tmp_path: Path) -> None:
    with open_dataset(
        str(write(tmp_path / "x.jsonl", lines({"id": 1, "text": "a"}, {"id": "1", "text": "b"})))
    ) as data:
        assert validate(data).invalid_count == 1


def test_a_duplicate_in_another_shard_is_none_in_this_one(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", lines({"id": "a", "text": "1"}, {"id": "a", "text": "2"}))
    with open_dataset(str(source), shard=(1, 2)) as dataset:
        assert validate(dataset).valid == 1


def test_only_the_first_thousand_invalid_rows_are_listed(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", lines(*({"id": n % 10, "text": "x" if n % 2 else ""} for n in range(4000))))
    with open_dataset(str(source)) as dataset:
        validation = validate(dataset)
    assert validation.invalid_count == 4000 - 5
    assert len(validation.invalid) == 1000
    assert [row.where for row in validation.invalid[-2:]] == ["x.jsonl:1004", "x.jsonl:1005"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    def peak_bytes(name: str, rows: int) -> int:
        path = tmp_path / name
        with path.open("w") as file:
            file.writelines(lines_of(name, rows))
        with open_dataset(str(path)) as dataset:
            tracemalloc.start()
            assert sum(1 for _ in valid_items(dataset, validate(dataset))) == rows
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return peak

    def lines_of(name: str, rows: int) -> Iterator[str]:
        array = name.endswith(".json")
        yield "[" if array else ""
        for n in range(rows):
            yield ("," if array and n else "") + f'{{"id": "some-longer-id-{n}", "text": "text {n}"}}\n'
        yield "]" if array else ""

    for suffix in ("jsonl", "json"):
        few, many = peak_bytes(f"few.{suffix}", 3_000), peak_bytes(f"many.{suffix}", 30_000)
        assert many < few + (1 << 20), suffix
        assert many < 8 << 20, suffix


# Properties

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)
ITEMS = st.lists(
    st.builds(
        Item,
        id=TEXT.filter(bool),
        response=TEXT.filter(str.strip),
        question=TEXT,
        truth=st.sampled_from([None, *Label]),
        source=TEXT,
        category=TEXT,
        subcategory=TEXT,
    ),
    min_size=1,
    max_size=8,
)


def as_record(item: Item) -> dict[str, str | None]:
    return {
        "id": item.id,
        "question": item.question,
        "response": item.response,
        "label": item.truth,
        "source": item.source,
        "category_name": item.category,
        "sub_category_name": item.subcategory,
    }


def items_in(path: Path) -> list[Item]:
    return [row.item for row in read(path) if isinstance(row, Row)]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(items=ITEMS, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_items_come_back_equal_from_every_text_format(items: list[Item], ascii_only: bool, indent: int | None) -> None:
    records = [as_record(item) for item in items]
    array = json.dumps(records, ensure_ascii=ascii_only, indent=indent)
    each = "\n".join(json.dumps(record, ensure_ascii=ascii_only) for record in records)
    with tempfile.TemporaryDirectory() as folder:
        assert items_in(write(Path(folder, "x.json"), array)) == items
        assert items_in(write(Path(folder, "x.jsonl"), each)) == items
        assert items_in(write(Path(folder, "x.jsonl.gz"), gzip.compress(each.encode()))) == items


@settings(max_examples=50, deadline=None)
@given(items=ITEMS)
def test_items_come_back_equal_from_parquet(items: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert items_in(write_parquet(Path(folder, "x.parquet"), [as_record(item) for item in items])) == items


TOKENS = rb'[ ] { } " , : \ \ud800 text "text" "a" 1 - tru null PAR1 {"text":"a"}'.split()
RAW = [b"\n", b" ", b"\xff", b"\xe5\xae\x89", b"\xef\xbb\xbf", b"\x00", b"\x1f\x8b"]
JSONISH = st.lists(st.sampled_from([*TOKENS, *RAW])).map(b"".join)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    content=st.binary() | JSONISH | JSONISH.map(lambda text: b"[" + text) | JSONISH.map(gzip.compress),
    suffix=st.sampled_from(["json", "jsonl", "json.gz", "parquet", "csv", "tsv", "arrow", "zip"]),
)
def test_arbitrary_bytes_raise_nothing_but_data_errors(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, f"x.{suffix}"), content)
        try:
            with open_dataset(str(path)) as dataset:
                validate(dataset)
        except DataError as error:
            assert "x." + suffix in str(error)  # noqa: PT017 (either outcome is fine)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(), limit=st.integers(1, 30), count=st.integers(1, 4), rows=st.integers(1, 60))
def test_every_choice_is_a_part_of_its_shard_of_the_right_size(seed: int, limit: int, count: int, rows: int) -> None:
    def chosen(dataset: DataSet) -> Iterable[str]:
        with dataset:
            return [row.item.id for row in dataset.rows() if isinstance(row, Row)]

    with tempfile.TemporaryDirectory() as folder:
        source = str(write(Path(folder, "x.jsonl"), plain(rows)))
        for index in range(count):
            shard = chosen(open_dataset(source, shard=(index, count)))
            drawn = chosen(open_dataset(source, shard=(index, count), limit=limit, shuffle_seed=seed))
            assert len(list(drawn)) == min(limit, len(list(shard)))
            assert set(drawn) <= set(shard)
