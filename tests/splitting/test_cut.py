"""Where texts are cut: within the tokens, at the best boundary, nothing left out."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from memworker.chunking import Chunking
from memworker.models import ready_model
from memworker.pool import TokenCounter, Tokenization, Tokenizer as Framer
from memworker.splitting.cut import Cutter
from memworker.splitting.headings import headings_of, path_at
from memworker.splitting.locality import adds_up
from memworker.splitting.process import cutter_of
from memworker.splitting.tokens import WS, UnitTokens

PROSE = " ".join(f"Sentence {i} tells of {i * 7 % 13} owls, and of their nests." for i in range(80))
HOSTILE = {
    "no blanks": "x1y2z3" * 400,
    "an address": "see https://example.org/" + "a/b-c_d?e=f&" * 60 + " and go on reading. " + PROSE,
    "Chinese": "猫头鹰在夜里捕食。它们听得很清楚，也看得很远！" * 40,
    "Japanese": "フクロウは夜に狩りをします。とても静かに飛びます。" * 40,
    "Thai": "นกฮูกออกหากินในเวลากลางคืน" * 40,
    "emoji": "👩‍👩‍👧‍👦🦉" * 200,
    "combining": "e\u0301o\u0308 " * 300,
    "control": "a\x00b\x0bc\x1cd\x85e\u2028f\u200bg " * 60,
    "carriage returns": "One line.\r\nAnother;\rand a third\r\n\r\n" * 40,
    "rare blanks": "a\u00a0b\u2009c\u3000d\u205fe " * 100,
    "special tokens": "[SEP] [CLS] <s> </s> [MASK] words [UNK] " * 60,
    "lines": "\n".join(f"- item {i} of a list" for i in range(200)),
    "code": "```\n# no heading\n" + "    if x:\n        return y\n" * 80 + "```\n" + PROSE,
    "table": "| a | b |\n|---|---|\n" + "| 1 | some words in a cell |\n" * 80,
    "blank lines": "\n\n\n \n\n".join(["words"] * 300),
    "short": "a",
}


def byte_level(folder):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([PROSE, *HOSTILE.values()], trainer)
    return saved(made, folder)


def joining(folder):
    """A vocabulary whose tokens reach over white space: sums of words prove nothing."""
    letters = sorted(set("".join(HOSTILE.values()).replace(" ", "▁")))
    merges = [("s", "▁"), ("o", "f"), ("▁", "o"), ("s▁", "o"), ("e", "s▁")]
    pieces = ["<unk>", *letters, *("".join(pair) for pair in merges)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return saved(made, folder)


def sentencepiece(folder):
    """Llama's kind: no words apart, white space is a sign, unknown characters are bytes."""
    letters = sorted(set(PROSE.replace(" ", "▁")))
    merges = [("o", "w"), ("▁", "ow"), ("▁", "▁"), ("▁▁", "▁▁"), ("▁", "n"), ("e", "s")]
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {piece: i for i, piece in enumerate([*named, *map("".join, merges)])}
    made = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.add_special_tokens(["<s>", "</s>"])
    return saved(made, folder)


