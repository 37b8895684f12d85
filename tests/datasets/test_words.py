"""Words of every script, and BM25 over them: English as bm25s has it, other scripts by their own words."""

import gzip
import json
import unicodedata

import bm25s
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrhead_rag.datasets.bm25 import BM25
from qrhead_rag.datasets.load import load_examples
from qrhead_rag.datasets.words import cut_words, phrase_pattern, plain_words
from tests.helpers.data import DATA


def default_scores(texts, query):
    """The scores of bm25s with its own words."""
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(bm25s.tokenize(texts, return_ids=False, show_progress=False), show_progress=False)
    known = index.get_tokens_ids(bm25s.tokenize([query], return_ids=False, show_progress=False)[0])
    return index.get_scores_from_ids(known).tolist() if known else [0.0] * len(texts)


ENGLISH = [
    "Tokyo Tower (東京タワー, Tōkyō-tawā) is a communications tower in the Shiba-koen district of Minato.",
    "The tower's height is 332.9 m; it isn't the tallest—that is the Skytree (634 m), built in 2012.",
    "Hindi (हिन्दी) is written in the Devanāgarī script, “beautifully”, at 10 km² of paper e\u0301ach.",
    "St_John's café sells ½ loaves, ﬁne teas & naïve cakes for 3€ 👍🏽 to Ⅷ guests.",
    "",
]


@pytest.mark.parametrize("query", ["how tall is the tower", "Where is Tokyo's café?", "naïve ﬁne cakes ½", "it is"])
def test_english_is_scored_as_bm25s_does_by_default_foreign_names_or_not(query):
    assert BM25(ENGLISH).scores(query) == default_scores(ENGLISH, query)


@given(st.text(st.characters(max_codepoint=0x24F, exclude_characters="İ") | st.sampled_from("’“”–—…•€™²½ﬁαβжд مرحبا")))
def test_words_with_spaces_between_them_are_those_of_bm25s(text):
    text = unicodedata.normalize("NFC", text)
    assert plain_words(text) == bm25s.tokenize(text, stopwords=None, return_ids=False, show_progress=False)[0]
    assert cut_words(text) == plain_words(text)


