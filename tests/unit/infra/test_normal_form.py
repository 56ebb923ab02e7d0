"""The normal form of a text: what a reader sees in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.normal_form import normal_form

PLAIN = "你这个傻逼东西"


def between(mark: str) -> str:
    return mark.join(PLAIN)


DISGUISES = {
    "zero-width spaces": between("\u200b"),
    "soft hyphens": between("\xad"),
    "zero-width joiners": between("\u200d"),
    "word joiners": between("\u2060"),
    "byte order marks": between("\ufeff"),
    "variation selectors": between("\ufe0f"),
    "Hangul fillers": between("\u3164"),
    "blanks": between(" "),
    "ideographic blanks": between("\u3000"),
    "dots": between("."),
    "middle dots": between("·"),
    "stars": between("*"),
    "emoji": between("❤"),
    "emoji as a telephone writes them": between("❤\ufe0f"),
    "emoji of several characters": between("👨\u200d👩\u200d👧"),
    "flags": between("🇨🇳"),
    "full-width stars": between("＊"),
    "full-width dots": between("．"),
    "full-width bars": between("｜"),
    "Japanese middle dots": between("・"),
    "hyphenation points": between("‧"),
    "musical control characters": between("\U0001d173"),
    "control characters": between("\x80"),
    "Ogham blanks": between("\u1680"),
    "reversed under an override": f"\u202e{PLAIN[::-1]}\u202c",
    "struck through": between("\u0336") + "\u0336",
    "stretched": "".join(4 * letter for letter in PLAIN),
    "tags": between("\U000e0041"),
}
LATIN_DISGUISES = {
    "full width": "ｆｕｃｋ",
    "mathematical letters": "𝐟𝐮𝐜𝐤",
    "circled letters": "ⓕⓤⓒⓚ",
    "a Greek letter": "fυck",
    "a Cyrillic letter": "fuсk",
    "blanks": "f u c k",
    "dots": "f.u.c.k",
    "stretched": "fuuuuuck",
    "struck through": "f\u0336u\u0336c\u0336k\u0336",
    "zero-width spaces": "f\u200bu\u200bc\u200bk",
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_disguised_chinese_text_is_the_text(disguise: str) -> None:
    assert normal_form(DISGUISES[disguise]).text == PLAIN


@pytest.mark.parametrize("disguise", LATIN_DISGUISES)
def test_a_disguised_latin_word_is_the_word(disguise: str) -> None:
    assert normal_form(LATIN_DISGUISES[disguise]).text == "fuck"


@pytest.mark.parametrize("word", ["🄵🅄🄲🄺", "🅕🅤🅒🅚", "🅵🆄🅲🅺"])
def test_letters_in_squares_and_on_black_are_letters(word: str) -> None:
    assert normal_form(word).text == "FUCK"


def test_a_stretched_capital_i_is_shortened_and_a_roman_number_is_not() -> None:
    assert normal_form("SHIIIIT").text == "SHIT"
    for number in ("VIII", "viii", "XXIII", "xviii", "第xiii章"):
        assert normal_form(number).text == number


@pytest.mark.parametrize("end", ["?", "!", ".", ": you", "-", "? yes", " / no", "@", "，"])
@pytest.mark.parametrize("mark", [" ", ".", "-", "*"])
def test_a_word_taken_apart_is_put_together_whatever_ends_its_sentence(mark: str, end: str) -> None:
    assert normal_form(mark.join("fuck") + end).text == "fuck" + end


def test_letters_with_marks_between_that_go_on_are_an_address() -> None:
    for address in ("a.b.c/d", "x-y-z@a.b", "a.b.c:80", "a.b.c?d=e", "x.y.z-online"):
        assert normal_form(address).text == address


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece",
    ["a/*", "\u202ea\u202c", "\u202eab\n", "\U000e0041", "\u0301\u0316", "我.", "f ", "\u3164", "a\u202e\u0336"],
)
def test_a_text_of_a_megabyte_is_read_in_a_time_that_grows_with_its_length_alone(piece: str) -> None:
    # What grew with the square of it took minutes.
    normal_form("a" + piece * (300_000 // len(piece)))


def test_marks_that_pile_up_leave_the_letter_and_one_that_is_struck_through_often_stays_itself() -> None:
    assert normal_form("e" + 40 * "\u0301\u0316" + "x").text == "\xe9x"
    assert normal_form("e" + 40 * "\u0336" + "x").text == "ex"


def test_tags_that_spell_no_flag_go() -> None:
    assert normal_form("\U0001f3f4" + 40 * "\U000e0041" + "赢").text == "\U0001f3f4赢"


def test_laughter_stays_laughter_and_a_stretched_insult_is_found_in_it() -> None:
    assert normal_form("哈哈哈哈哈").text == "哈哈"
    assert "傻逼" in normal_form("你个傻傻傻傻逼").text


@pytest.mark.parametrize(
    ("traditional", "simplified"), [("大麻煩來了", "大麻烦来了"), ("賭博網站", "赌博网站"), ("簡體", "简体")]
)
def test_traditional_characters_are_simplified(traditional: str, simplified: str) -> None:
    assert normal_form(traditional).text == simplified


@pytest.mark.parametrize(
    "text",
    [
        "今天天气很好，我们去玩吧！真的吗？（笑）",
        "大麻烦来了：他把“大麻”写进了新闻。",
        "Smoking is not the King's habit; naïve café, Straße, ¿qué?",
        "👨\u200d👩\u200d👧\u200d👦好❤️‍🔥，👍🏽，🏳️‍🌈，🇨🇳",
        "1️⃣ 第一步 2️⃣ 第二步 #️⃣",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 赢了",
        "™️ ©️ ↔️",
        "مرحبا بالعالم 你好，世界",
        "قال \u2068我爱你\u2069 ثم ذهب",
        "نمی\u200cخواهم",
        "क\u094d\u200dष",
        "שלום עולם, hello",
        "东、西、南、北，春、夏、秋、冬",
        "Привет, мир. Сука — собака.",
        "Γεια σου κόσμε",
        "价格 10000 元，满 300 减 50，3.14，8888",
        "汤姆·汉克斯和乔·怀特，收到了~我同意，学位证|可查，职场=战场",
        "乾隆和乾坤，五星哦^_^超级快，138xxxx1234，这一年***漫长",
        "哈哈，AAA 级，www.example.org，XXX，VIII，零零零零，尾号一六六六",
        "🅰️型血，🅱型，🅾，🅿️停车场，🆗",
        "5 m²，3 ㎏，½，①②③，㊙️，ㅋㅋㅋ，℃",
        "C++ 和 C# 以及 A/B 测试，e.g. 这样",
        "https://example.org/a-b_c?d=e#f",
        "第1章 开始\n第2章 结束",
        "IEEE 802.11，AAAI 论文，XXXL 码，PPPoE 拨号，CCCP",
        "他 很好",
        "ありがとう、カタカナ、한국어",
    ],
)
def test_ordinary_writing_is_left_as_it_is(text: str) -> None:
    assert normal_form(text).text == text


def test_a_span_of_the_form_is_a_span_of_the_original() -> None:
    original = "他说：傻\u200b\u200b逼，真 · 烦"
    form = normal_form(original)
    at = form.text.index("傻逼")

    start, end = form.span(at, at + 2)

    assert original[start:end] == "傻\u200b\u200b逼"


def test_a_span_of_reversed_text_is_where_it_lies_in_the_original() -> None:
    original = "好 \u202e逼傻个你\u202c 吧"
    form = normal_form(original)
    at = form.text.index("傻逼")

    start, end = form.span(at, at + 2)

    assert original[start:end] == "逼傻"


def test_a_letter_that_stands_for_several_has_one_span() -> None:
    form = normal_form("前ﬁ后")

    assert form.text == "前fi后"
    assert form.span(1, 3) == form.span(1, 2) == (1, 2)


SCRIPTS = st.sampled_from(
    [
        *"傻逼你好东西大麻烦",
        *"fuckabcXYZ",
        *" .·*-_、，。\t\n",
        *"\u200b\u200d\ufe0f\u202e\u202c\u2067\u2069\xad\u3164\u0336\u0301\u20e3\U000e0061",
        *"ｆｕ①㎏𝐟煩賭а сυΓ",
        *"❤👍🏽🏴1#",
        *"مرحبا",
    ]
)


@given(st.lists(SCRIPTS, max_size=24).map("".join) | st.text(max_size=24))
def test_a_normal_form_is_its_own_normal_form_and_its_spans_lie_in_the_text(text: str) -> None:
    form = normal_form(text)

    assert normal_form(form.text).text == form.text
    spans = [form.span(at, at + 1) for at in range(len(form.text))]
    assert all(0 <= start < end <= len(text) for start, end in spans)
    if form.starts is not None and form.ends is not None:
        assert len(form.starts) == len(form.ends) == len(form.text)