def unigram(folder):
    """XLM-RoBERTa's kind; the likeliest pieces of each word."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", " ")])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=300, unk_token="<unk>", special_tokens=["<s>", "<unk>"], show_progress=False
    )
    made.train_from_iterator([PROSE] * 4, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A <s>", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return saved(made, folder, add_special_tokens=True)


def newlines(folder):
    """Llama 3's and Qwen's kind: a stop and the line's end behind it may be one token."""
    made = Tokenizer(models.BPE())
    words = Regex(
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([PROSE.replace(". ", ".\n"), *HOSTILE.values()], trainer)
    return saved(made, folder)


def whole_words(folder):
    """A word is a token, or unknown."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "owls": 1, "and": 2, ".": 3}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return saved(made, folder)


def saved(tokenizer, folder, *, add_special_tokens=False):
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return Tokenization(path, add_special_tokens=add_special_tokens)


@pytest.fixture(scope="module", params=["words", "minilm", "byte-level", "joining"])
def made(request, tmp_path_factory):
    """How tokens are made; None: each word is one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "minilm":
        return Tokenization(ready_model("all-MiniLM-L6-v2").tokenizer, prefix="passage: ")
    makes = {"byte-level": byte_level, "joining": joining}
    return makes[request.param](folder) if request.param in makes else None


@cache
def opened(path):
    whole = Tokenizer.from_file(str(path))
    whole.no_truncation()
    whole.no_padding()
    return whole


def true_count(made, text):
    if made is None:
        return len(re.findall(f"[^{WS}]+", text))
    whole = opened(made.path)
    return len(whole.encode(made.prefix + text, add_special_tokens=made.add_special_tokens).ids)


def must_be_sound(text, pieces):
    """Every character but white space is in a piece, in order, and none is empty."""
    covered = 0
    for piece in pieces:
        assert piece.start < piece.end and text[piece.start : piece.end].strip()
        assert piece.start <= covered or not text[covered : piece.start].strip()
        assert piece.end > covered
        covered = piece.end
    assert not text[covered:].strip()


@pytest.mark.parametrize("chunking", [Chunking(48), Chunking(24, 8), Chunking(12, 3)], ids=str)
def test_no_chunk_is_too_long_and_none_of_a_text_is_left_out(made, chunking):
    cutter = cutter_of(chunking, made)
    for name, text in HOSTILE.items():
        pieces = cutter.pieces(text, markdown=name in ("code", "table"))
        must_be_sound(text, pieces)
        counts = [true_count(made, text[p.start : p.end]) for p in pieces]
        alone = [count for count, p in zip(counts, pieces, strict=True) if p.end - p.start > 1]
        assert max(alone, default=0) <= chunking.tokens, name
        assert pieces == cutter.pieces(text, markdown=name in ("code", "table")), name


KINDS = {
    "byte-level": byte_level,
    "joining": joining,
    "sentencepiece": sentencepiece,
    "unigram": unigram,
    "newlines": newlines,
    "whole words": whole_words,
}
REAL = {
    "minilm": lambda _: Tokenization(ready_model("all-MiniLM-L6-v2").tokenizer),
    "wordllama": lambda _: Tokenization(
        ready_model("wordllama").tokenizer, add_special_tokens=False
    ),
}


@pytest.mark.parametrize("contextual", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, *REAL])
def test_the_ids_of_a_chunk_are_those_of_its_text(kind, contextual, tmp_path):
    made = (KINDS | REAL)[kind](tmp_path)
    cutter = cutter_of(Chunking(40, 8, contextual=contextual), made)
    mixed = "  ".join(text[:300] for text in HOSTILE.values())
    rng = random.Random(5)
    marks = [*"aé Ǆß\t\n.!'’-_9猫ก\u0301\u00a0\u2009\u200b\x00\x85", "  ", "\r\n", "it's", "Owls "]
    drawn = ["".join(rng.choice(marks) for _ in range(400)) for _ in range(25)]
    framed, once = Framer(made.path, 512, add_special_tokens=made.add_special_tokens), 0
    for text in [*HOSTILE.values(), mixed, *drawn]:
        for piece in cutter.pieces(text, "Of owls </s> and\nnests", markdown=True):
            chunk = f"{piece.context}\n\n" * contextual + text[piece.start : piece.end]
            (want,), _ = framed([chunk])
            given = np.frombuffer(piece.ids, np.int32)
            (got,), truncated = framed.frame(given, [0, len(given)])
            assert list(got) == want, (kind, chunk)
            assert not truncated.any()
            once += cutter.tokens.may_join(chunk)
    assert once or kind not in ("joining", "newlines")


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "unigram", "minilm", "wordllama"])
def test_words_are_tokenised_once(kind, tmp_path, monkeypatch):
    cutter = cutter_of(Chunking(40), (KINDS | REAL)[kind](tmp_path))
    cutter.pieces(PROSE)
    monkeypatch.setattr(TokenCounter, "ids", None)
    monkeypatch.setattr(TokenCounter, "located", None)
    assert all(piece.ids for piece in cutter.pieces(PROSE))


def test_where_ids_are_not_the_words_own_none_are_told(tmp_path):
    prefixed = replace(REAL["minilm"](tmp_path), prefix="passage: ")
    assert {piece.ids for piece in cutter_of(Chunking(40), prefixed).pieces(PROSE)} == {None}
    assert {piece.ids for piece in cutter_of(Chunking(40), None).pieces(PROSE)} == {None}


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 5}},
        {"pre_tokenizer": None},
    ],
    ids=str,
)
def test_a_tokenizer_that_is_not_known_to_take_words_alone_is_given_whole_chunks(change, tmp_path):
    described = json.loads(unigram(tmp_path).path.read_text())
    assert adds_up(described)
    assert not adds_up(described | change)