def nq():
    with gzip.open(DATA / "nq_open_oracle" / "nq-open-oracle.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines][:600]
    texts = [context["text"] for record in records for context in record["ctxs"]]
    assert [text for text in texts if plain_words(text) != cut_words(text)]  # names in other scripts
    return texts, [record["question"] for record in records]


def scifact():
    corpus, queries = (
        [json.loads(line) for line in (DATA / "scifact" / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("corpus", "queries")
    )
    return [text["title"] + "\n" + text["text"] for text in corpus[:600]], [query["text"] for query in queries]


@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are absent")
@pytest.mark.parametrize("read", [nq, scifact])
@pytest.mark.slow
def test_the_english_data_sets_keep_their_scores(read):
    texts, queries = read()
    bm25 = BM25(texts)
    for query in queries[::30]:
        assert bm25.scores(query) == default_scores(texts, query)


LANGUAGES = {  # a query, the text that answers it, and two others
    "Chinese": ("渡轮什么时候开？", "渡轮早上九点从北港开出。", "面包在黎明时烤好。", "图书馆出借地图一周。"),
    "Japanese": ("フェリーは何時に出ますか", "フェリーは朝九時に港を出る。", "パンは夜明けに焼かれる。", "図書館は地図を貸す。"),
    "Korean": ("페리가 언제 떠나요?", "페리는 아홉 시에 항구를 떠난다.", "빵은 새벽에 굽는다.", "도서관은 지도를 빌려준다."),
    "Thai": ("เรือออกกี่โมง", "เรือเฟอร์รี่ออกจากท่าเก้าโมงเช้า", "ขนมปังอบตอนเช้ามืด", "ห้องสมุดให้ยืมแผนที่"),
    "Khmer": ("សាឡាងចេញម៉ោងប៉ុន្មាន", "សាឡាងចេញពីកំពង់ផែម៉ោងប្រាំបួន", "នំប៉័ងដុតនៅព្រលឹម", "បណ្ណាល័យឱ្យខ្ចីផែនទី"),
    "Burmese": ("သင်္ဘော ဘယ်အချိန် ထွက်လဲ", "သင်္ဘောသည် ကိုးနာရီတွင် ထွက်သည်။", "ပေါင်မုန့်ကို မနက် ဖုတ်သည်။", "စာကြည့်တိုက်က မြေပုံငှားသည်။"),
    "Hindi": ("नौका कब चलती है?", "नौका सुबह नौ बजे चलती है।", "रोटी भोर में पकती है।", "पुस्तकालय नक्शे उधार देता है।"),
    "Tamil": ("படகு எப்போது புறப்படும்?", "படகு ஒன்பது மணிக்குப் புறப்படும்.", "ரொட்டி விடியலில் சுடப்படும்.", "நூலகம் வரைபடம் தரும்."),
    "Persian": ("کشتی کی می‌رود؟", "کشتی ساعت نه می‌رود.", "نان سحر پخته شود.", "کتابخانه نقشه دهد."),
    "Hebrew": ("מָתַי יוֹצֵאת הַמַּעְבֹּרֶת", "הַמַּעְבֹּרֶת יוֹצֵאת בְּתֵשַׁע", "הַלֶּחֶם נֶאֱפֶה", "הַסִּפְרִיָּה מַשְׁאִילָה"),
    "German": ("Wann fährt die Fähre?", "Die Fähre fährt um neun.", "Brot wird früh gebacken.", "Die Bücherei verleiht Karten."),
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_answer_comes_first_in_every_language(language):
    query, answer, *others = LANGUAGES[language]
    bm25 = BM25([*others, answer])
    assert bm25.matches(query)
    assert bm25.best(query, 1) == [2]


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_text_of_a_language_is_found_among_english_ones(language):
    query, answer, *_ = LANGUAGES[language]
    texts = [*ENGLISH, answer, *ENGLISH]
    assert BM25(texts).best(query, 1) == [len(ENGLISH)]
    assert BM25(texts).scores("the tower") == default_scores(texts, "the tower")


def test_latin_words_are_found_inside_text_without_spaces():
    texts = ["面包在黎明时烤好。", "请用iPhone手机扫码。", "ＡＩと機械学習の入門。"]
    assert BM25(texts).best("iPhone", 1) == [1]
    assert BM25(texts).best("AI", 1) == [2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می‌روم", ["می‌روم"]),
        ("水", ["水"]),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー", "東京", "京タ", "タワ", "ワー"]),
        ("人々は2024年に", ["人", "々", "は", "人々", "々は", "2024", "年", "に", "年に"]),
        ("ｶﾞﾗｽ", cut_words("ガラス")),
        ("が", ["が"]),
        ("cafe\u0301", ["café"]),
        ("तो\u200d", ["तो"]),
        ("\ud83d half an emoji", ["half", "an", "emoji"]),
        ("❤️\u200d🔥 . 。", []),
    ],
)
def test_words_by_hand(text, words):
    assert cut_words(text) == words


@pytest.mark.parametrize("texts", [["7", "9"], ["好", "不"], ["", " "], ["it is", "the"], ["?!", "👍"], []])
@pytest.mark.parametrize("query", ["which 7", "好", "?"])
def test_texts_without_a_word_are_scored_0(texts, query):
    bm25 = BM25(texts)
    expected = [float(text == query) for text in texts]
    assert [float(score > 0) for score in bm25.scores(query)] == expected
    assert sorted(bm25.best(query, 9)) == list(range(len(texts)))
    assert bm25.matches(query) == any(expected)


def test_a_phrase_is_found_whole_in_any_script():
    assert phrase_pattern(["nine"]).search("At NINE.")
    assert not phrase_pattern(["nine"]).search("nineteen canine ninety_nine nine2")
    assert phrase_pattern(["x", "東京 (U.S.)"]).search("駅は東京 (u.s.)にある")
    assert phrase_pattern(["iPhone"]).search("请用iPhone手机")
    assert not phrase_pattern(["क"]).search("कि")


def gold(question, answer, text):
    return {"question": question, "answers": [answer], "ctxs": [{"text": text, "isgold": True}]}


def test_a_passage_that_has_the_answer_is_no_negative_in_text_without_spaces(tmp_path):
    records = [
        gold("渡轮从哪里开出", "北港", "渡轮早上从北港开出。"),
        gold("北港在哪里", "城北", "渡轮停在北港里，在城北。"),
        gold("渡轮的面包", "黎明", "渡轮上的面包在黎明烤好。"),
    ]
    path = tmp_path / "dpr.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    first = load_examples(path)[0]
    assert {document.text for document in first.documents} == {
        records[0]["ctxs"][0]["text"],
        records[2]["ctxs"][0]["text"],
    }


def test_lists_that_are_cut_without_a_shared_word_are_named(tmp_path):
    path = tmp_path / "plain.jsonl"
    lists = [("红船", ["red", "boat", "snow"]), ("boat", ["red", "boat", "snow"]), ("neither", ["a boat", "snow"])]
    lines = [json.dumps({"query": query, "documents": texts, "relevant": [1]}) for query, texts in lists]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.warns(
        UserWarning, match=r"BM25 scores every document 0 for 1 of 3 queries \(the first: '红船'\)"
    ) as caught:
        examples = load_examples(path, candidates=2)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [document.text for document in examples[0].documents] == ["red", "boat"]
    assert len(load_examples(path)) == 3
