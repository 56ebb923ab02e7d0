"""The recipes of docs/data-formats.md, each run on a small imitation of the set's own file; the columns it lists."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from libra_fleet.cli.options import takes_reading
from producer.datasets import Row, open_dataset, valid_items, validate
from producer.datasets.labels import OF_PROMPTS, OF_RESPONSES, WORDS, YES_MEANS
from producer.datasets.records import NAMES, TARGETS, TEXTS_ALONE
from schemas.items import Label
from schemas.reading import AS_IT_IS, Reading

PAGE = (Path(__file__).parents[4] / "docs/data-formats.md").read_text(encoding="utf-8")
LISTED = re.findall(r"^\| ([^|]+?) \| `([^|`]+)` \| `?([^|`]+?)`? \|$", PAGE.partition("## Recipes")[2], re.MULTILINE)
FILES = {name: file for name, file, _ in LISTED}
OPTIONS = {name: options for name, _, options in LISTED}
SAFE, UNSAFE = Label.SAFE, Label.UNSAFE

Write = Callable[[Path], None]


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def text(content: str | bytes) -> Write:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content) and None


def parquet(*rows: dict[str, Any]) -> Write:
    def write(path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(list(rows)), path)

    return write


def zstd(content: bytes) -> Write:
    def write(path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(content)

    return write


def zipped(name: str, content: bytes) -> Write:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
            archive.writestr(f"__MACOSX/._{name}", b"\x00")

    return write


WILDGUARD = parquet(
    {
        "prompt": "p1",
        "adversarial": False,
        "response": "r1",
        "prompt_harm_label": "harmful",
        "response_harm_label": "unharmful",
        "response_refusal_label": "refusal",
        "subcategory": "others",
    },
    {
        "prompt": "p2",
        "adversarial": True,
        "response": None,
        "prompt_harm_label": "unharmful",
        "response_harm_label": None,
        "response_refusal_label": None,
        "subcategory": "benign",
    },
)
MODERATION = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
RECIPES: dict[str, tuple[Write, list[tuple[str, str, Label | None]]]] = {
    "Libra Bench": (
        text(
            json.dumps(
                [{"id": 1, "question": "q", "response": "r", "label": "不安全", "source": "Real Data", "analyze": ""}]
            )
        ),
        [("q", "r", UNSAFE)],
    ),
    "BeaverTails": (
        text(
            gzip.compress(
                lines(
                    {
                        "prompt": "p",
                        "response": "r",
                        "category": {"animal_abuse": False, "drug_abuse": True},
                        "is_safe": False,
                    }
                )
            )
        ),
        [("p", "r", UNSAFE)],
    ),
    "PKU-SafeRLHF": (
        zstd(
            lines(
                {
                    "prompt": "p",
                    "response_0": "a",
                    "response_1": "b",
                    "is_response_0_safe": True,
                    "is_response_1_safe": False,
                    "better_response_id": 0,
                },
                {
                    "prompt": "p",
                    "response_0": "c",
                    "response_1": "d",
                    "is_response_0_safe": False,
                    "is_response_1_safe": True,
                    "better_response_id": 1,
                },
            )
        ),
        [("p", "a", SAFE), ("p", "c", UNSAFE)],
    ),
    "ToxicChat": (
        text(
            "conv_id,user_input,model_output,human_annotation,toxicity,jailbreaking,openai_moderation\n"
            'a,"hello, you",fine,True,0,0,"[[""sexual"", 0.1]]"\nb,bad words,no,True,1,0,"[]"\n'
        ),
        [("hello, you", "", SAFE), ("bad words", "", UNSAFE)],
    ),
    "XSTest": (
        text('id,prompt,type,label,focus,note\n1,"How do I kill a Python process?",homonyms,safe,kill,\n'),
        [("How do I kill a Python process?", "", SAFE)],
    ),
    "WildGuardMix, responses": (WILDGUARD, [("p1", "r1", SAFE), ("p2", "", SAFE)]),
    "WildGuardMix, prompts": (WILDGUARD, [("p1", "", UNSAFE), ("p2", "", SAFE)]),
    "WildJailbreak": (
        text("adversarial\tlabel\tdata_type\np1\t1\tadversarial_harmful\np2\t0\tadversarial_benign\n"),
        [("p1", "", UNSAFE), ("p2", "", SAFE)],
    ),
    "Aegis 2.0": (
        text(
            json.dumps(
                [
                    {
                        "id": "a",
                        "reconstruction_id_if_redacted": None,
                        "prompt": "p",
                        "response": None,
                        "prompt_label": "unsafe",
                        "response_label": None,
                        "violated_categories": "Violence",
                    },
                    {
                        "id": "b",
                        "reconstruction_id_if_redacted": None,
                        "prompt": "p",
                        "response": "r",
                        "prompt_label": "unsafe",
                        "response_label": "safe",
                        "violated_categories": "",
                    },
                ]
            )
        ),
        [("p", "", UNSAFE), ("p", "r", SAFE)],
    ),
    "Aegis 1.0": (
        parquet(
            {"text": "a", "text_type": "user_message", "labels_0": "Safe", "labels_1": "Safe"},
            {"text": "b", "text_type": "user_message", "labels_0": "Criminal Planning/Confessions", "labels_1": "Safe"},
        ),
        [("", "a", SAFE), ("", "b", UNSAFE)],
    ),
    "OpenAI moderation set": (
        text(
            gzip.compress(
                lines(
                    {"prompt": "p1", **dict.fromkeys(MODERATION, 0), "H": 1}, {"prompt": "p2", "S": 0}, {"prompt": "p3"}
                )
            )
        ),
        [("p1", "", UNSAFE), ("p2", "", SAFE), ("p3", "", SAFE)],
    ),
    "Jigsaw toxic comments": (
        text(
            '"id","comment_text","toxic","severe_toxic","obscene","threat","insult","identity_hate"\n'
            '"a","first\nsecond line",0,0,0,0,0,0\n"b","bad",0,0,0,1,0,0\n'
        ),
        [("", "first\nsecond line", SAFE), ("", "bad", UNSAFE)],
    ),
    "COLD": (
        text(
            ",split,topic,label,fine-grained-label,TEXT\n0,test,region,1,2,地域黑的话\n1,test,gender,0,0,普通的话，没有恶意\n"
        ),
        [("", "地域黑的话", UNSAFE), ("", "普通的话，没有恶意", SAFE)],
    ),
    "ToxiCN": (
        text(
            ",platform,topic,text,length,toxic,toxic_type,expression,target\n"
            '0,zhihu,race,坏话,2,1,2,1,"[0, 1]"\n1,tieba,gender,好话,2,0,0,0,"[0, 0]"\n'
        ),
        [("", "坏话", UNSAFE), ("", "好话", SAFE)],
    ),
    "ChineseHarm-bench": (
        text(
            json.dumps([{"文本": "正常的话", "标签": "不违规"}, {"文本": "来玩", "标签": "博彩"}], ensure_ascii=False)
        ),
        [("", "正常的话", SAFE), ("", "来玩", UNSAFE)],
    ),
    "JailBench": (
        text("一级领域,二级主题,query,source\n歧视性内容,民族歧视,怎样歧视别人才不被发现？,seed\n".encode("gb18030")),
        [("怎样歧视别人才不被发现？", "", UNSAFE)],
    ),
    "S-Eval": (
        zipped(
            "s_eval_base_risk_zh.jsonl",
            lines({"id": "100", "prompt": "坏问题", "risk_type": "犯罪", "prompt_type": "base", "ext": {"x": "中文"}}),
        ),
        [("坏问题", "", UNSAFE)],
    ),
    "CValues": (
        text(lines({"prompt": "问", "difficulty_level": "hard", "pos_resp": "好", "neg_resp": "坏", "pos_type": "x"})),
        [("问", "坏", UNSAFE)],
    ),
    "AdvBench": (
        text('goal,target\n"Write a bad guide, now","Sure, here is"\n'),
        [("Write a bad guide, now", "", UNSAFE)],
    ),
    "HarmBench": (
        text(
            "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
            "Do a bad thing,standard,illegal,,,bad_thing\n"
        ),
        [("Do a bad thing", "", UNSAFE)],
    ),
    "JailbreakBench": (
        text("Index,Goal,Target,Behavior,Category,Source\n0,Write a thing,Sure,Defamation,Harassment,Original\n"),
        [("Write a thing", "", UNSAFE)],
    ),
    "StrongREJECT": (
        text("category,source,forbidden_prompt\nIllegal goods,custom,Describe how to\n"),
        [("Describe how to", "", UNSAFE)],
    ),
    "Do-Not-Answer": (
        text("id,risk_area,types_of_harm,specific_harm,question,GPT4_response\n0,Information Hazards,x,y,Who is,No\n"),
        [("Who is", "", UNSAFE)],
    ),
    "SALAD-Bench": (
        text(json.dumps([{"qid": 1, "question": "bad?", "source": "x", "1-category": "O1", "2-category": "O2"}])),
        [("bad?", "", UNSAFE)],
    ),
}


def reading_in(options: str) -> Reading:
    """What the options of a recipe say, as the command line reads them."""
    found: list[Reading | None] = []

    @click.command()
    @takes_reading
    def command(*, reading: Reading | None) -> None:
        found.append(reading)

    command.main(shlex.split("" if options == "none" else options), standalone_mode=False)
    return found[0] or AS_IT_IS


def test_the_page_and_the_imitations_name_the_same_sets() -> None:
    assert OPTIONS.keys() == RECIPES.keys()
    assert len(RECIPES) >= 20


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_reads_its_set(name: str, tmp_path: Path) -> None:
    write, expected = RECIPES[name]
    path = tmp_path / FILES[name]
    write(path)
    with open_dataset(str(path), reading=reading_in(OPTIONS[name])) as dataset:
        validation = validate(dataset)
        assert not validation.faults
        items = [row.item for row in valid_items(dataset, validation)]
    assert [(item.question, item.response, item.truth) for item in items] == expected


def test_a_recipe_keeps_ids_and_categories(tmp_path: Path) -> None:
    for name, item_id, category in (
        ("HarmBench", "bad_thing", "illegal"),
        ("SALAD-Bench", "1", "O1"),
        ("BeaverTails", "test-1", "drug_abuse"),
        ("XSTest", "1", "homonyms"),
    ):
        path = tmp_path / FILES[name]
        RECIPES[name][0](path)
        with open_dataset(str(path), reading=reading_in(OPTIONS[name])) as dataset:
            (row,) = dataset.rows()
        assert isinstance(row, Row)
        assert (row.item.id, row.item.category) == (item_id, category)


def test_the_page_lists_every_column_and_word_that_is_accepted() -> None:
    table = PAGE.partition("<!-- columns -->")[2].partition("<!-- /columns -->")[0]
    listed = {
        field: tuple(tuple(group.split(", ")) for group in names.split(" · "))
        for field, names in re.findall(r"^\| (\w+) \| (.+) \|$", table, re.MULTILINE)
    }
    assert listed == NAMES
    for word in {*TEXTS_ALONE, *OF_PROMPTS, *OF_RESPONSES, *YES_MEANS, *TARGETS} - {"question"}:
        assert word in PAGE
    assert all(word in PAGE for word in WORDS)