def test_sums_of_words_are_exact_or_said_to_be_none(made):
    if made is None:
        return
    counter = TokenCounter(made)
    tokens = UnitTokens(counter)
    for text in (PROSE, HOSTILE["lines"], HOSTILE["Chinese"]):
        units = re.findall(f"[{WS}]+[^{WS}]+", f" {text}")
        exact = sum(tokens.of(["x", *units])) == counter.count(["x" + "".join(units)])[0]
        assert exact or tokens.may_join(text)
    assert tokens.may_join(PROSE) == ("merges" in made.path.read_text() and "s▁" in tokens_of(made))


def tokens_of(made):
    return opened(made.path).get_vocab()


@pytest.mark.parametrize("text", ["", "   ", "\n\t \r\n", "\u00a0\u3000"])
def test_white_space_gives_nothing(made, text):
    assert cutter_of(Chunking(16), made).pieces(text) == []


@pytest.fixture
def by_words():
    def cut(text, tokens=20, overlap=0, **options):
        cutter = Cutter(UnitTokens(None), Chunking(tokens, overlap), 0)
        return [text[p.start : p.end] for p in cutter.pieces(text, **options)]

    return cut


def words(n, mark="w"):
    return " ".join(f"{mark}{i}" for i in range(n))


def test_a_better_boundary_goes_before_a_later_one(by_words):
    sections = f"# One\n{words(12)}\n\n{words(3)}\n# Two\n{words(2)}. {words(30)}"
    assert by_words(sections, markdown=True)[0].endswith("w2")
    assert by_words(sections, markdown=True)[1].startswith("# Two")
    paragraphs = f"{words(12)}\n\n{words(4)}. {words(30)}"
    assert by_words(paragraphs)[0] == words(12)
    lines = f"{words(12)}.\n{words(2)}. {words(3)}\n{words(30)}"
    assert by_words(lines)[0] == f"{words(12)}."
    sentences = f"{words(12)}. {words(3)}\n{words(30)}"
    assert by_words(sentences)[0] == f"{words(12)}."
    wrapped = f"{words(14)}\n{words(30)}"
    assert by_words(wrapped)[0] == words(14)
    assert by_words(words(70))[0] == words(20)


def test_the_last_two_are_of_like_size(by_words):
    sizes = [len(chunk.split()) for chunk in by_words(words(21))]
    assert len(sizes) == 2 and min(sizes) >= 7


def test_an_edit_moves_the_cuts_near_it_alone(by_words):
    text = "\n\n".join(f"Paragraph {i} has {words(i % 7 + 3, f'p{i}x')}." for i in range(200))
    before = by_words(text, 60)
    for edited in (f"A new beginning. {text}", text.replace("p50x1", "other words here p50x1")):
        after = by_words(edited, 60)
        assert len(set(after) - set(before)) <= 6
    assert set(by_words(f"{text}\n\nThe end.", 60)) - set(before) <= set(
        by_words(f"{text}\n\nThe end.", 60)[-3:]
    )


def test_headings_are_those_of_the_text_and_not_of_its_code():
    text = "# A\n```\n# none\n```\n## B ##\nx\n#no\n# C\ny\n### D\nz\n"
    headings = headings_of(text)
    assert [heading.path for heading in headings] == [("A",), ("A", "B"), ("C",), ("C", "D")]
    assert path_at(headings, text.index("x")) == ("A", "B")
    assert path_at(headings, 0) == ()
    assert path_at(headings, text.index("# C")) == ("A", "B")


def test_context_takes_its_room_and_no_more(made):
    cutter = cutter_of(Chunking(40, contextual=True), made)
    text = f"# {words(60, 'head')}\n\n{PROSE}\n\n## Nests\n\n{PROSE}"
    for title in ("", "Owls", "A title " * 50):
        pieces = cutter.pieces(text, title, markdown=True)
        must_be_sound(text, pieces)
        for piece in pieces:
            embedded = f"{piece.context}\n\n{text[piece.start : piece.end]}".strip()
            assert true_count(made, embedded) <= 40
    assert pieces[-1].context.startswith("A title")


def test_facts_of_a_chunking_come_back():
    for chunking in (Chunking(300), Chunking(64, 8, True)):
        told = chunking.facts()
        assert Chunking.of_facts(told) == chunking and json.loads(told)["rule"] == 1
